"""A writer that commits without pause, and what a reader of another make must find meanwhile.

python live.py write PATH SECONDS
python live.py read PATH MODULE       (h5py or pyfive; needs nothing of this package)
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import Any

import numpy as np

N_SAMPLES, N_CLASSES = 500, 4


def write(path: str, seconds: float) -> int:
    """Commit epochs for so long: every number in epoch e follows from e. Returns how many."""
    from paddle_td_callback.store import StoreWriter
    from paddle_td_callback.store.schema import Layout

    layout = Layout(N_SAMPLES, N_CLASSES)
    writer = StoreWriter.create(path, layout)
    labels = (np.arange(N_SAMPLES) % N_CLASSES).astype(np.int32)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        epoch = writer.n_epochs
        arrays = {f.name: np.empty(f.shape, f.dtype) for f in layout.fields}
        arrays["margin"][:] = arrays["given_probability"][:] = epoch + 1
        arrays["predicted"][:] = epoch % N_CLASSES
        arrays["n_presentations"][:] = epoch % 255 + 1
        arrays["probabilities"][:] = epoch % 2048
        writer.commit_epoch(epoch, arrays, labels)
    writer.close()
    return writer.n_epochs


def is_right(file: Any) -> bool:
    """Whether a file, as h5py or pyfive shows it, holds the epochs that it says are committed."""
    count = int(file.attrs["committed_epochs"])
    epochs = np.arange(count)[:, np.newaxis]
    wanted = {
        "margin": epochs + 1,
        "given_probability": epochs + 1,
        "predicted": epochs % N_CLASSES,
        "n_presentations": epochs % 255 + 1,
        "probabilities": (epochs % 2048)[..., np.newaxis],
    }
    if count and (np.asarray(file["labels"][:]) != np.arange(N_SAMPLES) % N_CLASSES).any():
        return False
    for name, numbers in wanted.items():
        dataset = file[name]
        start = max(0, count - 20)  # all of them now and then, else the newest
        if count % 50 == 0:
            start = 0
        if dataset.shape[:2] != (count, N_SAMPLES) or (dataset[start:] != numbers[start:]).any():
            return False
    return True


def read(path: str, module: str, is_alive: Any = lambda: True) -> dict[str, int]:
    """Read as long as `is_alive`; returns how many reads were right, wrong, and errors, and the newest epoch."""
    reader = importlib.import_module(module)
    found = {"right": 0, "wrong": 0, "errors": 0, "epochs": 0}
    while not os.path.exists(path):
        time.sleep(0.001)
    while is_alive():
        try:
            with reader.File(path, "r") as file:
                found["right" if is_right(file) else "wrong"] += 1
                found["epochs"] = int(file.attrs["committed_epochs"])
        except Exception as error:  # noqa: PERF203
            found["errors"] += 1
            print(repr(error), file=sys.stderr)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], float(sys.argv[3]))
    else:
        import select

        print(read(sys.argv[2], sys.argv[3], lambda: not select.select([sys.stdin], [], [], 0)[0]))
