"""Images in folders, one folder a class: train with augmentation, then look at the suspects in a page.

    python examples/images_in_folders.py FOLDER     # FOLDER/cat/1.jpg, FOLDER/dog/7.png, ...
    python examples/images_in_folders.py            # makes a folder of 8x8 digits with a tenth of the labels wrong

Afterwards open report.html, mark suspects (w = wrong, r = right), export the marks, and run
`paddle-td review marks.csv run.h5 --corrected labels.csv`.
"""

import argparse
from pathlib import Path

import numpy as np
import paddle
from paddle.vision import transforms

from paddle_td_callback import LabelIssuesCallback, TrainingDynamicsCallback
from paddle_td_callback.demo import Digits
from paddle_td_callback.export.report import write_report
from paddle_td_callback.export.thumbnails import png


def make_folder(folder: Path) -> Path:
    """The digits that come with the package, as files."""
    digits = Digits(noise_rate=0.1)
    for index, (pixels, label) in enumerate(zip(digits.images, digits.labels, strict=True)):
        path = folder / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png((pixels.reshape(8, 8) * 255).astype(np.uint8)))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help="images, one folder a class")
    parser.add_argument("--size", type=int, default=32, help="pixels a side (224 for photographs)")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    folder = options.folder or make_folder(Path("digits"))

    augmentation = transforms.Compose(
        [
            transforms.Resize((options.size, options.size)),
            transforms.RandomRotation(10),
            transforms.ColorJitter(brightness=0.2),
            transforms.ToTensor(),
        ]
    )
    train_data = paddle.vision.datasets.DatasetFolder(
        str(folder), transform=lambda picture: augmentation(picture.convert("RGB"))
    )
    model = paddle.Model(paddle.vision.models.resnet18(num_classes=len(train_data.classes)))
    model.prepare(
        paddle.optimizer.Adam(1e-3, parameters=model.parameters()),
        paddle.nn.CrossEntropyLoss(),
        paddle.metric.Accuracy(),
    )
    recorder = TrainingDynamicsCallback(
        "run.h5",
        class_names=train_data.classes,
        sample_ids=[str(Path(path).relative_to(folder)) for path, _ in train_data.samples],
        overwrite=True,  # of what an earlier run of this example left
    )
    finder = LabelIssuesCallback("run.h5", csv="issues.csv")
    model.fit(train_data, epochs=options.epochs, batch_size=64, callbacks=[recorder, finder])

    # The page shows the files themselves, without the augmentation.
    write_report(finder.issues, "run.h5", "report.html", dataset=train_data)
    print("report: report.html")


if __name__ == "__main__":
    main()
