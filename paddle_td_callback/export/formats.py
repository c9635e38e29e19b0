"""The formats of `paddle-td export`. A new one is a function here and a line in `FORMATS`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..messages import show

if TYPE_CHECKING:
    from ..detection.label_issues import LabelIssues
    from ..store import TrainingDynamicsStore


def _csv(issues: LabelIssues, out: str, **_: Any) -> None:
    issues.to_csv(out)


def _parquet(issues: LabelIssues, out: str, **_: Any) -> None:
    from .tables import write_parquet

    write_parquet(issues, out)


def _fiftyone(issues: LabelIssues, out: str, **_: Any) -> None:
    from .fiftyone import write_fiftyone

    write_fiftyone(issues, out)


def _label_studio(
    issues: LabelIssues, out: str, *, prefix: str, texts: Sequence[str] | None, quiet: bool
) -> None:
    from ..detection.output_files import is_stdout, new_text_file
    from .label_studio import labeling_config, write_label_studio

    write_label_studio(issues, out, prefix=prefix, texts=texts)
    if is_stdout(out):
        return
    interface = os.path.splitext(out)[0] + ".xml"
    with new_text_file(interface) as file:
        file.write(labeling_config(issues, kind="image" if texts is None else "text"))
    if not quiet:
        show(f"labeling interface: {interface}")


def _interpretdl(store: TrainingDynamicsStore, out: str, **_: Any) -> None:
    from .interpretdl_npz import write_interpretdl

    write_interpretdl(store, out)


def _cartography(store: TrainingDynamicsStore, out: str, **_: Any) -> None:
    from .cartography import write_cartography

    write_cartography(store, out)


def _pred_probs(store: TrainingDynamicsStore, out: str, **_: Any) -> None:
    import numpy as np

    from ..detection.output_files import new_file

    probabilities = store.pred_probs()
    with new_file(out) as file:
        np.save(file, probabilities)


class Format(NamedTuple):
    """A format of `paddle-td export`.

    Attributes:
        write: is called with a `LabelIssues` or an open `TrainingDynamicsStore`, the path to write, and the options
            `prefix`, `texts` and `quiet` of the command.
        of_ranking: whether it takes the `LabelIssues`.
        is_text: whether it can be printed.
        suffix: of the files that are written in this format if none is named.
        is_folder: whether the path is a folder.
    """

    write: Callable[..., None]
    of_ranking: bool
    is_text: bool = False
    suffix: str = ""
    is_folder: bool = False


FORMATS = {
    "csv": Format(_csv, True, True, ".csv"),
    "parquet": Format(_parquet, True, suffix=".parquet"),
    "interpretdl": Format(_interpretdl, False, suffix=".npz"),
    "cartography": Format(_cartography, False, is_folder=True),
    "pred-probs": Format(_pred_probs, False, suffix=".npy"),
    "fiftyone": Format(_fiftyone, True, True),
    "label-studio": Format(_label_studio, True, True),
}
