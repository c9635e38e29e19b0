"""Networks and the way they are trained: sensible, too small, too long, too fast and too slow alike."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import nn

from .datasets import Task

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


@dataclass(frozen=True)
class Recipe:
    """One way to train one network.

    Args:
        kind: ``mlp`` or ``cnn``.
        widths: Units of each hidden layer, or channels of each convolution.
        schedule: ``constant``, ``cosine`` or ``step``.
        augment: Images: largest shift in pixels. Tables: scale of noise added each time.
    """

    kind: str
    widths: tuple[int, ...]
    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    schedule: str = "constant"
    weight_decay: float = 0.0
    dropout: float = 0.0
    batch_norm: bool = False
    activation: str = "relu"
    label_smoothing: float = 0.0
    augment: float = 0.0


# what a data set's rows of the table are trained with: (tables and text, images)
REGIMES = {
    "memorise": (
        Recipe("mlp", (256, 256), 60, 64, "adam", 1e-3),
        Recipe("cnn", (12, 24), 40, 64, "adam", 2e-3),
    ),
    "regular": (
        Recipe("mlp", (192,), 30, 128, "adamw", 2e-3, "cosine", 1e-2, 0.3),
        Recipe("cnn", (8, 16), 20, 64, "momentum", 0.05, "cosine", 5e-4, 0.2, True, augment=1),
    ),
    "short": (
        Recipe("mlp", (48,), 12, 64, "momentum", 0.03),
        Recipe("mlp", (64,), 12, 128, "adam", 1e-3, dropout=0.2),
    ),
    "step": (
        Recipe("mlp", (128, 64), 40, 128, "momentum", 0.05, "step", 1e-4, 0.0, True),
        Recipe("cnn", (8, 16), 24, 128, "momentum", 0.03, "step", 1e-4),
    ),
    "large": (
        Recipe("mlp", (256,), 20, 256, "adam", 1e-3),
        Recipe("mlp", (256,), 20, 256, "adam", 1e-3),
    ),
}


def seconds(recipe: Recipe, task: Task) -> float:
    """About how long one core trains it."""
    n = len(task.inputs)
    if recipe.kind == "cnn":
        area, before, work = task.inputs.shape[2] * task.inputs.shape[3], task.inputs.shape[1], 0.0
        for width in recipe.widths:
            work += area * width * (0.012 * before + 0.045 * (2 if recipe.batch_norm else 1))
            area, before = area / 4, width
        per_sample = work * 0.5e-6
    else:
        sizes = (int(np.prod(task.inputs.shape[1:])), *recipe.widths, task.n_classes)
        per_sample = 6 * sum(a * b for a, b in itertools.pairwise(sizes)) / 1.5e10
    return (
        recipe.epochs * n * (per_sample + 4e-6 + 1.3e-3 / recipe.batch_size + (8e-6 if recipe.augment else 0))
    )


def random_recipe(task: Task, rng: np.random.Generator, budget: float = 3.0) -> Recipe:
    """Any way of training that takes about `budget` seconds at most."""

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    cnn = task.is_image and rng.random() < 0.6
    if cnn:
        widths = tuple(int(between(6, 20)) * (k + 1) for k in range(int(rng.integers(1, 4))))
    else:
        depth = int(rng.choice([0, 1, 1, 1, 2, 2, 3]))
        widths = tuple(int(between(24, 400)) for _ in range(depth))
    optimizer = str(rng.choice(["adam", "adamw", "momentum", "momentum", "sgd"]))
    low, high = {"adam": (7e-4, 5e-3), "adamw": (7e-4, 5e-3), "momentum": (1e-2, 0.1), "sgd": (5e-2, 0.5)}[
        optimizer
    ]
    wild = 1.0 if rng.random() < 0.8 else float(rng.choice([0.2, 4.0]))
    recipe = {
        "kind": "cnn" if cnn else "mlp",
        "widths": widths,
        "epochs": round(between(10, 100)),
        "batch_size": int(rng.choice([16, 32, 64, 64, 128, 128, 256])),
        "optimizer": optimizer,
        "learning_rate": wild * between(low, high),
        "schedule": str(rng.choice(["constant", "cosine", "cosine", "step"])),
        "weight_decay": between(1e-5, 3e-2 if optimizer == "adamw" else 2e-3) if rng.random() < 0.5 else 0.0,
        "dropout": float(rng.uniform(0.1, 0.5)) if rng.random() < 0.35 else 0.0,
        "batch_norm": bool(rng.random() < 0.35),
        "activation": str(rng.choice(["relu", "relu", "relu", "gelu", "tanh"])),
        "label_smoothing": 0.1 if rng.random() < 0.08 else 0.0,
        "augment": (1.0 if task.is_image else float(rng.uniform(0.1, 0.6))) if rng.random() < 0.3 else 0.0,
    }
    n_samples = len(task.inputs)
    while n_samples * recipe["epochs"] < 400 * recipe["batch_size"] and recipe["batch_size"] > 16:
        recipe["batch_size"] //= 2  # a training of a few dozen steps learns nothing
    while seconds(Recipe(**recipe), task) > budget:
        if recipe["batch_size"] < 32:
            recipe["batch_size"] *= 2
        elif recipe["epochs"] > 12:
            recipe["epochs"] = int(recipe["epochs"] * 0.8)
        elif cnn and max(recipe["widths"]) > 8:
            recipe["widths"] = tuple(max(6, int(width * 0.8)) for width in recipe["widths"])
        elif recipe["batch_size"] < 128:
            recipe["batch_size"] *= 2
        else:
            break
    return Recipe(**recipe)


def build(recipe: Recipe, task: Task) -> nn.Layer:
    """The network, from logits' width to the shape of the inputs as the task says."""
    layers: list[nn.Layer] = []
    activation = ACTIVATIONS[recipe.activation]
    if recipe.kind == "cnn":
        channels, side = task.inputs.shape[1], task.inputs.shape[2]
        for width in recipe.widths:
            layers.append(nn.Conv2D(channels, width, 3, padding=1))
            if recipe.batch_norm:
                layers.append(nn.BatchNorm2D(width))
            layers.append(activation())
            channels = width
            if side >= 4:
                layers.append(nn.MaxPool2D(2, 2))
                side //= 2
        layers.append(nn.Flatten())
        n_features = channels * side * side
    else:
        layers.append(nn.Flatten())
        n_features = int(np.prod(task.inputs.shape[1:]))
        for width in recipe.widths:
            layers.append(nn.Linear(n_features, width))
            if recipe.batch_norm:
                layers.append(nn.BatchNorm1D(width))
            layers.append(activation())
            if recipe.dropout:
                layers.append(nn.Dropout(recipe.dropout))
            n_features = width
    if recipe.dropout:
        layers.append(nn.Dropout(recipe.dropout))
    layers.append(nn.Linear(n_features, task.n_classes))
    return nn.Sequential(*layers)


