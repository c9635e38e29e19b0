"""Recordings killed, starved of disk and watched for memory, again and again.

    python -m benchmarks.soak kills --count 500
    python -m benchmarks.soak cuts --count 6000
    python -m benchmarks.soak full --count 20
    python -m benchmarks.soak memory

`kills`: a child records without pause and is killed by SIGKILL at a random moment, most of them in a commit; then the
file as found must open with every epoch whose commit had returned, unchanged, and with nothing of a later one; plain
h5py must read the same; and the next child resumes it. `cuts`: the power goes at a random moment of some commits, and
of the sectors that were not fsynced any may be lost; then as for `kills`. `full`: a real `paddle.Model.fit` on a disk
of random size (a tmpfs of its own where root may mount one, else a file size limit) must end with the weights that it
has without recording. `memory`: peak resident memory of large recordings, epoch by epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.faulty_file import Disk, after_power_cut
from support.recordings import assert_same_epochs, make_epoch, make_labels, read_epochs

from paddle_td_callback import StoreNotFoundError, TrainingDynamicsRecorder, TrainingDynamicsStore
from paddle_td_callback.store import StoreWriter, commits
from paddle_td_callback.store.schema import Layout
from paddle_td_callback.store.verify import verify

N_SAMPLES, N_CLASSES, BATCH = 3000, 20, 500


def batches(epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What every writer records in an epoch: indices and logits."""
    rng = np.random.default_rng(epoch)
    order = rng.permutation(N_SAMPLES)[: N_SAMPLES * 9 // 10]
    for at in range(0, len(order), BATCH):
        rows = order[at : at + BATCH]
        yield rows, rng.normal(0, 3, (len(rows), N_CLASSES)).astype(np.float32)


def record_until_killed(path: str, compression: str | None) -> None:
    """Say "begin k" before the commit of epoch k is handed over, "done k" once it has returned."""
    # All that runs beside a commit of a large recording is to run beside these small ones.
    commits._WRITE_BEHIND_BYTES = 20_000
    with TrainingDynamicsRecorder(
        path, n_samples=N_SAMPLES, n_classes=N_CLASSES, compression=compression, resume=True
    ) as recorder:
        while True:
            epoch = recorder.n_epochs
            for rows, logits in batches(epoch):
                recorder.update(rows, logits, rows % N_CLASSES)
            os.write(1, b"begin %d\n" % epoch)
            recorder.end_epoch()
            recorder.flush()
            os.write(1, b"done %d\n" % epoch)


def check(path: str, checked: int) -> int:
    """Compare epochs from `checked` on with what was recorded; return how many there are."""
    with TrainingDynamicsStore(path) as store:
        predicted, wide = store.predictions(), store.probabilities()
        given, times = store.given_probabilities(), store.n_presentations()
        assert store.dropped_epochs == []
        for epoch in range(checked, store.n_epochs):
            seen = np.zeros(N_SAMPLES, bool)
            for rows, logits in batches(epoch):
                softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
                softmax /= softmax.sum(axis=1, keepdims=True)
                seen[rows] = True
                at = (np.arange(len(rows)), rows % N_CLASSES)
                assert (predicted[rows, epoch] == logits.argmax(axis=1)).all(), f"epoch {epoch}: predictions"
                assert (wide[rows, epoch] == softmax.astype(np.float16)).all(), (
                    f"epoch {epoch}: probabilities"
                )
                assert (given[rows, epoch] == softmax[at]).all(), f"epoch {epoch}: given probabilities"
                assert (store.labels[rows] == at[1]).all(), f"epoch {epoch}: labels"
            assert ((times[:, epoch] > 0) == seen).all(), f"epoch {epoch}: presentations"
        return store.n_epochs


def check_plain(path: str, n_epochs: int) -> None:
    """Compare what plain h5py reads with what our reader reads."""
    with h5py.File(path) as file, TrainingDynamicsStore(path) as store:
        there = int(file.attrs["committed_epochs"])
        assert there == n_epochs, f"h5py sees {there} epochs of {n_epochs}"
        for name, found in (
            ("given_probability", store.given_probabilities()),
            ("margin", store.margins()),
            ("predicted", store.predictions()),
            ("n_presentations", store.n_presentations()),
            ("probabilities", store.probabilities()),
        ):
            column = file[name][:]
            assert len(column) == there, f"h5py: {name} has {len(column)} epochs of {there}"
            assert np.array_equal(column, found.swapaxes(0, 1), equal_nan=column.dtype.kind == "f"), name
        assert np.array_equal(file["labels"][:], store.labels), "h5py: labels"


def kills(count: int, seed: int) -> int:
    rng = np.random.default_rng(seed)
    failures = n_lost = n_early = n_in_commit = n_epochs = 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=os.environ.get("SOAK_DIR")) as folder:
        for round_number in range(count):
            chain = round_number // 25  # a file lives through 25 kills
            compression = [None, "gzip"][chain % 2]
            path = os.path.join(folder, f"{chain}.h5")
            if round_number % 25 == 0:
                committed = 0
            said = kill_one(path, compression, rng)
            if said is None:
                failures += 1
                print(f"kill {round_number}: the recording did not begin", flush=True)
                continue
            done, begun = said
            n_in_commit += begun > done
            try:
                # All of the file once in a while, else the epochs since the last kill: the others cannot have been
                # touched without the checksums telling, and verify reads them all.
                found = check(path, 0 if round_number % 25 == 24 else committed)
                check_plain(path, found)
                report = verify(path)
                assert report.ok, str(report)
                assert found >= committed, f"{committed} epochs before, {found} now"
            except Exception as error:
                failures += 1
                print(f"kill {round_number}, gzip={compression}: {error!r}", flush=True)
                found = committed
            n_lost += max(0, done + 1 - found) if done >= 0 else 0
            n_early += max(0, found - max(committed, begun + 1))
            n_epochs += found - committed
            committed = found
            if round_number % 25 == 24:
                os.unlink(path)
            if (round_number + 1) % 50 == 0:
                print(
                    f"{round_number + 1} kills, {n_in_commit} in a commit, {n_epochs} epochs committed: "
                    f"{failures} files failed, {n_lost} committed epochs lost, {n_early} uncommitted seen, "
                    f"{time.perf_counter() - started:.0f} s",
                    flush=True,
                )
    return failures + n_lost + n_early


