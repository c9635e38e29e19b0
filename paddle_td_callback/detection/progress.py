"""A progress bar with named stages, on terminals only, and only for work of more than a second."""

from __future__ import annotations

import sys
from types import TracebackType

from ..messages import Forgiving

DELAY_S = 1.0


class Progress:
    """Counts the samples of one stage after another; a context manager.

    Args:
        title: what is done.
        stages: the names of the stages, in their order.
        n_samples: of each stage.
        wanted: whether to show a bar. There is none either where standard error is no terminal and no notebook runs.
    """

    def __init__(self, title: str, stages: list[str], n_samples: int, *, wanted: bool) -> None:
        self._title, self._stages, self._n_samples = title, stages, n_samples
        self._bar = None
        if wanted and sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules):
            from tqdm import tqdm

            self._bar = tqdm(
                total=n_samples,
                unit="sample",
                unit_scale=True,
                delay=DELAY_S,
                leave=False,
                file=Forgiving(sys.stderr),
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, stage: str) -> None:
        """Begin a stage at none of its samples."""
        if self._bar is not None:
            number = self._stages.index(stage) + 1
            self._bar.set_description(
                f"{self._title}, {number} of {len(self._stages)}: {stage}", refresh=False
            )
            self._bar.reset(self._n_samples)

    def done(self, n_samples: int) -> None:
        """Count samples of this stage."""
        if self._bar is not None:
            self._bar.update(n_samples)
