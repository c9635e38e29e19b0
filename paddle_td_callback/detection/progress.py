"""A progress bar with named stages, on terminals only, and only for work of more than a second."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

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
        self._is_shown = wanted and _has_reader()
        self._started_s = time.monotonic()
        self._bar: Any = None
        self._stage, self._n_done = stages[0], 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, stage: str) -> None:
        """Begin a stage at none of its samples."""
        self._stage, self._n_done = stage, 0
        if self._bar is not None:
            self._bar.set_description(self._description, refresh=False)
            self._bar.reset()

    def done(self, n_samples: int) -> None:
        """Count samples of this stage."""
        self._n_done += n_samples
        if self._bar is not None:
            self._bar.update(n_samples)
        elif self._is_shown and time.monotonic() - self._started_s >= DELAY_S:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._description,
                total=self._n_samples,
                initial=self._n_done,
                unit="sample",
                unit_scale=True,
                leave=False,
                file=Forgiving(sys.stderr),
            )

    @property
    def _description(self) -> str:
        number = self._stages.index(self._stage) + 1
        return f"{self._title}, {number} of {len(self._stages)}: {self._stage}"


def _has_reader() -> bool:
    """Whether standard error is a terminal or a notebook; it may be missing or closed."""
    try:
        return sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    except (OSError, ValueError):
        return False
