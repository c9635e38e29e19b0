"""InterpretDL's `training_dynamics.npz`, both ways: `td` [sample, epoch, class] with the given label first."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..detection.interpolate import fill_missed_epochs
from ..detection.output_files import new_file
from ..messages import escape
from ..store import TrainingDynamicsStore
from ..store.paths import path_text
from ..store.schema import Keep
from .import_arrays import EPOCH_BYTES, check_worth, import_arrays, open_npz

_BLOCK = 1 << 20  # values that are turned at once
MAX_CLASSES = 32_767  # the labels are int16


def write_interpretdl(
    store: TrainingDynamicsStore,
    out: str | os.PathLike[str],
    *,
    label_flip: npt.ArrayLike | None = None,
    compress: bool = True,
) -> None:
    """Write what InterpretDL's `TrainingDynamics.save` writes and `BHDFInterpreter.interpret` reads.

    Epochs in which a sample was not seen are filled as `find_label_issues` fills them: linearly, each class by
    itself. A sample that was never seen has NaN and the label -1. No array of objects is written.

    Args:
        store: a recording with `keep="all"`.
        out: the npz; an existing one is replaced once the new one is whole.
        label_flip: `[sample]` bool, which labels are known to be wrong; None leaves the array out.
        compress: whether to deflate it.

    Raises:
        ValueError: more than 32,767 classes, which int16 cannot number.
        StoreError: the recording does not hold the probabilities of all classes.
    """
    if store.n_classes > MAX_CLASSES:
        raise ValueError(
            f"'{store.path}' has {store.n_classes} classes; InterpretDL's labels are int16 and number at most "
            f"{MAX_CLASSES}; give another format"
        )
    n_samples, n_epochs, n_classes = store.n_samples, store.n_epochs, store.n_classes
    with new_file(out) as file:
        method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", method) as archive:
            if label_flip is not None:
                flipped = np.asarray(label_flip, bool)
                if flipped.shape != (n_samples,):
                    raise ValueError(
                        f"label_flip must be [sample], one for each of {n_samples}, got {flipped.shape}"
                    )
                _add(archive, "label_flip", flipped.dtype, flipped.shape, iter([flipped]))
            # Twice over the recording, so that neither array has to fit in memory.
            _add(archive, "labels", np.dtype(np.int16), (n_samples, n_classes), (o for o, _ in _tiles(store)))
            _add(
                archive,
                "td",
                np.dtype(np.float16),
                (n_samples, n_epochs, n_classes),
                (t for _, t in _tiles(store)),
            )


def _tiles(store: TrainingDynamicsStore) -> Iterator[tuple[npt.NDArray[np.int16], npt.NDArray[np.float16]]]:
    """Of each tile the classes in their order, given label first, and the probabilities in that order."""
    for tile in store.tiles(wide=True):
        filled = fill_missed_epochs(store.probabilities(tile)).astype(np.float16)
        given = store.labels[tile].astype(np.int64)
        mean = filled.mean(axis=1, dtype=np.float32)
        mean[np.arange(len(given)), np.maximum(given, 0)] = np.inf
        order = np.argsort(-mean, axis=1, kind="stable")
        labels = order.astype(np.int16)
        labels[given < 0] = -1
        yield labels, np.take_along_axis(filled, order[:, np.newaxis], axis=2)


def _add(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    parts: Iterator[npt.NDArray[Any]],
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for part in parts:
            member.write(part.tobytes())


def import_interpretdl(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    keep: Keep = "all",
    overwrite: bool = False,
) -> None:
    """Write a recording of InterpretDL's npz.

    InterpretDL fills the last, short batch of an epoch by an interpolation across classes. Rows that do not sum to 1
    are such, and count as unseen.

    Args:
        path: what `TrainingDynamics.save` or `write_interpretdl` wrote; its pickled arrays are not read.
        out: the recording to make.
        keep: as for `TrainingDynamicsRecorder`.
        overwrite: replace an existing recording.

    Raises:
        ValueError: arrays are missing or do not fit together.
        StoreError: the recording cannot be written.
    """
    with open_npz(path) as arrays:
        if not {"td", "labels"} <= set(arrays):
            raise ValueError(
                f"'{path_text(path)}' lacks the arrays 'td' and 'labels' of InterpretDL; give what its "
                "TrainingDynamics.save wrote"
            )
        name, td, order = escape(path_text(path)), arrays["td"], arrays["labels"]
        if (
            td.ndim != 3
            or order.shape != (td.shape[0], td.shape[2])
            or order.dtype.kind not in "iu"
            or not td.size
        ):
            raise ValueError(
                f"'{name}': td must be [sample, epoch, class], labels integers [sample, class], and neither empty, got "
                f"{td.dtype} {td.shape} and {order.dtype} {order.shape}"
            )
        if td.dtype.kind != "f":
            raise ValueError(f"'{name}': td must be floating point, got {td.dtype}")
        check_worth(path, td.shape[1] * EPOCH_BYTES)
        given = order[:, 0].astype(np.int64)
        step = max(1, _BLOCK // td.shape[2])
        blocks = [slice(start, start + step) for start in range(0, len(given), step)]
        for block in blocks:
            rows = np.sort(order[block][given[block] >= 0], axis=1)
            if not (rows == np.arange(td.shape[2])).all():
                raise ValueError(
                    f"'{name}': a row of labels does not list every class once; save them as "
                    "InterpretDL's TrainingDynamics.save does"
                )

        def epochs() -> Iterator[npt.NDArray[np.float32]]:
            for epoch in range(td.shape[1]):
                rows = np.empty(order.shape, np.float32)
                for block in blocks:
                    # Where class c stands in each row.
                    place = np.argsort(order[block], axis=1)
                    part = np.take_along_axis(td[block, epoch].astype(np.float32), place, axis=1)
                    part[~(np.abs(part.sum(axis=1) - 1) <= 0.02)] = (
                        np.nan
                    )  # what InterpretDL's interpolation made up
                    rows[block] = part
                yield rows

        import_arrays(out, epochs(), given, n_classes=int(td.shape[2]), keep=keep, overwrite=overwrite)
