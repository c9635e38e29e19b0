"""The ranking in VisualDL or Weights & Biases: noise rate, data map, and pictures of the first suspects."""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from ..detection.label_issues import LabelIssues
from ..store import TrainingDynamicsStore
from .report import Source, check_same_recording, opened
from .thumbnails import Content, Pictures, Thumbnail, same_random_streams

_PREFIX = "label_issues/"
Picture = tuple[npt.NDArray[np.uint8], str]  # [row, column, channel], and what stands below it


def log_issues(
    issues: LabelIssues,
    source: Source,
    writer: Any,
    *,
    dataset: Any = None,
    thumbnail: Thumbnail | None = None,
    step: int | None = None,
    n_suspects: int = 8,
) -> None:
    """Log noise rate, share of labels that look wrong, data map and pictures of the first suspects.

    The map needs matplotlib, and pictures need Pillow; what is not installed is left out.

    Args:
        issues: what `find_label_issues` found.
        source: the recording that they were found in.
        writer: a `visualdl.LogWriter`, or a run of Weights & Biases.
        dataset: what was trained on, for pictures; None shows none.
        thumbnail: as for `write_report`.
        step: where on the time axis; None = the number of epochs that were recorded.
        n_suspects: how many pictures.

    Raises:
        ValueError: issues of another recording.
        TypeError: a writer that is neither.
    """
    if not any(hasattr(writer, name) for name in ("add_scalar", "log")):
        raise TypeError(
            f"writer must be a visualdl.LogWriter or a run of wandb, got a {type(writer).__name__}; pass one of these"
        )
    at = (issues.n_epochs or 0) if step is None else step
    numbers = {"share_that_looks_wrong": float(issues.is_label_issue.mean())}
    if issues.noise_rate is not None:
        numbers["noise_rate"] = issues.noise_rate
    with opened(source) as store:
        check_same_recording(issues, store)
        maps = _data_map(issues, store)
        pictures = Pictures(dataset=dataset, thumbnail=thumbnail, n_samples=store.n_samples)
    suspects = []
    with same_random_streams():
        for rank, sample in enumerate(issues.ranking[:n_suspects].tolist(), start=1):
            pixels = _pixels(pictures.of(sample))
            if pixels is not None:
                suspects.append((pixels, f"{rank}: {issues.describe(sample)}"))
    (_to_visualdl if hasattr(writer, "add_scalar") else _to_wandb)(
        writer, at, numbers, maps, suspects, issues
    )


def _to_visualdl(
    writer: Any,
    step: int,
    numbers: dict[str, float],
    maps: list[Picture],
    suspects: list[Picture],
    issues: LabelIssues,
) -> None:
    for name, value in numbers.items():
        writer.add_scalar(tag=_PREFIX + name, value=value, step=step)
    for pixels, caption in maps:
        writer.add_image(tag=_PREFIX + caption, img=pixels, step=step)
    for number, (pixels, _) in enumerate(suspects, start=1):
        writer.add_image(tag=f"{_PREFIX}suspect {number}", img=pixels, step=step)
    writer.add_text(tag=f"{_PREFIX}ranking", text_string=issues.to_text(), step=step)


def _to_wandb(
    run: Any,
    step: int,
    numbers: dict[str, float],
    maps: list[Picture],
    suspects: list[Picture],
    issues: LabelIssues,
) -> None:
    image = sys.modules["wandb"].Image  # a run was made by it
    values: dict[str, Any] = {_PREFIX + name: value for name, value in numbers.items()}
    values |= {_PREFIX + caption: image(pixels) for pixels, caption in maps}
    if suspects:
        values[f"{_PREFIX}suspects"] = [image(pixels, caption=caption) for pixels, caption in suspects]
    run.log({**values, f"{_PREFIX}epoch": step})


def _data_map(issues: LabelIssues, store: TrainingDynamicsStore) -> list[Picture]:
    try:
        figure = issues.plot(store)
    except ImportError:
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [(np.asarray(canvas.buffer_rgba())[:, :, :3].copy(), "data map")]


def _pixels(content: Content | None) -> npt.NDArray[np.uint8] | None:
    if content is None or "image" not in content:
        return None
    try:
        from PIL import Image
    except ImportError:
        return None
    with Image.open(io.BytesIO(base64.b64decode(content["image"].split(",", 1)[1]))) as picture:
        return np.asarray(picture.convert("RGB"))
