"""What each process of `tests/test_distributed.py` runs, under `paddle.distributed.launch`: `ranks.py FOLDER WHAT`.

Every scenario leaves its recording, each rank's own log of (index, logits) and its weights in the folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from support.training import N_CLASSES, Bell, Points, Witness, model_of

from paddle_td_callback import (
    CaptureError,
    LabelIssuesCallback,
    TrainingDynamicsCallback,
    TrainingDynamicsRecorder,
    TrainingDynamicsStore,
    find_label_issues,
)
from paddle_td_callback.paddle_fit import evaluation_pass as evaluation
from paddle_td_callback.paddle_fit import issues_callback as finder
from paddle_td_callback.paddle_fit import ranks as distributed
from paddle_td_callback.paddle_fit import rendezvous
from paddle_td_callback.recording import gathering
from paddle_td_callback.store import StoreWriter

SIZES = ((50, 8), (33, 16), (101, 7), (7, 4), (3, 2), (1, 2))  # (samples, batch size): few divide by anything
N_TRAIN = 61

folder = Path(sys.argv[1]) if __name__ == "__main__" else Path()


def fresh(seed: int = 0) -> None:
    paddle.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def keep(name: str, network: Witness) -> None:
    """This rank's log of (index, logits) and its weights."""
    arrays = {
        f"log.{epoch}.{step}.{what}": value
        for epoch, steps in enumerate(network.epochs)
        for step, (indices, logits) in enumerate(steps)
        for what, value in (("indices", indices), ("logits", logits.numpy()))
    }
    arrays |= {f"weight.{i}": p.numpy() for i, p in enumerate(network.state_dict().values())}
    np.savez(folder / f"{name}.rank{dist.get_rank()}.npz", **arrays)


def note(name: str, **facts: Any) -> None:
    (folder / f"{name}.rank{dist.get_rank()}.json").write_text(json.dumps(facts))


