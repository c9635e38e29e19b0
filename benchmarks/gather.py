"""Bytes that go to rank 0 at the end of an epoch, the time that takes, and what memory rank 0 and the others need.

    python -m paddle.distributed.launch --nproc_per_node=4 --backend gloo benchmarks/gather.py

Every rank records its share of the samples through `TrainingDynamicsRecorder`, as a training would. The last
column of times is the baseline: the same bytes through bare calls of Paddle's `all_gather`, in the same tiles. Rank 0
prints CSV; the first epoch, which allocates, and the first round of the baseline do not count. Without the launcher,
one process records all samples: what rank 0 needs beyond that is the price of the gather.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed as dist

from paddle_td_callback import TrainingDynamicsRecorder
from paddle_td_callback.recording.gathering import TILE_BYTES, row_dtype
from paddle_td_callback.store.schema import Layout

BATCH = 128
N_BASELINE = 5


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def baseline_seconds(n_bytes: int) -> float:
    """Bare all_gathers of the same bytes, tile by tile: the median of five rounds after one that does not count."""
    tile = paddle.zeros([TILE_BYTES // dist.get_world_size()], dtype="uint8")
    seconds = []
    for _ in range(1 + N_BASELINE):
        dist.barrier()
        begin = time.perf_counter()
        for _ in range(0, n_bytes, TILE_BYTES):
            dist.all_gather([], tile)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--keep", default="all")
    parser.add_argument("--folder", default=None, help="where the recording goes")
    arguments = parser.parse_args()
    dist.init_parallel_env()
    rank, size = dist.get_rank(), dist.get_world_size()
    keep = int(arguments.keep) if arguments.keep.isdigit() else arguments.keep
    layout = Layout(arguments.samples, arguments.classes, keep=keep)
    mine = np.arange(rank, arguments.samples, size)
    logits = np.random.default_rng(rank).normal(size=(BATCH, arguments.classes)).astype(np.float32)
    labels = np.zeros(BATCH, np.int64)
    first_of_all = status_bytes("VmRSS")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = os.path.join(folder, "run.h5")
        recorder = TrainingDynamicsRecorder(
            path, n_samples=arguments.samples, n_classes=arguments.classes, keep=keep
        )
        seconds, waits, sent = [], [], []
        for _ in range(1 + arguments.epochs):
            for start in range(0, len(mine), BATCH):
                rows = mine[start : start + BATCH]
                recorder.update(rows, logits[: len(rows)], labels[: len(rows)])
            recorder.flush()  # of the epoch before: what remains is the gather
            recorder.barrier()
            before, begin, blocked = recorder.gathered_bytes, time.perf_counter(), recorder.blocked_seconds
            recorder.end_epoch()
            seconds.append(time.perf_counter() - begin)
            waits.append(recorder.blocked_seconds - blocked)
            sent.append(recorder.gathered_bytes - before)
        recorder.barrier()
        peak = status_bytes("VmHWM") - first_of_all
        bare = baseline_seconds(row_dtype(layout).itemsize * arguments.samples) if size > 1 else 0.0
        recorder.close()
    peaks: list[object] = []
    if size > 1:
        dist.all_gather_object(peaks, peak)
    else:
        peaks = [peak, 0]
    if rank == 0:
        row = row_dtype(layout).itemsize
        print(
            "ranks,samples,classes,keep,row_bytes,MiB_to_rank_0,seconds_median,seconds_max,seconds_bare_all_gather"
        )
        print(
            f"{size},{arguments.samples},{arguments.classes},{keep},{row},{sent[0] / 2**20:.1f},"
            f"{np.median(seconds[1:]):.3f},{max(seconds[1:]):.3f},{bare:.3f}"
        )
        print("rank_0_peak_MiB,other_ranks_peak_MiB,two_epochs_MiB,tiles_and_steps_MiB")
        extra = 2 * TILE_BYTES + 8 * arguments.samples
        print(
            f"{peaks[0] / 2**20:.0f},{max(peaks[1:]) / 2**20:.0f},"  # type: ignore[operator, type-var]
            f"{2 * layout.epoch_bytes / 2**20:.0f},{extra / 2**20:.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
