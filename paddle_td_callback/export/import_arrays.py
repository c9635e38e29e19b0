"""Recordings made of other tools' arrays: (sample indices, probabilities) of each epoch."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..messages import escape
from ..names import name_of
from ..recording.recorder import TrainingDynamicsRecorder
from ..store.paths import check_path, existing_file, make_beside, move_into_place, path_text
from ..store.schema import Keep
from ..store.writer import lock_replaced

_BLOCK = 1 << 24  # values that are converted at once
_EXPANSION = 100  # probabilities pack less; a file of zeros packs a thousandfold
_ALWAYS_BYTES = 64 << 20
EPOCH_BYTES = 64 << 10  # what an epoch counts beside its values: it takes a commit, however few values it has
# What zipfile, zlib and NumPy raise for bytes that are no npz.
_NO_NPZ: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError)
_NO_NPZ += (
    SyntaxError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    TypeError,
    OverflowError,
    LookupError,
)
Epoch = npt.ArrayLike | tuple[npt.ArrayLike, npt.ArrayLike]


def import_arrays(
    out: str | os.PathLike[str],
    epochs: Iterable[Epoch],
    labels: npt.ArrayLike,
    *,
    n_classes: int | None = None,
    logits: bool = False,
    class_names: Sequence[str] | None = None,
    sample_ids: Sequence[Any] | None = None,
    mode: str = "train",
    keep: Keep = "all",
    dtype: str = "float16",
    overwrite: bool = False,
) -> None:
    """Write a recording of what another tool wrote down of a training.

    Args:
        out: the recording to make.
        epochs: for each epoch the probabilities `[sample, class]`, NaN = unseen, or a pair of sample indices
            `[row]` and probabilities `[row, class]`; an array `[epoch, sample, class]` is one such thing.
        labels: `[sample]`, the given labels; -1 where a sample has none, whose rows are left out.
        n_classes: number of classes; None = as many as the first epoch has columns.
        logits: whether logits are given instead of probabilities.
        class_names: as for `TrainingDynamicsRecorder`, and so are the others.
        sample_ids: see there.
        mode: see there.
        keep: see there.
        dtype: see there.
        overwrite: see there.

    Raises:
        ValueError: shapes that disagree, no epochs, or what `TrainingDynamicsRecorder.update` refuses.
        TypeError: the same.
        StoreError: the recording cannot be written.
    """
    given = np.asarray(labels)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers [sample], got {given.dtype} {given.shape}")
    recorder = None
    with _whole_recording(out, overwrite) as fresh, contextlib.ExitStack() as stack:
        for number, epoch in enumerate(epochs):
            rows, table = _arrays_of(number, epoch, len(given))
            if recorder is None:
                n_columns = int(table.shape[1]) if n_classes is None else n_classes
                if len(given) and given.max() >= n_columns:
                    raise ValueError(
                        f"labels must be in [-1, {n_columns}), got {given.max()} for sample {given.argmax()}; give one "
                        "column for each class"
                    )
                recorder = stack.enter_context(
                    TrainingDynamicsRecorder(
                        fresh,
                        n_samples=len(given),
                        n_classes=n_columns,
                        class_names=class_names,
                        sample_ids=sample_ids,
                        mode=mode,
                        keep=keep,
                        dtype=dtype,
                        overwrite=True,
                        on_error="raise",
                        distributed=False,
                    )
                )
            _put(recorder, rows, table, given, logits)
            recorder.end_epoch()
        if recorder is None:
            raise ValueError("there are no epochs to import; give at least one")
        if (recorder.labels < 0).all():
            raise ValueError(
                "no sample has both a label and values in any epoch, so there is nothing to import; give labels of at "
                "least 0 and values that are not NaN"
            )


def _arrays_of(number: int, epoch: Any, n_samples: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Sample indices `[row]` and values `[row, class]` of an epoch; what is masked is NaN.

    Raises:
        ValueError: it has another form.
    """
    is_pair = isinstance(epoch, tuple)
    try:
        indices, values = epoch if is_pair else (np.arange(n_samples), epoch)
        if isinstance(values, np.ma.MaskedArray):
            values = values.filled(np.nan)
        rows, table = np.asarray(indices), values if hasattr(values, "dtype") else np.asarray(values)
        if rows.ndim == 1 and table.ndim == 2 and len(table) == len(rows):
            return rows, table
        got = f"indices of shape {rows.shape} and values of shape {table.shape}"
    except (TypeError, ValueError) as error:
        got = f"{type(epoch).__name__} ({escape(error, limit=100)})"
    raise ValueError(
        f"epoch {number}: wanted values [sample, class] of {n_samples} samples, or a tuple of sample indices [row] and "
        f"values [row, class], got {got}; give one row for each index"
    )


