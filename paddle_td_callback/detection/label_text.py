"""Label issues as text for a terminal and as a table for a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..messages import escape
from .scores import rule_of

if TYPE_CHECKING:
    from .label_issues import LabelIssues

NAME_WIDTH = 12  # of a class name in the table
ID_WIDTH = 60


def summary(issues: LabelIssues) -> list[str]:
    """What holds for all samples, a line each."""
    n_unscored = len(issues.unscored) - issues.n_planted
    lines = [
        f"LabelIssues by {issues.method}: {int(issues.is_label_issue.sum())} of {len(issues)} labels look wrong"
        + (f"; {n_unscored} samples were never seen and are not scored" if n_unscored else "")
    ]
    if issues.noise_rate is not None:
        lines.append(f"estimated share of wrong labels: {_rate(issues)}")
    lines += issues.notes
    if issues.n_planted:
        lines.append(f"{issues.n_planted} labels were moved on purpose; their samples are not scored")
    if issues.stability is not None:
        lines.append(f"rank correlation between runs: {issues.stability:.3f}")
    lines.append(f"a label looks wrong where {rule_of(issues.method)}")
    if issues.n_epochs is not None:
        runs = f" of {issues.n_runs} runs" if issues.n_runs > 1 else ""
        goes_on = "; the training is not over, so more may come" if issues.is_recording else ""
        epochs = f"{_count(issues.n_epochs)}{runs}"
        if issues.n_epochs_read is not None and issues.n_epochs_read < issues.n_epochs:
            epochs = f"{issues.n_epochs_read} of {epochs}: by then nearly all given labels were predicted"
        lines.append(f"rests on {epochs}{goes_on}")
    return lines


def as_line(issues: LabelIssues, n: int) -> str:
    """What holds so far in one line, with the first `n` of the ranking, escaped."""
    found = f"{int(issues.is_label_issue.sum()):,} of {len(issues):,} labels look wrong"
    if issues.noise_rate is not None:
        found = f"{_rate(issues)} of the labels estimated to be wrong, {found}"
    head = "; ".join(
        escape(issues.describe(sample), limit=ID_WIDTH) for sample in issues.ranking[:n].tolist()
    )
    return f"label issues after {_count(issues.n_epochs or 0)}: {found}; first {head}"


def _rate(issues: LabelIssues) -> str:
    interval = ""
    if issues.noise_rate_interval is not None:
        low, high = issues.noise_rate_interval
        interval = f" ({low:.1%} to {high:.1%})"
    return f"{issues.noise_rate:.1%}{interval}"


def _count(n_epochs: int) -> str:
    return f"{n_epochs} epoch{'s' if n_epochs != 1 else ''}"


def rows(issues: LabelIssues, n: int) -> list[list[str]]:
    """The head of the ranking: rank, sample, given, suggested, score, and the id where there are ids."""
    made = []
    for rank, sample in enumerate(issues.ranking[:n], start=1):
        names = [
            issues.label_name(int(labels[sample])) for labels in (issues.given_label, issues.suggested_label)
        ]
        row = [str(rank), str(sample), *names, f"{issues.noise_score[sample]:.4f}"]
        made.append(row if issues.sample_ids is None else [*row, issues.sample_ids[sample]])
    return made


def as_text(issues: LabelIssues, n: int) -> str:
    """The summary and the first `n` of the ranking, escaped."""
    lines = [
        *summary(issues),
        f"{'rank':>6} {'sample':>9} {'given':>12} {'suggested':>12} {'noise_score':>12}",
    ]
    for rank, sample, given, suggested, score, *ids in rows(issues, n):
        names = " ".join(f"{escape(name, limit=NAME_WIDTH):>12}" for name in (given, suggested))
        shown = "".join(f"  {escape(one, limit=ID_WIDTH)}" for one in ids)
        lines.append(f"{rank:>6} {sample:>9} {names} {score:>12}{shown}")
    n_more = len(issues.ranking) - n
    if n_more > 0:
        lines.append(f"   ... {n_more} more in .ranking")
    return "\n".join(lines)


def as_html(issues: LabelIssues, n: int) -> str:
    """The same for a notebook; every name is escaped."""
    head = ["rank", "sample", "given", "suggested", "noise_score", *(["id"] if issues.sample_ids else [])]

    def line(tag: str, cells: Sequence[str]) -> str:
        return (
            f"<tr>{''.join(f'<{tag}>{html.escape(escape(cell, limit=200))}</{tag}>' for cell in cells)}</tr>"
        )

    text = "<br>".join(html.escape(escape(one)) for one in summary(issues))
    body = "".join(line("td", row) for row in rows(issues, n))
    return f"<p>{text}</p><table><thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"
