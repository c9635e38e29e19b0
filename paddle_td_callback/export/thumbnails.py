"""What a sample is, small enough for a page: a picture, a text or a row of values."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import random
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..recording.batches import as_array
from ..store.paths import existing_file

Content = dict[str, Any]
Thumbnail = Callable[[Any], Any]

SIDE = 144  # pixels of the longer side; the page shows 72, and all of them when one presses it
_OVERSHOOT = 0.5  # beyond 0 and 1
_DARK = 63  # of 255: pictures whose brightest pixel is no brighter are stretched
MAX_TEXT = 20_000  # characters
MAX_CELLS = 40
_MAX_RAW_FILE = 64 << 10  # of a picture that cannot be scaled, because Pillow is not installed
_MAGIC = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")


class Pictures:
    """Where the page's pictures, texts and rows come from.

    Args:
        dataset: anything with `dataset[index]`, the data set of a loader, or a data frame; of a `DatasetFolder` the
            files themselves are read, without the augmentation.
        thumbnail: what to show of `dataset[index]`: an array, a Pillow image, the bytes or the path of a picture, a
            text, or a mapping or sequence of values. None finds the first of these in the item.
        images: a folder. Samples whose id is a path below it show that file; without ids, the n-th file in the
            order of `DatasetFolder` is that of the n-th sample, if there are as many files as samples.
        sample_ids: of the samples, or None.
        n_samples: how many there are.
        n_known: how many the data set must have at least; None = all of them.
        side: pixels of a picture's longer side.

    Raises:
        ValueError: a folder with another number of pictures, or a thumbnail without a data set.
    """

    def __init__(
        self,
        *,
        dataset: Any = None,
        thumbnail: Thumbnail | None = None,
        images: str | os.PathLike[str] | None = None,
        sample_ids: Sequence[str] | None = None,
        n_samples: int,
        n_known: int | None = None,
        side: int = SIDE,
    ) -> None:
        if thumbnail is not None and dataset is None:
            raise ValueError("thumbnail= is given the items of dataset=, which is missing; pass both")
        self._thumbnail, self._side = thumbnail, side
        self._dataset = dataset = _readable(dataset)
        self._folder = None if images is None else os.path.abspath(images)
        self._ids = sample_ids
        self._files: list[str] | None = None
        self.there = dataset is not None or images is not None
        self.failed: str | None = None
        self.n_failed = 0
        if dataset is not None:
            length, least = _length(dataset), n_samples if n_known is None else n_known
            if length is not None and length < least:
                raise ValueError(
                    f"dataset has {length} samples, the recording {least}; pass the data set that was trained on"
                )
            if thumbnail is None:
                self._files = _files_of(dataset, least)
        if self._folder is not None and self._ids is None:
            self._files = list_images(self._folder)
            if len(self._files) != n_samples:
                raise ValueError(
                    f"'{images}' holds {len(self._files)} pictures, the recording {n_samples} samples without ids, so "
                    "it is not known which is which; record with sample_ids=, or pass dataset="
                )

    def of(self, index: int) -> Content | None:
        """What sample `index` shows, None where nothing is to be had. Never raises."""
        if not self.there:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._of(index)
        except Exception as error:  # a picture that cannot be read must not cost the page
            self.n_failed += 1
            self.failed = self.failed or f"sample {index}: {type(error).__name__}: {error}"[:300]
            return None

    def _of(self, index: int) -> Content:
        if self._files is not None:
            return of_file(self._files[index], self._side)
        if self._folder is not None and self._ids is not None:
            return of_file(self._below(self._ids[index]), self._side)
        item = self._dataset[index]
        shown = item if self._thumbnail is None else self._thumbnail(item)
        found = describe(shown, self._side)
        if found is None:
            raise ValueError(
                f"there is nothing to show in {_kind(shown)}; pass thumbnail=, a function of an item that returns a "
                "picture or a text"
            )
        return found

    def _below(self, name: str) -> str:
        """The file that an id names. An id is what a file claims, so it opens nothing outside the folder."""
        assert self._folder is not None
        # An id may begin with the folder's own name. Links in the folder are the user's own, so they are followed.
        for start in (self._folder, os.path.dirname(self._folder)):
            path = os.path.normpath(os.path.join(start, name.replace("\\", "/")))
            if path.startswith(os.path.join(self._folder, "")) and os.path.isfile(path):
                return path
        raise ValueError(
            f"the id {name[:100]!r} is no file below '{self._folder}'; give the folder that the ids begin in"
        )


class _Rows:
    """The rows of a data frame by their place."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def __len__(self) -> int:
        return len(self._frame)

    def __getitem__(self, place: int) -> Any:
        row = self._frame.iloc[place]
        return row.to_dict() if hasattr(row, "to_dict") else row


