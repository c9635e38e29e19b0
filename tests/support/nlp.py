"""A training by PaddleNLP's `Trainer`, recorded as `benchmarks/paddlenlp_trainer.py` shows."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import paddle
import paddle.nn.functional as F
from paddlenlp.trainer import Trainer, TrainerCallback, TrainingArguments
from support.training import N_CLASSES, Points, Witness, seed_all

from paddle_td_callback import TrainingDynamicsRecorder

N_TEXTS = 37  # divides by neither ranks nor batches


class Texts(Points):
    """Batches are dictionaries, with the sample index."""

    def __getitem__(self, i: int) -> Any:
        x, label = super().__getitem__(i)
        return {"x": x, "labels": label, "index": i}


class RecordingTrainer(Trainer):
    """Records what the model says in training."""

    recorder: TrainingDynamicsRecorder | None = None

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        index, labels = inputs["index"], inputs["labels"]
        logits = model(inputs["x"])
        if self.recorder is not None and model.training:
            self.recorder.update(index, logits.detach(), labels, probabilities=F.softmax(logits.detach()))
        loss = F.cross_entropy(logits, labels)
        return (loss, logits) if return_outputs else loss


class EndEpoch(TrainerCallback):
    """Rings the witness's bell, and commits."""

    def __init__(self, witness: Witness, recorder: TrainingDynamicsRecorder | None) -> None:
        self.witness, self.recorder = witness, recorder

    def on_epoch_begin(self, *arguments: Any, **more: Any) -> None:
        self.witness.epochs.append([])

    def on_epoch_end(self, *arguments: Any, **more: Any) -> None:
        if self.recorder is not None:
            self.recorder.end_epoch(count_once=True)


def train(path: str, *, record: bool) -> Witness:
    """Three epochs; the network comes back with what it logged."""
    seed_all(1)
    paddle.set_device("cpu")
    witness = Witness(dropout=0.2, exact=False)
    witness.listening = True
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=3,
        per_device_train_batch_size=8,
        learning_rate=0.02,
        remove_unused_columns=False,
        save_steps=10**6,
        logging_steps=10**6,
        report_to=[],
        disable_tqdm=True,
    )
    with contextlib.ExitStack() as stack:
        recorder = None
        if record:
            recorder = stack.enter_context(
                TrainingDynamicsRecorder(path, n_samples=N_TEXTS, n_classes=N_CLASSES, dtype="float32")
            )
        trainer = RecordingTrainer(
            model=witness,
            args=arguments,
            train_dataset=Texts(N_TEXTS),
            callbacks=[EndEpoch(witness, recorder)],
        )
        trainer.recorder = recorder
        trainer.train()
    return witness
