"""write_report: one HTML page that shows what a recording says, and opens without a network."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import os
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

import numpy as np

from ..detection.label_issues import LabelIssues
from ..detection.output_files import check_out, new_file
from ..store import TrainingDynamicsStore
from ..store.paths import path_text
from ..store.schema import is_whole
from .report_data import report_data
from .text import embedded_json, visible
from .thumbnails import SIDE, Pictures, Thumbnail

Source = str | os.PathLike[str] | TrainingDynamicsStore


def write_report(
    issues: LabelIssues,
    source: Source | Sequence[Source],
    out: str | os.PathLike[str],
    *,
    dataset: Any = None,
    thumbnail: Thumbnail | None = None,
    images: str | os.PathLike[str] | None = None,
    title: str | None = None,
    n_suspects: int = 2000,
    max_content_bytes: int = 14_000_000,
    picture_size: int = SIDE,
    progress: bool = False,
) -> str:
    """Write a page with summary, data map, suspects to mark, classes, pairs and the agreement of the methods.

    The page holds all it needs, asks no network, and runs nothing that comes from the data. Time and memory are
    those of one pass over the recording; with the default arguments the page stays below 25 MB.

    Args:
        issues: what `find_label_issues` found.
        source: the recording that they were found in; of several runs the first is drawn.
        out: the page to write; an existing one is replaced once the new one is whole.
        dataset: what was trained on. Its items are shown: a picture, a text, or a row of values; of a
            `DatasetFolder` the files themselves. None shows none.
        thumbnail: what to show of an item of `dataset`, called as `thumbnail(dataset[index])`: an array or a Pillow
            image, the bytes of a picture, a text, or a mapping or sequence of values.
        images: a folder of picture files: those whose paths below it are the sample ids, or, where samples have no
            ids, as many as there are samples, in the order of `DatasetFolder`.
        title: of the page; None names the recording.
        n_suspects: how many samples are shown one by one, the most suspicious first.
        max_content_bytes: what their pictures, texts and rows may take in the page.
        picture_size: pixels of a picture's longer side.
        progress: show a bar on a terminal while pictures are read.

    Returns:
        The path of the page.

    Raises:
        ValueError: issues of another recording, an argument out of range, or pictures that do not belong to it.
        StoreError: the page cannot be written, or the recording cannot be read.
    """
    check_out(out)
    for name, value in (("n_suspects", n_suspects), ("picture_size", picture_size)):
        if not is_whole(value) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    sources = [source] if isinstance(source, (str, bytes, os.PathLike, TrainingDynamicsStore)) else source
    with opened(sources[0]) as store:
        check_same_recording(issues, store)
        pictures = Pictures(
            dataset=dataset,
            thumbnail=thumbnail,
            images=images,
            sample_ids=issues.sample_ids,
            n_samples=store.n_samples,
            n_known=int(np.flatnonzero(issues.given_label >= 0).max(initial=-1)) + 1,
            side=picture_size,
        )
        data, points = report_data(
            issues,
            store,
            pictures,
            files=[_shown_path(one) for one in sources],
            title=title or f"Label issues of {os.path.basename(store.path)}",
            n_suspects=n_suspects,
            max_content_bytes=max_content_bytes,
            progress=progress,
        )
    with new_file(out) as file:
        file.write(page(data, points))
    return path_text(out)


def _shown_path(source: Source) -> str:
    """A path as a command takes it, without the folders of this machine."""
    path = source.path if isinstance(source, TrainingDynamicsStore) else path_text(source)
    if not os.path.isabs(path):
        return path
    below = os.path.relpath(path)
    return os.path.basename(path) if below.startswith(os.pardir) else below


@contextlib.contextmanager
def opened(source: Source) -> Iterator[TrainingDynamicsStore]:
    """A recording, which is closed afterwards if it was not open."""
    if isinstance(source, TrainingDynamicsStore):
        yield source
    else:
        with TrainingDynamicsStore(source) as store:
            yield store


def check_same_recording(issues: LabelIssues, store: TrainingDynamicsStore) -> None:
    """Refuse issues that were not found in this recording.

    Raises:
        ValueError: another number of samples, or another label of a sample.
    """
    if len(issues) != store.n_samples:
        raise ValueError(
            f"the issues are of {len(issues)} samples, '{store.path}' holds {store.n_samples}; pass the recording that "
            "they were found in"
        )
    both = (store.labels >= 0) & (issues.given_label >= 0)
    if store.label_shifts is not None:  # the training saw another label than the data set has
        both &= store.label_shifts == 0
    differing = np.flatnonzero(both & (store.labels != issues.given_label))
    if len(differing):
        sample = int(differing[0])
        raise ValueError(
            f"sample {sample} has label {issues.given_label[sample]} in the issues and {store.labels[sample]} in "
            f"'{store.path}'; pass the recording that the issues were found in"
        )


def page(data: dict[str, Any], points: bytes) -> bytes:
    """The page: template, style, script and data in one. Scripts and styles run by their hashes only."""
    style, script = _part("report.css"), _part("report.js")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    parts = {
        "policy": policy,
        "title": html.escape(visible(data["title"])),
        "style": style,
        "script": script,
        "data": embedded_json(data),
        "points": base64.b64encode(points).decode(),
    }
    pieces = _part("report.html").split("{{")
    whole = [pieces[0]]  # put together piece by piece, so that nothing in the data is taken for a place
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        whole += [parts[name], rest]
    return "".join(whole).encode()


def _part(name: str) -> str:
    return resources.files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
