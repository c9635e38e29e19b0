"""The JSON lines of Dataset Cartography, both ways: one `dynamics_epoch_{k}.jsonl` an epoch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..detection.interpolate import fill_missed_epochs
from ..detection.output_files import new_text_file
from ..errors import StoreError, StoreNotFoundError
from ..messages import escape
from ..store import TrainingDynamicsStore
from ..store.paths import existing_file, path_text
from ..store.schema import Keep
from .import_arrays import import_arrays

_NAME = re.compile(r"dynamics_epoch_(\d{1,9})\.jsonl")
_FLOOR = 2.0**-25  # what a stored 0 counts as: half of float16's smallest number


def write_cartography(store: TrainingDynamicsStore, folder: str | os.PathLike[str]) -> list[str]:
    """Write `dynamics_epoch_{k}.jsonl` for each epoch: `guid`, `logits_epoch_{k}` and `gold` of each sample.

    The logits are the logarithms of the recorded probabilities, so their softmax gives these back. Epochs in which
    a sample was not seen are filled linearly, since cartography wants each sample in each epoch; samples that were
    never seen are left out. The guid is the sample's id, or its index.

    Args:
        store: a recording with `keep="all"`.
        folder: where the files go, made if it is missing; those of the same name are replaced.

    Returns:
        The paths of the files.

    Raises:
        StoreError: the recording does not hold the probabilities of all classes.
    """
    folder = path_text(folder, "folder")
    try:
        os.makedirs(folder, exist_ok=True)
    except (OSError, ValueError) as error:
        raise StoreError(f"the folder '{folder}' cannot be made: {error}; give another one") from error
    names = [f"dynamics_epoch_{epoch}.jsonl" for epoch in range(store.n_epochs)]
    others = sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name) and name not in names)
    if others:
        raise StoreError(
            f"the folder '{folder}' holds '{others[0]}' of another training, which would be taken for a part of this "
            "one; remove it, or give another folder"
        )
    paths = [os.path.join(folder, name) for name in names]
    ids = store.sample_ids
    for epoch, path in enumerate(paths):
        with new_text_file(path) as file:
            for tile in store.tiles(wide=True):
                probabilities = fill_missed_epochs(store.probabilities(tile))[:, epoch]
                logits = np.log(np.maximum(probabilities.astype(np.float64), _FLOOR)).round(6)
                for sample, row in zip(range(tile.start, tile.stop), logits.tolist(), strict=True):
                    if store.labels[sample] >= 0:
                        guid = sample if ids is None else ids[sample]
                        line = {"guid": guid, f"logits_epoch_{epoch}": row, "gold": int(store.labels[sample])}
                        file.write(json.dumps(line) + "\n")
    return paths


def import_cartography(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    keep: Keep = "all",
    overwrite: bool = False,
) -> None:
    """Write a recording of cartography's files; the samples are numbered in the order of the first epoch's lines.

    Args:
        folder: with `dynamics_epoch_{k}.jsonl`, as cartography's `training_dynamics/` is.
        out: the recording to make. Its sample ids are the guids, unless these are 0, 1, 2 and so on.
        keep: as for `TrainingDynamicsRecorder`.
        overwrite: replace an existing recording.

    Raises:
        StoreNotFoundError: no such files.
        ValueError: a line is not as said; the message names it.
        StoreError: the recording cannot be written.
    """
    folder = path_text(folder, "folder")
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise StoreNotFoundError(
            f"the folder '{folder}' cannot be read: {error.strerror}; give cartography's training_dynamics folder"
        ) from error
    numbers = sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))
    if not numbers:
        raise StoreNotFoundError(
            f"'{folder}' holds no dynamics_epoch_0.jsonl and so on; give cartography's "
            "training_dynamics folder"
        )
    place: dict[str, int] = {}
    labels: list[int] = []
    n_classes = 0
    for _, guid, logits, gold in _lines(folder, numbers[0]):
        place[guid] = len(labels)
        labels.append(gold)
        n_classes = n_classes or len(logits)

    def epochs() -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        for number in numbers:
            rows, values = [], []
            for where, guid, logits, gold in _lines(folder, number):
                if guid not in place or labels[place[guid]] != gold:
                    raise ValueError(
                        f"{where}: guid {escape(guid, limit=60)!r} is not in the first epoch, or has another label "
                        "there; give the files of one training"
                    )
                if len(logits) != n_classes:
                    raise ValueError(
                        f"{where}: {len(logits)} logits, the first line has {n_classes}; give each sample one logit "
                        "for each class"
                    )
                rows.append(place[guid])
                values.append(logits)
            yield np.array(rows, np.int64), np.array(values, np.float32).reshape(len(rows), n_classes)

    is_index = list(place) == [str(index) for index in range(len(place))]
    import_arrays(
        out,
        epochs(),
        np.array(labels, np.int64),
        logits=True,
        n_classes=n_classes,
        sample_ids=None if is_index else list(place),
        keep=keep,
        overwrite=overwrite,
    )


def _lines(folder: str | os.PathLike[str], epoch: int) -> Iterator[tuple[str, str, list[float], int]]:
    path = os.path.join(folder, f"dynamics_epoch_{epoch}.jsonl")
    guids = set()
    with open(existing_file(path, "cartography's files"), "rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"'{escape(path)}', line {number}"
            try:
                line = json.loads(raw.decode())
                guid, gold, logits = line["guid"], line["gold"], line[f"logits_epoch_{epoch}"]
                if not isinstance(logits, list) or not all(type(value) in (int, float) for value in logits):
                    raise TypeError("logits are no list of numbers")
                values = [float(value) for value in logits]
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                problem = f"{type(error).__name__}: {escape(error, limit=200)}"
                raise ValueError(
                    f"{where}: wanted an object with 'guid', 'gold' and 'logits_epoch_{epoch}' ({problem}); give a "
                    "folder that cartography or paddle-td export wrote"
                ) from error
            if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(values):
                got = escape(repr(gold), limit=40)
                raise ValueError(f"{where}: gold must be a class in [0, {len(values)}), got {got}")
            if str(guid) in guids:
                raise ValueError(
                    f"{where}: guid {escape(guid, limit=60)!r} comes twice; give each sample a guid of its own"
                )
            guids.add(str(guid))
            yield where, str(guid), values, gold
