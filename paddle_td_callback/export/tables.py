"""The ranking as Parquet; as CSV it is `LabelIssues.to_csv`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..detection.label_issues import LabelIssues
from ..detection.output_files import new_file


def write_parquet(issues: LabelIssues, out: str | os.PathLike[str]) -> None:
    """Write all samples, the most suspicious first and never-seen ones last.

    Columns and order are those of `LabelIssues.to_csv`, in their own types; `rank`, `noise_score` and `label_quality`
    are null for samples that were never seen.

    Args:
        issues: the ranking.
        out: the file; an existing one is replaced once the new one is whole.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"Parquet needs pyarrow ({error}): pip install pyarrow") from error
    n_ranked = len(issues.ranking)
    order = np.concatenate([issues.ranking, issues.unscored])
    unscored = np.arange(len(order)) >= n_ranked
    columns: dict[str, Any] = {"sample": pa.array(order)}
    if issues.sample_ids is not None:
        columns["sample_id"] = pa.array(
            [_unicode(issues.sample_ids[sample]) for sample in order], pa.string()
        )
    columns |= {
        "rank": pa.array(np.arange(1, len(order) + 1), mask=unscored),
        "noise_score": pa.array(issues.noise_score[order], mask=unscored),
        "label_quality": pa.array(issues.label_quality[order], mask=unscored),
    }
    for name in ("is_label_issue", "given_label", "suggested_label", "suggested_confidence", "n_epochs_seen"):
        columns[name] = pa.array(getattr(issues, name)[order])
    if issues.class_names is not None:
        for kind in ("given", "suggested"):
            labels = getattr(issues, f"{kind}_label")[order]
            columns[f"{kind}_name"] = pa.array(
                [_unicode(issues.label_name(int(one))) for one in labels], pa.string()
            )
    with new_file(out) as file:
        pq.write_table(pa.table(columns), file)


def _unicode(text: str) -> str:
    return str(text).encode("utf-8", "backslashreplace").decode()
