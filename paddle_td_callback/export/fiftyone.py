"""For FiftyOne: a labels file of its `FiftyOneImageClassificationDataset` format."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from ..detection.label_issues import LabelIssues
from ..detection.output_files import new_text_file


def write_fiftyone(
    issues: LabelIssues, out: str | os.PathLike[str], *, paths: Sequence[str] | None = None
) -> None:
    """Write `labels.json` for `fiftyone.types.FiftyOneImageClassificationDataset`.

    The given label is the classification, its confidence the label quality; attributes are `sample`, `rank`,
    `noise_score`, `is_label_issue`, `suggested_label` and `suggested_confidence`. Read it by::

        fiftyone.Dataset.from_dir(
            dataset_type=fiftyone.types.FiftyOneImageClassificationDataset,
            data_path="FOLDER OF THE PICTURES", labels_path="labels.json",
        )

    Args:
        issues: the ranking; samples that were never seen are left out.
        out: the file; an existing one is replaced once the new one is whole.
        paths: `[sample]` of the pictures, relative to their folder; None = the sample ids.

    Raises:
        ValueError: there are no paths, or two are the same but for their ending, by which FiftyOne knows pictures.
    """
    paths = check_paths(issues, paths)
    names = issues.class_names
    n_classes = max(int(issues.given_label.max(initial=0)), int(issues.suggested_label.max(initial=0))) + 1
    labels = {}
    for rank, sample in enumerate(issues.ranking.tolist(), start=1):
        key = os.path.splitext(paths[sample])[0]
        if key in labels:
            raise ValueError(
                f"two samples are pictures named {key!r}; FiftyOne tells pictures apart by this name; rename one"
            )
        labels[key] = {
            "label": issues.label_name(int(issues.given_label[sample])),
            "confidence": round(float(issues.label_quality[sample]), 6),
            "attributes": {
                "sample": sample,
                "rank": rank,
                "noise_score": round(float(issues.noise_score[sample]), 6),
                "is_label_issue": bool(issues.is_label_issue[sample]),
                "suggested_label": issues.label_name(int(issues.suggested_label[sample])),
                "suggested_confidence": round(float(issues.suggested_confidence[sample]), 6),
            },
        }
    classes = list(names) if names is not None else [str(label) for label in range(n_classes)]
    with new_text_file(out) as file:
        json.dump({"classes": classes, "labels": labels}, file)


def check_paths(issues: LabelIssues, paths: Sequence[str] | None) -> Sequence[str]:
    """One path a sample.

    Raises:
        ValueError: there are none, or not as many as samples.
    """
    if paths is None:
        paths = issues.sample_ids
    if paths is None:
        raise ValueError(
            "the recording has no sample ids, so the files of the samples are not known; pass the ids of the samples, "
            "which are the paths of their files, as sample_ids"
        )
    if len(paths) != len(issues):
        raise ValueError(f"got {len(paths)} paths for {len(issues)} samples; give one for each")
    return paths
