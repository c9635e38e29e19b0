"""For Label Studio: tasks with the given label and, as a prediction, the suggested one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from ..detection.label_issues import LabelIssues
from ..detection.output_files import new_text_file
from .fiftyone import check_paths
from .text import visible


def write_label_studio(
    issues: LabelIssues,
    out: str | os.PathLike[str],
    *,
    paths: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    prefix: str = "/data/local-files/?d=",
    top: int | None = None,
) -> None:
    """Write a JSON list of tasks, the most suspicious first; `labeling_config` is the project's interface for them.

    Args:
        issues: the ranking.
        out: the file; an existing one is replaced once the new one is whole.
        paths: `[sample]` of pictures; None = the sample ids.
        texts: `[sample]`, for texts instead of pictures.
        prefix: put before each path; that of Label Studio's local files, or an address. Paths that are addresses
            stay as they are.
        top: how many; None = the labels that look wrong.

    Raises:
        ValueError: there are neither paths nor texts, or not as many as samples.
    """
    if texts is not None and len(texts) != len(issues):
        raise ValueError(f"got {len(texts)} texts for {len(issues)} samples; give one for each")
    sources = check_paths(issues, paths) if texts is None else texts
    kind = "image" if texts is None else "text"
    tasks = []
    for rank, sample in enumerate(
        issues.ranking[: int(issues.is_label_issue.sum()) if top is None else top].tolist(), 1
    ):
        data = {
            kind: _address(prefix, sources[sample]) if texts is None else sources[sample],
            "sample": sample,
            "rank": rank,
            "noise_score": round(float(issues.noise_score[sample]), 6),
            "given_label": issues.label_name(int(issues.given_label[sample])),
        }
        if issues.sample_ids is not None:
            data["sample_id"] = issues.sample_ids[sample]
        task: dict[str, object] = {"data": data}
        if issues.suggested_label[sample] >= 0:
            suggested = visible(issues.label_name(int(issues.suggested_label[sample])))
            result = {
                "from_name": "label",
                "to_name": kind,
                "type": "choices",
                "value": {"choices": [suggested]},
            }
            score = round(float(issues.suggested_confidence[sample]), 6)
            task["predictions"] = [
                {"model_version": f"paddle-td {issues.method}", "score": score, "result": [result]}
            ]
        tasks.append(task)
    with new_text_file(out) as file:
        json.dump(tasks, file)


def _address(prefix: str, path: str) -> str:
    """Where Label Studio finds a picture; what has a special meaning in an address is quoted, as it does itself."""
    return path if "://" in path else prefix + quote(path, safe="/", errors="surrogatepass")


def labeling_config(issues: LabelIssues, *, kind: str = "image") -> str:
    """The XML of a project's labeling interface for these tasks: the picture or text, the given label, the classes.

    Args:
        issues: the ranking.
        kind: "image" or "text".
    """
    n_classes = max(int(issues.given_label.max(initial=0)), int(issues.suggested_label.max(initial=0))) + 1
    names = issues.class_names or [str(label) for label in range(n_classes)]
    shown = {"image": '<Image name="image" value="$image"/>', "text": '<Text name="text" value="$text"/>'}[
        kind
    ]
    choices = "".join(f'<Choice value="{escape(visible(name))}"/>' for name in names)
    return (
        f'<View>{shown}<Header value="given: $given_label"/>'
        f'<Choices name="label" toName="{kind}" choice="single">{choices}</Choices></View>'
    )