def _readable(dataset: Any) -> Any:
    """What has items by their place: of a loader its data set, of a data frame its rows."""
    if hasattr(dataset, "iloc"):
        return _Rows(dataset)
    if not hasattr(dataset, "__getitem__") and hasattr(dataset, "dataset"):
        return dataset.dataset
    return dataset


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except Exception:  # a data set may have no length, and say so by any error
        return None


def _kind(item: Any) -> str:
    shape = getattr(item, "shape", None)
    if shape is not None:
        return f"{type(item).__name__} {list(shape)}"
    if isinstance(item, (list, tuple)):
        return f"{type(item).__name__} of {', '.join(_kind(one) for one in item[:3])}"
    return type(item).__name__


@contextlib.contextmanager
def same_random_streams() -> Iterator[None]:
    """Reading a data set may augment; the random streams of the caller go on as if it had not."""
    paddle = sys.modules.get("paddle")
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  those a data set draws from
    paddle_state = None if paddle is None else paddle.get_rng_state()
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        if paddle is not None:
            paddle.set_rng_state(paddle_state)


def list_images(folder: str) -> list[str]:
    """All pictures below a folder in the order in which `DatasetFolder` numbers them."""
    found = []
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    for name in classes or [""]:
        for root, _, files in sorted(os.walk(os.path.join(folder, name), followlinks=True)):
            found += [
                os.path.join(root, file) for file in sorted(files) if file.lower().endswith(IMAGE_SUFFIXES)
            ]
    return found


def _files_of(dataset: Any, n_samples: int) -> list[str] | None:
    """The picture files of a `DatasetFolder`, an `ImageFolder` or a `Subset` of one."""
    from ..dataset_names import names_of

    paths = names_of(dataset).paths
    if paths is None or len(paths) < n_samples:
        return None
    return paths if all(path.lower().endswith(IMAGE_SUFFIXES) for path in paths[:100]) else None


def of_file(path: str, side: int = SIDE) -> Content:
    """A picture file, scaled down where Pillow is installed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no picture that a browser shows, or too large to embed without Pillow.
    """
    path = existing_file(path, "the path of a picture")
    try:
        from PIL import Image
    except ModuleNotFoundError:
        if os.path.getsize(path) > _MAX_RAW_FILE:
            raise ValueError(
                f"'{path}' is too large to embed as it is; install pillow, which scales it"
            ) from None
        with open(path, "rb") as file:
            return of_bytes(file.read())
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.draft("RGB", (side, side))
            return _of_pillow(image, side)


def of_bytes(data: bytes) -> Content:
    """The bytes of a PNG, JPEG, GIF, WebP or BMP."""
    for magic, kind in _MAGIC.items():
        if data.startswith(magic) and (kind != "webp" or data[8:12] == b"WEBP"):
            return {"image": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}
    raise ValueError("these bytes are no PNG, JPEG, GIF, WebP or BMP; give a picture of one of these kinds")


def describe(item: Any, side: int = SIDE) -> Content | None:
    """Picture, text or row of what a data set or a thumbnail function gives; None where there is nothing to show."""
    if isinstance(item, str):
        return {"text": item[:MAX_TEXT] + ("…" if len(item) > MAX_TEXT else "")}
    if isinstance(item, (bytes, bytearray)):
        return of_bytes(bytes(item))
    if isinstance(item, os.PathLike):
        return of_file(os.fsdecode(item), side)
    if hasattr(item, "getbands") and hasattr(item, "thumbnail"):
        return _of_pillow(item, side)
    if isinstance(item, Mapping):
        for value in item.values():
            if not isinstance(value, (str, Mapping, list, tuple)):
                found = describe(value, side)
                if found is not None and "image" in found:
                    return found
        return _row([(str(key), value) for key, value in item.items()])
    if hasattr(item, "__array__") and not isinstance(item, np.generic):
        return _of_array(as_array(item), side)
    if isinstance(item, (tuple, list)):
        if item and all(isinstance(value, (str, int, float, np.generic)) for value in item):
            return _row([("", value) for value in item])
        for value in item:
            found = describe(value, side)
            if found is not None:
                return found
    return None


