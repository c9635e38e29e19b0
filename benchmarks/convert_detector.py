"""Rewrite a detector of the earlier HDF5 format in the checked one: names change, numbers do not.

    python -m benchmarks.convert_detector old/noise_detector.h5 paddle_td_callback/data/noise_detector.weights

It made the shipped file once, and is kept to show that not one number was touched.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from paddle_td_callback.detection.lstm import weights_file

ARRAYS = {
    "summary_mean": "features_mean",
    "summary_scale": "features_scale",
    "mix_weight": "mix_weight_0",
    "mix_bias": "mix_bias_0",
}
PROVENANCE = {"noise_rate_error_by_doubt": "noise_rate_error_by_uncertainty"}


def converted(group: h5py.Group) -> list[weights_file.Stage]:
    """The stages of a file, the last one first."""
    old = group.attrs
    about: dict[str, Any] = {
        "config": {
            "channels": json.loads(old["channels"]),
            "n_steps": int(old["n_steps"]) or None,
            "hidden_size": int(old["hidden_size"]),
            "n_layers": int(old["n_layers"]),
            "n_members": int(old["n_members"]),
            "dataset_features": json.loads(old["evidence"]),
            "mix_sizes": json.loads(old["mix_sizes"]),
        },
        "temperature": float(old["temperature"]),
        "bias": float(old["bias"]),
        "provenance": {PROVENANCE.get(k, k): value for k, value in json.loads(old["provenance"]).items()},
        "package_version": str(old["package_version"]),
        "paddle_version": str(old["paddle_version"]),
    }
    members = []
    for number in range(about["config"]["n_members"]):
        stored = group[f"members/{number}"]
        members.append(
            {ARRAYS.get(name, name): np.asarray(array, np.float32) for name, array in stored.items()}
        )
    stage = weights_file.Stage(about, members)
    return [stage, *(converted(group["first"]) if "first" in group else [])]


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    arguments = parser.parse_args()
    with h5py.File(arguments.old) as file:
        weights_file.write(arguments.new, converted(file))


if __name__ == "__main__":
    main()
