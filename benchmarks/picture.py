"""The picture at the head of the README: how digits with right and with changed labels are learned.

pip install matplotlib
python -m benchmarks.picture            # writes benchmarks/results/digits.png
"""

import contextlib
import io
import tempfile
from pathlib import Path

import matplotlib

from paddle_td_callback import TrainingDynamicsStore, find_label_issues
from paddle_td_callback.demo import Digits, run

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

RIGHT, WRONG = "#2b6cb0", "#c53030"
OUT = Path(__file__).parent / "results" / "digits.png"


def trajectories(axes, probabilities, is_changed):
    """Fifty samples of each kind, and the medians."""
    rng = np.random.default_rng(0)
    epochs = np.arange(1, probabilities.shape[1] + 1)
    for flag, colour, name in ((False, RIGHT, "label as it was"), (True, WRONG, "label changed")):
        rows = np.flatnonzero(is_changed == flag)
        for row in rng.choice(rows, 50, replace=False):
            axes.plot(epochs, probabilities[row], color=colour, alpha=0.15, linewidth=0.8)
        axes.plot(epochs, np.median(probabilities[rows], axis=0), color=colour, linewidth=2.5, label=name)
    axes.set(
        xlabel="epoch",
        ylabel="probability of the given label",
        xlim=(1, len(epochs)),
        ylim=(0, 1),
        xticks=(1, 5, 10, 15, 20),
    )
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def main():
    """Run the demo, draw."""
    digits = Digits()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run(Path(folder), quiet=True)
        with TrainingDynamicsStore(Path(folder) / "run.h5") as store:
            probabilities = store.given_probabilities()
        issues = find_label_issues(Path(folder) / "run.h5", progress=False)
    figure = plt.figure(figsize=(11, 3.4), dpi=110)
    left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1))
    trajectories(left.subplots(), probabilities, digits.is_changed)
    left.subplots_adjust(bottom=0.16, left=0.12, right=0.96, top=0.9)
    left.suptitle("8x8 digits, a fifth of the labels changed", fontsize=11)
    right.suptitle("Head of the ranking: given label, suggested label", fontsize=11)
    for axes, sample in zip(right.subplots(2, 6).flat, issues.ranking, strict=False):
        axes.imshow(16 - digits.images[sample].reshape(8, 8), cmap="gray")
        axes.set_axis_off()
        axes.set_title(
            f"{issues.given_label[sample]} \N{RIGHTWARDS ARROW} {issues.suggested_label[sample]}",
            fontsize=11,
            color=WRONG if digits.is_changed[sample] else RIGHT,
        )
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT)


if __name__ == "__main__":
    main()
