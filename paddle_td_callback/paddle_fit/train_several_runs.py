"""train_several_runs: the same network trained several times, each run short, fresh and recorded."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import paddle

from ..detection.learning_clock import FITTED, LearningClock
from ..messages import show, warn
from ..recording.open_recorders import wait_for_commits
from ..store import TrainingDynamicsStore
from ..store.paths import absolute, check_path
from .evaluation_pass import random_streams_kept
from .fit_file import is_finished
from .guard import guarded
from .ranks import current_ranks
from .recording_callback import TrainingDynamicsCallback


def train_several_runs(
    make_model: Callable[[], paddle.Model],
    data: Any,
    path: str | os.PathLike[str],
    *,
    n_runs: int = 5,
    epochs: int = 30,
    fitted: float = FITTED,
    seed: int = 0,
    recording: Mapping[str, Any] | None = None,
    **fit_arguments: Any,
) -> list[str]:
    """Train a network several times until the given labels are fitted, and record every run.

    Several short trainings rank better than a long one where a network memorises wrong labels: each of them stops
    before that, and what one of them learned by chance the others did not. Pass the list to `find_label_issues`, which
    averages the runs. Where the network never fits the labels, every run takes all its epochs, and there is little to
    gain.

    Run `k` (from 0) draws its weights, order and dropout from `seed + k`, so the same call on the same machine records
    the same bits. Every random stream of the process is put back afterwards.

    Example:
        ::

            paths = train_several_runs(make_model, train_data, "run.h5", epochs=30, batch_size=128)
            issues = find_label_issues(paths)

    Args:
        make_model: makes a prepared `paddle.Model` with fresh weights; it is called once for each run.
        data: as the first argument of `paddle.Model.fit`.
        path: the files are named after it: `run.h5` makes `run-1.h5`, `run-2.h5`, ... Earlier recordings there are
            kept under the next free name, and a warning says so.
        n_runs: how many, at least 1.
        epochs: of each run at most.
        fitted: a run ends after the epoch in which this share of the given labels was predicted; 1 = all of them.
        seed: of the first run.
        recording: further arguments of `TrainingDynamicsCallback`, such as `{"keep": "given", "overwrite": True}`.
        fit_arguments: further arguments of `paddle.Model.fit`. Callbacks among them are in every run.

    Returns:
        The paths of the recordings, in order.

    Raises:
        ValueError: an argument out of range, a network that came a second time, or several ranks.
        StoreError: a path that cannot be written; before the first run.
    """
    if n_runs < 1:
        raise ValueError(f"n_runs must be at least 1, got {n_runs}")
    if not 0 < fitted <= 1:
        raise ValueError(f"fitted must be a share above 0 and at most 1, got {fitted}")
    if current_ranks() is not None:
        raise ValueError(
            "train_several_runs works in one process, and here are several ranks; call fit once for each run, with a "
            "TrainingDynamicsCallback of its own, and pass the paths to find_label_issues"
        )
    options = dict(recording or {})
    stem, ending = os.path.splitext(absolute(path))
    paths = [f"{stem}-{run}{ending or '.h5'}" for run in range(1, n_runs + 1)]
    for one in paths:
        check_path(one, overwrite=options.get("overwrite", False) or is_finished(one))
    callbacks = fit_arguments.pop("callbacks", None) or []
    callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    networks: list[Any] = []
    for run, one in enumerate(paths):
        with random_streams_kept():
            paddle.seed(seed + run)
            np.random.seed((seed + run) % 2**32)  # noqa: NPY002  Paddle's samplers shuffle by it
            random.seed(seed + run)
            model = make_model()
            if any(model.network is network for network in networks):
                raise ValueError(
                    f"make_model returned the network of an earlier run again as run {run + 1}; give a make_model that "
                    "builds a new one at each call, so that every run starts from fresh weights"
                )
            networks.append(model.network)
            if fit_arguments.get("verbose", 2):
                show(f"run {run + 1} of {n_runs}: seed {seed + run}, '{one}'")
            own = [TrainingDynamicsCallback(one, **options), _StopWhenFitted(one, fitted)]
            model.fit(data, epochs=epochs, callbacks=[*callbacks, *own], **fit_arguments)
    return paths


class _StopWhenFitted(paddle.callbacks.Callback):  # type: ignore[misc]
    """Ends a training after the epoch in which a share of the given labels was predicted, as its recording says.

    Args:
        path: of the recording.
        share: of the given labels.
    """

    def __init__(self, path: str, share: float) -> None:
        super().__init__()
        self._path, self._share = path, share

    def _judge(self, error: Exception, hook: str) -> None:
        warn(
            f"'{self._path}': {error}; this run is trained for all its epochs, see `paddle-td verify`",
            stacklevel=3,
        )

    @guarded
    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """See what the recording says of the epoch."""
        wait_for_commits(self._path)
        with TrainingDynamicsStore(self._path) as store:
            fitted = LearningClock.of(store).fitted
        if len(fitted) and fitted[-1] >= self._share:
            self.model.stop_training = True