@contextlib.contextmanager
def _whole_recording(out: str | os.PathLike[str], overwrite: bool) -> Iterator[str]:
    """A path to record into; the file gets the name `out` when the block ends, and an error leaves what was there."""
    real = os.path.realpath(check_path(out, overwrite=overwrite))
    with contextlib.ExitStack() as undo:
        if os.path.exists(real):
            undo.callback(lock_replaced(path_text(out), real).close)
        fresh = make_beside(real)
        try:
            yield fresh
            move_into_place(fresh, real, overwrite=overwrite)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise


def _put(
    recorder: TrainingDynamicsRecorder,
    rows: npt.NDArray[Any],
    table: npt.NDArray[Any],
    given: npt.NDArray[Any],
    logits: bool,
) -> None:
    if rows.size and rows.dtype.kind not in "iu":
        raise TypeError(f"sample indices must be integers, got {rows.dtype}")
    if rows.size and not (rows.min() >= 0 and rows.max() < len(given)):
        raise ValueError(f"sample indices must be in [0, {len(given)}), got {rows.min()} to {rows.max()}")
    step = max(1, _BLOCK // table.shape[1])
    for start in range(0, len(rows), step):
        block = np.asarray(table[start : start + step])
        if block.dtype.kind != "f":
            raise TypeError(f"probabilities must be floating point, got {block.dtype}")
        index = rows[start : start + step]
        seen = ~np.isnan(block).any(axis=1) & (given[index] >= 0)
        values = block[seen].astype(np.float32)
        if logits:
            recorder.update(index[seen], values, given[index[seen]])
        else:
            _check_probabilities(values, index[seen])
            recorder.update(index[seen], None, given[index[seen]], probabilities=values)


def _check_probabilities(values: npt.NDArray[np.float32], index: npt.NDArray[Any]) -> None:
    bad = (values < 0).any(axis=1) | (
        np.abs(values.sum(axis=1) - 1) > 0.02
    )  # float16 of 1,000 classes is 0.01 off
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"sample {index[row]}: its values sum to {values[row].sum():.4g} and the smallest is "
            f"{values[row].min():.4g}, so they are no probabilities; if they are logits, pass logits=True (--logits)"
        )