class SmoothedLoss(nn.Layer):
    """Cross entropy against labels that leave a little to every class."""

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits: Any, labels: Any) -> Any:
        """The mean loss of a batch."""
        said = nn.functional.log_softmax(logits)
        right = paddle.take_along_axis(said, labels.reshape([-1, 1]), 1).mean()
        return -(1 - self.smoothing) * right - self.smoothing * said.mean()


class Samples(paddle.io.Dataset):
    """Inputs and given labels, shifted or jittered a little at each look where the recipe says so."""

    def __init__(self, inputs: np.ndarray, labels: np.ndarray, augment: float, seed: int) -> None:
        super().__init__()
        self.inputs, self.labels, self.augment = inputs, labels, augment
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        x = self.inputs[index]
        if self.augment and x.ndim == 3:
            reach = int(self.augment)
            x = np.roll(x, self.rng.integers(-reach, reach + 1, 2), (1, 2))
        elif self.augment:
            x = x + np.float32(self.augment) * self.rng.standard_normal(x.shape, np.float32)
        return x, self.labels[index]


def prepare(recipe: Recipe, task: Task, n_samples: int) -> paddle.Model:
    """The network with its optimizer and loss, ready for `fit`."""
    network = build(recipe, task)
    steps = recipe.epochs * -(-n_samples // recipe.batch_size)
    rate: Any = recipe.learning_rate
    if recipe.schedule == "cosine":
        rate = paddle.optimizer.lr.CosineAnnealingDecay(rate, steps)
    elif recipe.schedule == "step":
        rate = paddle.optimizer.lr.MultiStepDecay(rate, [int(steps * 0.5), int(steps * 0.75)], 0.1)
    common = {
        "learning_rate": rate,
        "parameters": network.parameters(),
        "weight_decay": recipe.weight_decay or None,
    }
    if recipe.optimizer == "momentum":
        optimizer = paddle.optimizer.Momentum(momentum=0.9, **common)
    elif recipe.optimizer == "sgd":
        optimizer = paddle.optimizer.SGD(**common)
    elif recipe.optimizer == "adam":
        optimizer = paddle.optimizer.Adam(**common)
    else:
        common["weight_decay"] = recipe.weight_decay
        optimizer = paddle.optimizer.AdamW(**common)
    model = paddle.Model(network)
    model.prepare(
        optimizer, SmoothedLoss(recipe.label_smoothing) if recipe.label_smoothing else nn.CrossEntropyLoss()
    )
    return model
