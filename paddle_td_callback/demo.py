"""paddle-td demo: from a plain `Model.fit` on real data to a ranking that is compared with the truth."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from .detection.find_issues import find_label_issues
from .detection.label_issues import LabelIssues
from .paddle_fit.issues_callback import LabelIssuesCallback
from .paddle_fit.recording_callback import TrainingDynamicsCallback
from .store.paths import check_path, set_aside

NOISE_RATE = 0.2
N_EPOCHS = 20
_DIGITS = Path(__file__).parent / "data" / "digits.npz"


class Digits(paddle.io.Dataset):  # type: ignore[misc]
    """1,797 handwritten digits of 8x8 pixels (Alpaydin and Kaynak, UCI, CC BY 4.0); some labels are changed.

    Args:
        noise_rate: fraction of the labels that are changed to another class, chosen uniformly.
        seed: of the random choice.
    """

    def __init__(self, noise_rate: float = NOISE_RATE, seed: int = 0) -> None:
        super().__init__()
        with np.load(_DIGITS, allow_pickle=False) as arrays:
            self.images = (arrays["images"].reshape(-1, 64) / 16).astype(np.float32)
            self.true_labels = arrays["labels"].astype(np.int64)
        rng = np.random.default_rng(seed)
        self.is_changed = np.zeros(len(self.true_labels), bool)
        changed = rng.permutation(len(self.true_labels))[: round(noise_rate * len(self.true_labels))]
        self.is_changed[changed] = True
        self.labels = self.true_labels.copy()
        self.labels[changed] = (self.labels[changed] + rng.integers(1, 10, len(changed))) % 10

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.float32], np.int64]:
        """An image, `[64]` float32 in [0, 1], and its label, which may have been changed."""
        return self.images[index], self.labels[index]


def train(dataset: Digits, callbacks: list[Any], *, verbose: int = 1) -> None:
    """Train as any script does; only the callbacks are of this package."""
    paddle.seed(0)
    np.random.seed(0)  # noqa: NPY002  Paddle's samplers shuffle by it
    network = paddle.nn.Sequential(paddle.nn.Linear(64, 128), paddle.nn.ReLU(), paddle.nn.Linear(128, 10))
    model = paddle.Model(network)
    model.prepare(
        paddle.optimizer.Adam(1e-3, parameters=network.parameters()),
        paddle.nn.CrossEntropyLoss(),
        paddle.metric.Accuracy(),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "To copy construct from a tensor")  # of Paddle's own `train_batch`
        model.fit(dataset, epochs=N_EPOCHS, batch_size=64, verbose=verbose, callbacks=callbacks)


def run(folder: Path, *, overwrite: bool = False, quiet: bool = False) -> dict[str, dict[str, float]]:
    """Train, record, rank, and print how well the ranking finds the changed labels.

    Args:
        folder: where `run.h5`, `issues.csv` and `report.html` are written.
        overwrite: replace them if they exist; else those of an earlier demo get another name.
        quiet: no progress bars.

    Returns:
        For "lstm" and "aum" the ROC AUC, average precision and precision at the noise rate.

    Raises:
        StoreError: the folder cannot be written.
    """
    recording, table, page = folder / "run.h5", folder / "issues.csv", folder / "report.html"
    dataset = Digits()
    print(
        f"{len(dataset)} handwritten digits, {dataset.is_changed.sum()} labels changed; "
        f"training a small network for {N_EPOCHS} epochs"
    )
    for path in (recording, table, page):
        check_path(path, overwrite=True)
        if not overwrite and path.exists():
            print(f"'{path}' exists already and is kept as '{set_aside(path)}'; --overwrite replaces it")
    finder = LabelIssuesCallback(recording, csv=table, progress=not quiet)
    callbacks = [TrainingDynamicsCallback(recording, overwrite=overwrite), finder]
    train(dataset, callbacks, verbose=0 if quiet else 1)
    issues = finder.issues
    if issues is None:  # its warning said why; try again to raise that error
        issues = find_label_issues(recording, progress=False)
    if quiet:
        print(issues)
    by_aum = find_label_issues(recording, method="aum", progress=False)
    results = {"lstm": evaluate(issues, dataset.is_changed), "aum": evaluate(by_aum, dataset.is_changed)}
    print("\nHow well the ranking finds the changed labels (the detector has not seen this data set):\n")
    print(f"{'':8}{'ROC AUC':>10}{'average precision':>20}{'precision at ' + format(NOISE_RATE, '.0%'):>20}")
    for method, row in results.items():
        print(
            f"{method:8}{row['roc_auc']:>10.4f}{row['average_precision']:>20.4f}"
            f"{row['precision_at_noise_rate']:>20.4f}"
        )
    found = dataset.is_changed & issues.is_label_issue
    right = (issues.suggested_label == dataset.true_labels)[found].mean() if found.any() else float("nan")
    print(
        f"\n{found.sum()} of the changed labels are flagged; for {right:.1%} of them the true label is suggested"
    )
    issues.report(recording, page, dataset=dataset, thumbnail=lambda item: item[0].reshape(8, 8))
    print(f"\nrecording: {recording}\nranking:   {table}\nreport:    {page}, to open in a browser")
    print(f"next:      paddle-td info {recording}")
    return results


def evaluate(issues: LabelIssues, is_mislabeled: npt.NDArray[np.bool_]) -> dict[str, float]:
    """ROC AUC, average precision and precision at the true noise rate; mislabeled samples are the positives.

    Args:
        issues: a result in which every sample has a score.
        is_mislabeled: `[sample]` bool, whether the label was changed.
    """
    positive = is_mislabeled[issues.ranking]
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    hits = np.cumsum(positive)
    precision = hits / np.arange(1, len(positive) + 1)
    # AUC is the share of (positive, negative) pairs in which the positive is ranked higher.
    return {
        "roc_auc": float(hits[~positive].sum() / (n_positive * n_negative)),
        "average_precision": float(precision[positive].mean()),
        "precision_at_noise_rate": float(precision[n_positive - 1]),
    }