def _row(cells: Sequence[tuple[str, Any]]) -> Content:
    shown = [[name, _value(value)] for name, value in cells[:MAX_CELLS]]
    left = len(cells) - len(shown)
    return {"row": shown + ([["", f"and {left} more"]] if left else [])}


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)[:MAX_TEXT]


def _of_array(array: npt.NDArray[Any], side: int) -> Content | None:
    if array.dtype.kind not in "biuf" or array.size == 0 or array.ndim == 0:
        return None
    if array.ndim == 1:
        return _row([("", value) for value in array])
    pixels = _as_pixels(array, side)
    return (
        None
        if pixels is None
        else {"image": "data:image/png;base64," + base64.b64encode(png(pixels)).decode()}
    )


def _as_pixels(array: npt.NDArray[Any], side: int) -> npt.NDArray[np.uint8] | None:
    """[row, column] or [row, column, channel] of at most `side` pixels a side, from any usual order and range."""
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[0] < array.shape[-1] and array.shape[-1] not in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] not in (3, 4):
        array = array.mean(axis=-1) if array.shape[-1] > 1 else array[..., 0]  # no colours: their mean
    if array.ndim not in (2, 3):
        return None
    step = max(1, round(max(array.shape[:2]) / side))  # to about that size
    if step > 1:  # mean of blocks, the incomplete ones at the edge left out
        rows, columns = (max(1, size // step) for size in array.shape[:2])
        array = array[: rows * step, : columns * step]
        block = (rows, min(step, array.shape[0]), columns, min(step, array.shape[1]), *array.shape[2:])
        dtype = array.dtype
        array = array.reshape(block).mean(axis=(1, 3))
        array = array.astype(dtype) if dtype == np.uint8 else array
    if array.dtype == np.uint8 and array.max() > _DARK:
        return array
    array = array.astype(np.float64)
    finite = array[np.isfinite(array)]
    if not finite.size:
        return np.zeros(array.shape, np.uint8)
    array = np.nan_to_num(array, nan=finite.min(), posinf=finite.max(), neginf=finite.min())
    low, high = _range_of(array)
    shades: npt.NDArray[np.uint8] = np.round(
        (np.clip(array, low, high) - low) / (high - low or 1) * 255
    ).astype(np.uint8)
    return shades


def _range_of(array: npt.NDArray[np.float64]) -> tuple[float, float]:
    """What is black and what is white: 0 and 1, 0 and 255, or the smallest and the largest number."""
    low, high = float(array.min()), float(array.max())
    if (low >= 0 and high <= 1) or (low >= -_OVERSHOOT and 1 < high <= 1 + _OVERSHOOT):  # resizing overshoots
        return 0.0, 1.0
    if low >= 0 and _DARK < high <= 255:
        return 0.0, 255.0
    return low, high


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG of [row, column] grey, or [row, column, channel] RGB or RGBA."""
    height, width = pixels.shape[:2]
    colour = 0 if pixels.ndim == 2 else {3: 2, 4: 6}[pixels.shape[2]]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )


def _as_rgb(image: Any) -> Any:
    if image.mode == "LAB":  # which Pillow turns into no other mode without a profile
        from PIL import ImageCms

        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    return image.convert("RGB")


def _of_pillow(image: Any, side: int) -> Content:
    if image.mode in ("F", "I") or image.mode.startswith("I;"):  # numbers of any range
        found = _of_array(np.asarray(image), side)
        assert found is not None
        return found
    from PIL import ImageOps

    small = image.copy()
    small.thumbnail((side, side))
    small = ImageOps.exif_transpose(small)  # photographs are turned by a note in the file
    out = io.BytesIO()
    if small.mode in ("1", "L"):
        small.convert("L").save(out, "PNG")
    elif small.mode in ("LA", "PA", "RGBA", "P", "RGBa", "La"):
        small.convert("RGBA").save(out, "PNG")
    else:
        _as_rgb(small).save(out, "JPEG", quality=82)
    return of_bytes(out.getvalue())