def cuts(count: int, seed: int) -> int:
    """Cut the power; returns the number of files that are not as they must be."""
    rng, failures, n_epochs, n_resumed = np.random.default_rng(seed), 0, 0, 0
    layouts = [
        Layout(300, 5),
        Layout(300, 5, gzip_level=1),
        Layout(40_000, 2, keep="given"),
        Layout(900, 400),
    ]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path, found = Path(folder, "run.h5"), Path(folder, "found.h5")
        patch.setattr(commits, "_WRITE_BEHIND_BYTES", 1500)
        for number in range(count):
            if number % 100 == 0:  # another recording
                layout, n_before = layouts[number // 100 % len(layouts)], int(rng.integers(0, 70))
                labels = make_labels(layout, number)
                early = np.where(rng.random(len(labels)) < 0.5, labels, -1).astype(np.int32)
                epochs = [make_epoch(layout, early, i) for i in range(n_before)]
                epochs += [make_epoch(layout, labels, i) for i in range(n_before, n_before + 3)]
                with contextlib.closing(StoreWriter.create(path, layout, overwrite=True)) as writer:
                    for index in range(max(1, n_before)):
                        writer.commit_epoch(index, epochs[index], early if index < n_before else labels)
                start, disk = path.read_bytes(), Disk(patch)
                writer, returned = StoreWriter.resume(path), [0] * max(1, n_before)
                for index in range(writer.n_epochs, len(epochs)):
                    writer.commit_epoch(index, epochs[index], labels)
                    returned.append(len(disk.operations))
                writer.close()
                patch.undo()
                patch.setattr(commits, "_WRITE_BEHIND_BYTES", 1500)
            n_done = int(rng.integers(0, len(disk.operations) + 1))
            found.write_bytes(after_power_cut(start, disk.operations, n_done, rng))
            try:
                there, _ = read_epochs(found)
                assert len(there) >= sum(n_done >= end for end in returned), f"{len(there)} epochs"
                assert_same_epochs(there, epochs[: len(there)])
                with h5py.File(found) as file:
                    for field in layout.fields:
                        wanted = np.stack([epoch[field.name] for epoch in there])
                        np.testing.assert_array_equal(file[field.name][:], wanted)
                n_epochs += len(there)
                if number % 10 == 0:
                    with contextlib.closing(StoreWriter.resume(found)) as writer:
                        for index in range(writer.n_epochs, len(epochs)):
                            writer.commit_epoch(index, epochs[index], labels)
                    assert_same_epochs(read_epochs(found)[0], epochs)
                    assert verify(found).ok
                    n_resumed += 1
            except Exception as error:
                failures += 1
                print(f"cut {number}, operation {n_done}: {error!r}", flush=True)
    print(
        f"{count} cuts, {n_epochs} epochs read by two readers, {n_resumed} resumed: {failures} failed, "
        f"{time.perf_counter() - started:.0f} s"
    )
    return failures


def kill_one(path: str, compression: str | None, rng: np.random.Generator) -> tuple[int, int] | None:
    """The last epochs done and begun when the child was killed; None if it did not get that far."""
    child = subprocess.Popen(
        [sys.executable, __file__, "record", path, compression or "none"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    said = child.stdout.readline()  # imports are done
    lines = [said]
    if said:
        for _ in range(rng.integers(1, 6)):  # the kill comes in one of the next commits, or anywhere
            lines.append(child.stdout.readline())
            lines.append(child.stdout.readline())
        if rng.random() < 0.8:
            while not lines[-1].startswith(b"begin"):
                lines.append(child.stdout.readline())
            time.sleep(float(rng.uniform(0, 0.02 if compression is None else 0.03)))
        else:
            time.sleep(float(rng.uniform(0, 0.2)))
    child.send_signal(signal.SIGKILL)
    lines += child.stdout.read().splitlines()
    child.wait()
    child.stdout.close()
    words = [line.split() for line in lines if line.strip()]
    if not words:
        return None
    done = max((int(number) for word, number in words if word == b"done"), default=-1)
    return done, max(int(number) for word, number in words if word == b"begin")


TRAINING = """
import hashlib, os, sys, warnings
import h5py, numpy as np, paddle
from paddle_td_callback import TrainingDynamicsCallback, TrainingDynamicsStore

class Data(paddle.io.Dataset):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.x, self.y = rng.normal(size=(4000, 20)).astype("float32"), rng.integers(0, 50, 4000)
    def __getitem__(self, i):
        return self.x[i], self.y[i]
    def __len__(self):
        return 4000

paddle.seed(0)
np.random.seed(0)
nn = paddle.nn
network = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 50))
model = paddle.Model(network)
model.prepare(paddle.optimizer.Adam(parameters=network.parameters()), paddle.nn.CrossEntropyLoss())
callbacks = [TrainingDynamicsCallback(sys.argv[1])] if len(sys.argv) > 1 else []
if callbacks:
    import paddle_td_callback.recording.recorder as recorder  # that the disk will be full is what is tried here
    recorder.check_space = lambda *arguments, **options: None
model.fit(Data(), epochs=8, batch_size=250, verbose=0, callbacks=callbacks)
weights = b"".join(parameter.numpy().tobytes() for parameter in network.parameters())
print(hashlib.sha256(weights).hexdigest())
"""
EPOCH_BYTES = 4000 * (50 * 2 + 13)


def train(*arguments: str, limit_bytes: int | None = None) -> tuple[str, str, int]:
    """Hash of the weights, what was warned of, status."""

    def limit() -> None:
        if limit_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    child = subprocess.run(
        [sys.executable, "-c", TRAINING, *arguments],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return child.stdout.strip(), child.stderr, child.returncode


def full(count: int, seed: int) -> int:
    rng = np.random.default_rng(seed)
    wanted, _, status = train()
    assert status == 0
    with tempfile.TemporaryDirectory() as folder:
        whole = os.path.join(folder, "whole.h5")
        assert train(whole)[0] == wanted
        with TrainingDynamicsStore(whole) as store:
            truth = store.probabilities(), store.margins()
    failures = 0
    for _ in range(count):
        size = int(rng.uniform(0.35, 9) * EPOCH_BYTES)
        with disk_of(size) as (folder, limit):
            path = os.path.join(folder, "run.h5")
            found, warned, status = train(path, limit_bytes=limit)
            said = "cannot be written" in warned and ("No space left" in warned or "File too large" in warned)
            try:
                with TrainingDynamicsStore(path) as store:
                    n_epochs = store.n_epochs
                    intact = all(
                        np.array_equal(got, full[:, :n_epochs], equal_nan=True)
                        for got, full in zip((store.probabilities(), store.margins()), truth, strict=True)
                    )
                opened = verify(path).ok and intact
            except StoreNotFoundError:  # where not even one epoch fits, no file is left
                n_epochs, opened = 0, size < EPOCH_BYTES
            except Exception as error:
                n_epochs, opened = -1, False
                print(repr(error))
            good = status == 0 and found == wanted and opened and (said or n_epochs == 8)
            failures += not good
            print(
                f"{size / 1e6:5.2f} MB ({'tmpfs' if limit is None else 'file size limit'}): status {status}, weights "
                f"{'the same' if found == wanted else 'DIFFER'}, {n_epochs} epochs intact={opened}, warned={said}",
                flush=True,
            )
    print(f"{count} sizes, {failures} failed")
    return failures


@contextlib.contextmanager
def disk_of(size: int) -> Iterator[tuple[str, int | None]]:
    """A folder on a disk of that many bytes, or one and the limit of file size that stands for it."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["-t", "tmpfs", "-o", f"size={size // 4096 * 4096}", "tmpfs", folder]
        mounted = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
        try:
            yield folder, None if mounted else size
        finally:
            if mounted:
                subprocess.run(["umount", folder], check=True)


MEMORY_RUNS: dict[str, dict[str, Any]] = {
    "1,281,167 x 1,000, given, 20 epochs": {"n": 1_281_167, "c": 1000, "keep": "given", "epochs": 20},
    "50,000 x 100, all, 200 epochs": {"n": 50_000, "c": 100, "keep": "all", "epochs": 200},
    "1,281,167 x 1,000, all, 2 epochs": {"n": 1_281_167, "c": 1000, "keep": "all", "epochs": 2},
    "1,281,167 x 1,000, all, 2 epochs, limit 1 GiB": {
        "n": 1_281_167,
        "c": 1000,
        "keep": "all",
        "epochs": 2,
        "limit": 1 << 30,
    },
}


def memory(folder: str | None) -> None:
    for name, run in MEMORY_RUNS.items():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            command = [sys.executable, __file__, "memory-run", os.path.join(place, "run.h5"), json.dumps(run)]
            print(
                f"{name}: {subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout}",
                flush=True,
            )


def memory_run(path: str, run: dict[str, Any]) -> None:
    """Record and print the peak of resident memory above that of the start, after each epoch in part."""
    logits = np.random.default_rng(0).normal(size=(4096, run["c"])).astype(np.float32)
    start = peak_bytes()
    recorder = TrainingDynamicsRecorder(
        path,
        n_samples=run["n"],
        n_classes=run["c"],
        keep=run["keep"],
        memory_limit_bytes=run.get("limit"),
        expected_epochs=run["epochs"],
    )
    peaks = []
    began = time.perf_counter()
    for epoch in range(run["epochs"]):
        order = np.random.default_rng(epoch).permutation(run["n"])
        for at in range(0, run["n"], 4096):
            rows = order[at : at + 4096]
            recorder.update(rows, logits[: len(rows)], rows % run["c"])
        recorder.end_epoch()
        peaks.append((peak_bytes() - start) / 2**20)
    recorder.close()
    two, above = 2 * recorder.layout.epoch_bytes, peak_bytes() - start
    steps = " ".join(f"{peak:.0f}" for peak in (peaks[0], peaks[1], peaks[len(peaks) // 2], peaks[-1]))
    print(
        f"two epochs are {two / 2**20:.0f} MiB; peak above the start {above / 2**20:.0f} MiB; after epochs 1, 2, "
        f"half, all: {steps} MiB; {time.perf_counter() - began:.0f} s; file {os.path.getsize(path) / 2**20:.0f} MiB"
    )


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["kills", "cuts", "full", "memory", "record", "memory-run"])
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder")
    options = parser.parse_args()
    warnings.simplefilter("default")
    if options.what == "record":
        path, compression = options.arguments
        record_until_killed(path, None if compression == "none" else compression)
    elif options.what == "memory-run":
        memory_run(options.arguments[0], json.loads(options.arguments[1]))
    elif options.what == "memory":
        memory(options.folder)
    else:
        soak, count = {"kills": (kills, 500), "cuts": (cuts, 6000), "full": (full, 20)}[options.what]
        sys.exit(soak(options.count or count, options.seed))


if __name__ == "__main__":
    main()