class Npz(dict[str, npt.NDArray[Any]]):
    """The plain arrays of an npz.

    Attributes:
        objects: names of those that are no plain arrays, which are not read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.objects: set[str] = set()


@contextlib.contextmanager
def open_npz(path: str | os.PathLike[str]) -> Iterator[Npz]:
    """The arrays of an npz, mapped from disk, so that none has to fit in memory. Arrays of objects are left out.

    Args:
        path: the file. It is not trusted: no pickle is loaded, and what an array claims is compared with its size.

    Raises:
        ValueError: it is no npz, or damaged.
        StoreError: it cannot be read.
        OSError: the folder for temporary files is full.
    """
    name = existing_file(path, "an npz file")
    with contextlib.ExitStack() as stack:
        arrays = Npz()
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            if any(member.header_offset < 0 for member in archive.infolist()):
                raise ValueError("a member lies before the file's first byte")
            needed = sum(member.file_size for member in archive.infolist())
            check_worth(path, needed)
            free = shutil.disk_usage(folder).free
            if needed > free:
                raise OSError(
                    f"'{name}' unpacks to {needed / 1e9:.1f} GB, and the disk of '{folder}' has "
                    f"{free / 1e9:.1f} GB free; set TMPDIR to a folder on a larger disk"
                )
            for number, member in enumerate(archive.infolist()):
                if not member.filename.endswith(".npy"):
                    continue
                where = os.path.join(folder, f"{number}.npy")
                with archive.open(member) as packed, open(where, "wb") as plain:
                    while block := packed.read(1 << 20):
                        plain.write(block)
                array = _mapped(where)
                key = member.filename.removesuffix(".npy")
                if array is None:
                    arrays.objects.add(key)
                else:
                    arrays[key] = array
        except _NO_NPZ as error:
            problem = f"{type(error).__name__}: {escape(error, limit=300)}"
            raise ValueError(
                f"'{escape(name)}' cannot be read as an npz of plain arrays ({problem}); save it with numpy.savez"
            ) from error
        yield arrays
        arrays.clear()


def check_worth(path: str | os.PathLike[str], n_bytes: int) -> None:
    """Refuse what a small file would blow up to.

    Raises:
        ValueError: `n_bytes` are more than the file is worth.
    """
    size = os.path.getsize(path)
    if n_bytes > max(_ALWAYS_BYTES, _EXPANSION * size):
        raise ValueError(
            f"'{escape(path_text(path))}': {size} bytes that take {n_bytes} to read; wanted at most {_EXPANSION} times "
            "as many; if the arrays are right, save them uncompressed, with numpy.savez, and not more epochs than are "
            "needed"
        )


def _mapped(path: str) -> npt.NDArray[Any] | None:
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        n_header = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
        if n_header > os.path.getsize(path):  # NumPy would make room for it first
            raise ValueError(f"a header of {n_header} bytes, its file has {os.path.getsize(path)}")
        file.seek(np.lib.format.MAGIC_LEN)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        if dtype.hasobject:
            return None
        n_bytes = os.path.getsize(path) - file.tell()
    if (
        any(length < 0 for length in shape)
        or int(np.prod([1, *shape], dtype=object)) * dtype.itemsize != n_bytes
    ):
        raise ValueError(f"an array claims shape {shape} of {dtype}, its file holds {n_bytes} bytes")
    if n_bytes == 0 or not shape:
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def import_npz(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    logits: bool = False,
    keep: Keep = "all",
    overwrite: bool = False,
) -> None:
    """Write a recording of an npz file: of any tool, or of InterpretDL (see `interpretdl_npz`).

    Arrays: `probabilities` (or `logits`) `[epoch, sample, class]`, or `[epoch, row, class]` with `indices` `[row]` or
    `[epoch, row]`; `labels` `[sample]`; and, if wanted, `class_names` and `sample_ids` as arrays of strings.

    Args:
        path: the npz; arrays of objects (pickles) are not read.
        out: the recording to make.
        logits: whether `probabilities` are logits; an array named `logits` is taken as such anyway.
        keep: as for `TrainingDynamicsRecorder`.
        overwrite: replace an existing recording.

    Raises:
        ValueError: arrays are missing or do not fit together.
        StoreError: the recording cannot be written.
    """
    with open_npz(path) as arrays:
        if "td" in arrays:
            from .interpretdl_npz import import_interpretdl

            import_interpretdl(path, out, keep=keep, overwrite=overwrite)
            return
        values = arrays.get("probabilities", arrays.get("logits"))
        if values is None or "labels" not in arrays:
            raise ValueError(
                f"'{path_text(path)}' holds {', '.join(sorted(arrays)) or 'no arrays'}; wanted 'labels' [sample] and "
                "'probabilities' or 'logits' [epoch, sample, class], and if need be 'indices'; save it with them"
            )
        for name in ("indices", "class_names", "sample_ids"):
            if name in arrays.objects:
                raise ValueError(
                    f"'{path_text(path)}': {name} is an array of objects, which is a pickle and is not read; save it "
                    f"as numpy.array({name}, {'int' if name == 'indices' else 'str'})"
                )
        if values.ndim != 3:
            raise ValueError(f"probabilities must be [epoch, sample, class], got shape {values.shape}")
        indices, labels = arrays.get("indices"), arrays["labels"]
        if labels.ndim != 1 or not len(labels) or not values.size:
            raise ValueError(
                f"'{escape(path_text(path))}': labels must be [sample] and the values [epoch, sample, class], none of "
                f"them empty, got {labels.shape} and {values.shape}"
            )
        check_worth(path, len(labels) * (4 * values.shape[2] + 16))
        check_worth(path, len(values) * EPOCH_BYTES)
        epochs: Iterable[Epoch] = values
        if indices is not None:
            each = indices if indices.ndim != 1 else np.broadcast_to(indices, (len(values), *indices.shape))
            if each.shape != values.shape[:2]:
                raise ValueError(
                    f"'{escape(path_text(path))}': indices must be [row] or [epoch, row], values [epoch, row, class], "
                    f"got {indices.shape} for {values.shape}; save one index for each row"
                )
            epochs = zip(each, values, strict=True)
        import_arrays(
            out,
            epochs,
            np.asarray(labels),
            logits=logits or "probabilities" not in arrays,
            keep=keep,
            overwrite=overwrite,
            class_names=_strings(arrays.get("class_names"), "class_names"),
            sample_ids=_strings(arrays.get("sample_ids"), "sample_ids"),
        )


def _strings(array: npt.NDArray[Any] | None, name: str) -> list[str] | None:
    if array is None:
        return None
    if array.dtype.kind not in "USiu" or array.ndim != 1:
        raise ValueError(
            f"{name} must be an array of strings or integers [name], got {array.dtype} {array.shape}; save it as one"
        )
    return [name_of(one) for one in array.tolist()]
