"""A training loop in PyTorch: three lines record it, and the rest is as everywhere.

    python examples/pytorch_loop.py

Neither recording nor ranking needs Paddle.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import paddle_td_callback
from paddle_td_callback import TrainingDynamicsRecorder, find_label_issues
from paddle_td_callback.export.report import write_report


class WithIndex(torch.utils.data.Dataset):
    """Any map-style data set, with the index of each sample in front."""

    def __init__(self, dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        return index, *self.dataset[index]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--method", default="lstm", help="of ranking")
    options = parser.parse_args()
    torch.manual_seed(0)
    with np.load(Path(paddle_td_callback.__file__).parent / "data" / "digits.npz") as digits:
        images = torch.tensor(digits["images"].reshape(-1, 64) / 16, dtype=torch.float32)
        labels = torch.tensor(digits["labels"].astype(np.int64))
    changed = torch.rand(len(labels)) < 0.1
    labels[changed] = (labels[changed] + torch.randint(1, 10, (int(changed.sum()),))) % 10

    dataset = WithIndex(torch.utils.data.TensorDataset(images, labels))
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True)
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    with TrainingDynamicsRecorder("run.h5", n_samples=len(dataset), n_classes=10, overwrite=True) as recorder:
        for _ in range(options.epochs):
            for indices, inputs, targets in loader:
                logits = network(inputs)
                loss = torch.nn.functional.cross_entropy(logits, targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                recorder.update(indices.numpy(), logits.detach().cpu().numpy(), targets.numpy())
            recorder.end_epoch()

    issues = find_label_issues("run.h5", method=options.method)
    print(issues)
    found = changed.numpy()[issues.ranking[: int(changed.sum())]].mean()
    print(f"of the {int(changed.sum())} most suspicious samples {found:.0%} have a changed label")
    write_report(issues, "run.h5", "report.html", dataset=images.reshape(-1, 8, 8).numpy())
    print("report: report.html")


if __name__ == "__main__":
    main()