def fit(
    name: str,
    *,
    n: int = N_TRAIN,
    batch_size: int = 8,
    learning_rate: float = 0.01,
    record: bool = True,
    network: Witness | None = None,
    callbacks: Any = (),
    options: dict[str, Any] | None = None,
    data: Any = None,
    epochs: int = 3,
    **fit_options: Any,
) -> Witness:
    fresh()
    network = Witness(exact=learning_rate == 0) if network is None else network
    ours = []
    if record:
        ours = [
            TrainingDynamicsCallback(str(folder / f"{name}.h5"), **{"dtype": "float32", **(options or {})})
        ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model_of(network, learning_rate=learning_rate).fit(
            Points(n) if data is None else data,
            epochs=epochs,
            batch_size=batch_size,
            verbose=0,
            callbacks=[Bell(), *ours, *callbacks],
            **fit_options,
        )
    keep(name, network)
    note(
        f"{name}.warnings",
        texts=[str(w.message) for w in caught if "paddle_td" in w.filename + str(w.message)],
    )
    return network


def learning_rate_zero() -> None:
    for n, batch_size in SIZES:
        fit(f"still{n}", n=n, batch_size=batch_size, learning_rate=0.0)
    fit("still_eval", n=33, batch_size=16, learning_rate=0.0, options={"mode": "eval"})


def training() -> None:
    plain = Witness(dropout=0.3, exact=False)
    start = {key: value.numpy().copy() for key, value in plain.state_dict().items()}

    def again() -> Witness:
        network = Witness(dropout=0.3, exact=False)
        network.set_state_dict(start)
        return network

    tile_bytes, gathering.TILE_BYTES = gathering.TILE_BYTES, 512  # several tiles an epoch
    for record in (True, False):
        fit(f"training{record}", network=again(), record=record)
        fit(f"num_iters{record}", network=again(), record=record, num_iters=11)
        fit(f"workers{record}", network=again(), record=record, num_workers=1, epochs=1)
        fit(f"eval{record}", network=again(), record=record, options={"mode": "eval"})
    gathering.TILE_BYTES = tile_bytes


class StopAfter(paddle.callbacks.EarlyStopping):
    """Paddle's early stopping, with a metric that never improves."""

    def on_eval_end(self, logs: Any = None) -> None:
        super().on_eval_end({"loss": 1.0})


def early_stopping() -> None:
    fit(
        "early",
        eval_data=Points(20),
        epochs=6,
        callbacks=[StopAfter(patience=1, verbose=0, save_best_model=False)],
    )


def counted(name: str) -> Any:
    """`find_label_issues` that counts how often this rank calls it, in `name`'s note."""

    def find(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return find_label_issues(*arguments, **options)

    calls: list[Any] = []
    finder.find_label_issues = find  # type: ignore[assignment]
    return lambda **facts: note(name, calls=len(calls), **facts)


def label_issues() -> None:
    for name, order in (("issues_behind", 1), ("issues_before", -1)):
        fresh()
        path = str(folder / f"{name}.h5")
        csv = str(folder / f"{name}.csv")
        first = LabelIssuesCallback(path, method="aum", csv=csv, every=1, progress=True)
        second = LabelIssuesCallback(path, method="confidence")
        callbacks = [TrainingDynamicsCallback(path, class_names=list("abcd")), first, second][::order]
        network = Witness()
        tell = counted(name)
        model_of(network, learning_rate=0.01).fit(
            Points(N_TRAIN), epochs=2, batch_size=8, verbose=0, callbacks=[Bell(), *callbacks]
        )
        assert first.issues is not None
        assert second.issues is not None
        alone = find_label_issues(path, method="aum", progress=False)
        tell(
            same=bool(np.array_equal(alone.noise_score, first.issues.noise_score)),
            names=first.issues.class_names,
            second=second.issues.method,
        )


def label_issues_of_an_older_recording() -> None:
    """No recorder is in the fit; twice, so that each fit gets its own result."""
    path = str(folder / "issues_behind.h5")
    tell = counted("older")
    methods = []
    for method in ("aum", "confidence"):
        last = LabelIssuesCallback(path, method=method, progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rank 0 says that the file is an older one
            model_of(Witness(), learning_rate=0.01).fit(
                Points(N_TRAIN), batch_size=8, verbose=0, callbacks=[last]
            )
        methods.append(last.issues.method if last.issues is not None else None)
    tell(methods=methods)


def one_rank_asks() -> None:
    """Only the last rank has no LabelIssuesCallback; the others get the result all the same."""
    fresh()
    path = str(folder / "asks.h5")
    asking = LabelIssuesCallback(path, method="aum")
    last = dist.get_rank() == dist.get_world_size() - 1
    model_of(Witness(), learning_rate=0.01).fit(
        Points(N_TRAIN),
        epochs=2,
        batch_size=8,
        verbose=0,
        callbacks=[Bell(), TrainingDynamicsCallback(path), *([] if last else [asking])],
    )
    note("asks", found=asking.issues is not None)


def two_recordings() -> None:
    """Two recordings of one fit, each with a finder of another method."""
    fresh()
    paths = [str(folder / f"two_{which}.h5") for which in "ab"]
    finders = [
        LabelIssuesCallback(path, method=method, progress=False)
        for path, method in zip(paths, ("aum", "confidence"), strict=True)
    ]
    recorders = [TrainingDynamicsCallback(path) for path in paths]
    model_of(Witness(), learning_rate=0.01).fit(
        Points(N_TRAIN), epochs=1, batch_size=8, verbose=0, callbacks=[Bell(), *recorders, *finders]
    )
    note("two", methods=[one.issues.method for one in finders if one.issues is not None])


class Numbered(Points):
    """Batches are dictionaries that carry the index."""

    def __getitem__(self, i: int) -> Any:
        x, label = super().__getitem__(i)
        return {"a": x, "b": label, "index": i}


def padded_with_an_index_field() -> None:
    fit("padded", n=13, data=Numbered(13), batch_size=4, epochs=1, options={"index_field": "index"})


class Corrected(Points):
    """Some samples' labels may be others; the last ones are of the last rank's share of the evaluation pass."""

    wrong = range(0)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        x, label = super().__getitem__(i)
        return x, (label + (i in self.wrong)) % N_CLASSES


def corrected_on_resume() -> None:
    """Labels are not those that the file to resume holds, which rank 0 alone can find out: most, or only the last."""
    for mode in ("train", "eval"):
        for wrong in (range(13), range(12, 13)):
            data, name = Corrected(13), f"corrected_{mode}_{len(wrong)}"
            fit(name, data=data, batch_size=4, epochs=1, options={"mode": mode})
            data.wrong = wrong
            try:
                fit(name, data=data, batch_size=4, options={"mode": mode, "resume": True}, epochs=1)
            except CaptureError as error:
                note(name, text=str(error))


def error_on_one_rank() -> None:
    update, n_updates = TrainingDynamicsRecorder.update, 0

    def fails(*arguments: Any, **options: Any) -> None:
        nonlocal n_updates
        n_updates += 1
        if dist.get_rank() == 1 and n_updates == 4:  # in the third epoch: each is one, but for its first step
            raise LookupError("no more of this")
        update(*arguments, **options)

    TrainingDynamicsRecorder.update = fails  # type: ignore[method-assign]
    fit("error", epochs=5)
    TrainingDynamicsRecorder.update = update  # type: ignore[method-assign]


def existing_file() -> None:
    (folder / "exists.h5").touch()
    try:
        fit("exists")
    except Exception as error:
        note("exists", error=type(error).__name__, text=str(error))


class Stream(paddle.io.IterableDataset):
    """Each rank's share of the samples with their ids; the ranks' shares differ in size by up to one batch."""

    def __init__(self, points: Points) -> None:
        self.points = points

    def __iter__(self) -> Any:
        for i in range(dist.get_rank(), len(self.points), dist.get_world_size()):
            yield (*self.points[i], f"sample-{i}")


def stream() -> None:
    n = 16 * dist.get_world_size()
    fit(
        "stream",
        n=n,
        data=paddle.io.DataLoader(Stream(Points(n)), batch_size=8),
        options={"index_field": -1, "sample_ids": [f"sample-{i}" for i in range(n)]},
    )


def elastic() -> None:
    """A recording that one process began."""
    fit("elastic", options={"resume": True}, epochs=2)


def custom_loop() -> None:
    """Unequal numbers of batches, a sample on both ranks and twice on one, samples never drawn.

    At the first step every rank sees sample 30, the higher ones in an earlier tile.
    """
    rank, size, points = dist.get_rank(), dist.get_world_size(), Points(40)
    tile_bytes, gathering.TILE_BYTES = gathering.TILE_BYTES, 1
    path, log = str(folder / "loop.h5"), {}
    with TrainingDynamicsRecorder(path, n_samples=40, n_classes=N_CLASSES, dtype="float32") as recorder:
        for epoch in range(3):
            batches = [
                [*range(20, 20 + size - rank), 30, 0, 1, 2 + rank],
                [4 + rank, 0],
                [6 + rank, 0, 6 + rank],
            ] + rank * epoch * [
                [9],
                [10 + epoch],
            ]
            if epoch == 2 and rank == 0:
                batches = []
            for step, batch in enumerate(batches):
                rng = np.random.default_rng([rank, epoch, step])
                logits = rng.normal(size=(len(batch), N_CLASSES)).astype(np.float32)
                recorder.update(np.asarray(batch), logits, points.classes[batch])
                log[f"log.{epoch}.{step}.indices"], log[f"log.{epoch}.{step}.logits"] = (
                    np.asarray(batch),
                    logits,
                )
            recorder.end_epoch(count_once=epoch == 1)
    with TrainingDynamicsStore(path) as store:  # whole on every rank once the recorder is left
        note("loop", n_epochs=store.n_epochs)
    gathering.TILE_BYTES = tile_bytes
    np.savez(folder / f"loop.rank{rank}.npz", **log)


SCENARIOS: list[Callable[[], None]] = [
    learning_rate_zero,
    training,
    early_stopping,
    label_issues,
    label_issues_of_an_older_recording,
    one_rank_asks,
    two_recordings,
    padded_with_an_index_field,
    corrected_on_resume,
    error_on_one_rank,
    existing_file,
    stream,
    elastic,
    custom_loop,
]


def slow_disk() -> None:
    """Rank 0's first commit takes longer than gloo waits for a peer."""
    commit, n_commits = StoreWriter.commit_epoch, 0

    def commit_slowly(*arguments: Any) -> Any:
        nonlocal n_commits
        n_commits += 1
        if n_commits == 1:
            time.sleep(40)
        return commit(*arguments)

    StoreWriter.commit_epoch = commit_slowly  # type: ignore[method-assign]
    fit("slow", epochs=3)


def memory() -> None:
    """Records a data set whose epoch is many tiles, and notes by how much this process grew."""

    def status_bytes(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    n, n_classes, rank, size = 500_000, 100, dist.get_rank(), dist.get_world_size()
    logits = np.random.default_rng(rank).normal(size=(2_000, n_classes)).astype(np.float32)
    labels = np.zeros(2_000, np.int64)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = status_bytes("VmRSS")
    with TrainingDynamicsRecorder(folder / "memory.h5", n_samples=n, n_classes=n_classes) as recorder:
        for _ in range(3):
            for rows in np.array_split(np.arange(rank, n, size), n // size // 2_000 + 1):
                recorder.update(rows, logits[: len(rows)], labels[: len(rows)])
            recorder.end_epoch()
    note(
        "memory",
        grown=status_bytes("VmHWM") - before,
        two_epochs=2 * recorder.layout.epoch_bytes,
        n_samples=n,
    )


def die() -> None:
    note("death", time=time.time())
    os.kill(os.getpid(), signal.SIGKILL)


def cut_cable() -> None:
    """What a host does that loses its power: it says nothing more, and closes no connection."""
    links = subprocess.run(["ip", "-br", "link"], check=True, capture_output=True, text=True).stdout
    cable = next(line.split("@")[0] for line in links.splitlines() if line.startswith("ptd"))
    note("death", time=time.time())
    subprocess.run(["ip", "link", "set", cable, "down"], check=True)
    time.sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)


def killed(where: str, victim: int) -> None:
    """One rank is killed, or raises, at a place in the third epoch, or after the last.

    Args:
        where: "epoch" in the middle of it, "gather" between two tiles, "eval" in the evaluation pass; before the ranks
            meet after the last epoch "end" by a signal, "cut" with its host cut off, "raise" by an exception, "caught"
            by one that the script catches, "after" they met by such a one;
            "issues" while rank 0 finds label issues and the others wait; "start"
            before the ranks meet for another fit, "first" before they ever meet; "lacks" is
            no death, but a fit without our callback.
        victim: the rank.
    """
    gathering.TILE_BYTES = 512
    me = dist.get_rank() == victim
    sent: list[Any] = []
    n_fits = 0

    class Killer(paddle.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            if me and (where == "first" or (where == "start" and n_fits == 2)):
                die()

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, step: int, logs: Any = None) -> None:
            if me and where == "epoch" and (self.epoch, step) == (2, 2):
                die()

        def on_train_end(self, logs: Any = None) -> None:
            if me and where == "end":
                die()
            if me and where == "cut":
                cut_cable()
            if me and where == "raise":
                note("death", time=time.time())
                raise LookupError("no more of this")
            if me and where == "after":
                note("death", time=time.time())
                raise LookupError("after the ranks met")

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if me and where == "caught" and epoch == 2:
                note("death", time=time.time())
                raise LookupError("between two epochs")

    killer = Killer()

    def dies_in(owner: Any, name: str, at_call: int) -> None:
        """Have the victim die in this call of the third epoch or later."""
        original = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if me and killer.epoch == 2:
                sent.append(None)
                if len(sent) == at_call:
                    time.sleep(1.0)  # the others have long come to where they wait
                    die()
            return original(*arguments, **named)

        setattr(owner, name, call)

    if where == "gather":
        dies_in(distributed.RankGroup, "gather", 2)
    elif where == "eval":
        dies_in(evaluation.EvaluationPass, "_look", 2)
    elif where == "issues":
        dies_in(*((finder, "find_label_issues") if victim == 0 else (rendezvous.Session, "get")), 1)
    fresh()
    path = str(folder / "killed.h5")
    epochs = 50 if where in ("epoch", "gather", "eval") else 3
    for n_fits in (1, 2) if where == "start" else (1,):
        if where == "lacks" and me:
            note("death", time=time.time())
            callbacks = [Bell()]
            model_of(Witness(), learning_rate=0.01).fit(Points(N_TRAIN), verbose=0, callbacks=callbacks)
        mode = "eval" if where == "eval" else "train"
        recorder = TrainingDynamicsCallback(path, dtype="float32", mode=mode, resume=n_fits > 1)
        callbacks = [Bell(), killer, recorder]
        if where in ("caught", "after"):
            callbacks = [Bell(), recorder, killer]
        if where in ("issues", "after"):
            callbacks.append(LabelIssuesCallback(path, method="aum", progress=False))
        try:
            model_of(Witness(), learning_rate=0.01).fit(
                Points(N_TRAIN), epochs=epochs, batch_size=4, verbose=0, callbacks=callbacks
            )
        except LookupError:
            if where == "raise":
                raise
        if me and where in ("caught", "after"):
            time.sleep(20)  # this process lives, but arrives at no barrier


if __name__ == "__main__":
    dist.init_parallel_env()
    what = sys.argv[2]
    if what == "all":
        for scenario in SCENARIOS:
            begin = time.monotonic()
            scenario()
            print(f"rank {dist.get_rank()}: {scenario.__name__} {time.monotonic() - begin:.1f} s", flush=True)
    elif what in ("slow_disk", "elastic", "memory"):
        {"slow_disk": slow_disk, "elastic": elastic, "memory": memory}[what]()
    elif what == "paddlenlp":
        from support.nlp import train

        keep("nlp", train(str(folder / "nlp.h5"), record=True))
    else:
        where, victim, silent_seconds = what.split("-")
        rendezvous._SILENT_SECONDS = float(silent_seconds)
        killed(where, int(victim))
    note(f"done-{what}", time=time.time())
