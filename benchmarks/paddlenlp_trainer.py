"""Record a training by PaddleNLP's `Trainer`: a subclass that takes the index out, a callback that ends the epoch.

    pip install paddlenlp==2.8.1        # on Paddle 2.6.2; the README says what else its import wants
    python -m benchmarks.paddlenlp_trainer

Two places are to be added to your `Trainer`: `compute_loss` sees logits, labels and indices of each
step, `on_epoch_end` commits. On several ranks the same lines record into one file.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import paddle
from paddlenlp.trainer import Trainer, TrainerCallback, TrainingArguments

import paddle_td_callback as td

N_SAMPLES, N_WORDS, N_CLASSES, LENGTH = 400, 50, 3, 12


class Texts(paddle.io.Dataset):
    """Token ids of random texts whose words give the class away; every tenth label is wrong."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        classes = rng.integers(0, N_CLASSES, N_SAMPLES)
        self.texts = (
            rng.integers(0, N_WORDS // N_CLASSES, (N_SAMPLES, LENGTH)) * N_CLASSES + classes[:, None]
        ) % N_WORDS
        self.is_wrong = rng.random(N_SAMPLES) < 0.1
        self.labels = np.where(self.is_wrong, (classes + 1) % N_CLASSES, classes)

    def __len__(self) -> int:
        return N_SAMPLES

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.texts[i], "labels": self.labels[i], "index": i}


class Classifier(paddle.nn.Layer):
    """Mean of word vectors, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = paddle.nn.Embedding(N_WORDS, 16)
        self.head = paddle.nn.Linear(16, N_CLASSES)

    def forward(self, input_ids: Any) -> Any:
        """Logits `[row, class]` of token ids `[row, token]`."""
        return self.head(self.words(input_ids).mean(axis=1))


class RecordingTrainer(Trainer):
    """A `Trainer` that tells a recorder what the network said.

    Args:
        recorder: a `TrainingDynamicsRecorder`.
    """

    def __init__(self, recorder: td.TrainingDynamicsRecorder, **options: Any) -> None:
        super().__init__(**options)
        self.recorder = recorder

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        """The loss of a batch, whose logits are recorded while the model trains."""
        inputs = dict(inputs)
        index, labels = inputs.pop("index"), inputs.pop("labels")
        logits = model(**inputs)
        loss = paddle.nn.functional.cross_entropy(logits, labels)
        if model.training:
            self.recorder.update(index, logits.detach(), labels)
        return (loss, logits) if return_outputs else loss


class EndEpoch(TrainerCallback):
    """Commits each epoch.

    Args:
        recorder: a `TrainingDynamicsRecorder`.
    """

    def __init__(self, recorder: td.TrainingDynamicsRecorder) -> None:
        self.recorder = recorder

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Hand the epoch to the disk, beside the training that goes on."""
        self.recorder.end_epoch(
            count_once=True
        )  # on several ranks, the Trainer's sampler pads with duplicates


def main() -> None:
    """Train, then see whether the wrong labels stand first in the ranking."""
    texts = Texts()
    folder = tempfile.mkdtemp()
    paddle.set_device("cpu")
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=6,
        per_device_train_batch_size=16,
        learning_rate=0.02,
        remove_unused_columns=False,
        save_steps=10**6,
        logging_steps=10**6,
        report_to=[],
        disable_tqdm=True,
    )
    path = f"{folder}/run.h5"
    with td.TrainingDynamicsRecorder(path, n_samples=N_SAMPLES, n_classes=N_CLASSES) as recorder:
        trainer = RecordingTrainer(
            recorder, model=Classifier(), args=arguments, train_dataset=texts, callbacks=[EndEpoch(recorder)]
        )
        trainer.train()
    if paddle.distributed.get_rank() > 0:
        return
    issues = td.find_label_issues(path, method="aum", progress=False)
    worst = issues.ranking[: texts.is_wrong.sum()]
    with td.TrainingDynamicsStore(path) as store:
        assert (store.labels == texts.labels).all()
        print(store)
    print(issues)
    print(f"wrong labels among the first {len(worst)} of the ranking: {texts.is_wrong[worst].mean():.0%}")


if __name__ == "__main__":
    main()
