"""Texts of different lengths: a collate function that pads, and a page that shows the texts.

    python examples/texts.py

The texts are the sentences in the documentation of some of Python's modules; the label is the module. A tenth of the
labels is changed, and the ranking should find them.
"""

import argparse
import importlib
import inspect
import re

import numpy as np
import paddle

from paddle_td_callback import LabelIssuesCallback, TrainingDynamicsCallback
from paddle_td_callback.demo import evaluate
from paddle_td_callback.export.report import write_report

MODULES = (
    "argparse",
    "decimal",
    "email.message",
    "ipaddress",
    "logging",
    "subprocess",
    "tarfile",
    "unittest.case",
)
MAX_WORDS = 40


def sentences(module: str) -> list[str]:
    """What the documentation strings of a module say, sentence by sentence."""
    texts = set()
    for _, thing in inspect.getmembers(importlib.import_module(module)):
        members = (
            [thing, *(member for _, member in inspect.getmembers(thing))]
            if inspect.isclass(thing)
            else [thing]
        )
        for member in members:
            document = inspect.getdoc(member) if callable(member) else None
            texts |= {" ".join(one.split()) for one in re.split(r"(?<=[.:])\s+|\n\n", document or "")}
    return sorted(text for text in texts if 5 <= len(text.split()) <= MAX_WORDS)


class Sentences(paddle.io.Dataset):
    """Each item: the numbers of a sentence's words, and the label."""

    def __init__(self, noise_rate: float = 0.1) -> None:
        found = [(text, label) for label, module in enumerate(MODULES) for text in sentences(module)]
        self.texts = [text for text, _ in found]
        true = np.array([label for _, label in found])
        rng = np.random.default_rng(0)
        self.is_changed = rng.random(len(true)) < noise_rate
        self.labels = np.where(
            self.is_changed, (true + rng.integers(1, len(MODULES), len(true))) % len(MODULES), true
        )
        vocabulary: dict[str, int] = {}
        self.words = [
            [vocabulary.setdefault(word, len(vocabulary) + 1) for word in re.findall(r"\w+", text.lower())]
            for text in self.texts
        ]
        self.n_words = len(vocabulary) + 1

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int):
        return self.words[index], self.labels[index]


def pad(batch):
    """A collate function may pad; it must keep the order of the rows."""
    longest = max(len(words) for words, _ in batch)
    padded = np.array([[*words, *[0] * (longest - len(words))] for words, _ in batch], np.int64)
    return padded, np.array([label for _, label in batch], np.int64)


class MeanOfWords(paddle.nn.Layer):
    def __init__(self, n_words: int, n_classes: int) -> None:
        super().__init__()
        self.embedding = paddle.nn.Embedding(n_words, 64, padding_idx=0)
        self.output = paddle.nn.Linear(64, n_classes)

    def forward(self, words):
        n = (words > 0).astype("float32").sum(axis=1, keepdim=True).clip(min=1)
        return self.output(self.embedding(words).sum(axis=1) / n)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=6)  # later the wrong labels are learned by heart
    options = parser.parse_args()
    paddle.seed(0)
    train_data = Sentences()
    model = paddle.Model(MeanOfWords(train_data.n_words, len(MODULES)))
    model.prepare(paddle.optimizer.Adam(3e-3, parameters=model.parameters()), paddle.nn.CrossEntropyLoss())
    loader = paddle.io.DataLoader(train_data, batch_size=32, shuffle=True, collate_fn=pad)
    recorder = TrainingDynamicsCallback("run.h5", class_names=MODULES, overwrite=True)
    finder = LabelIssuesCallback("run.h5", csv="issues.csv")
    model.fit(loader, epochs=options.epochs, callbacks=[recorder, finder], verbose=0)

    print(finder.issues)
    print("average precision:", round(evaluate(finder.issues, train_data.is_changed)["average_precision"], 3))
    write_report(finder.issues, "run.h5", "report.html", dataset=train_data.texts)
    print("report: report.html")


if __name__ == "__main__":
    main()
