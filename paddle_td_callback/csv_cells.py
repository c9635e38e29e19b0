"""Text in a CSV that a spreadsheet shows instead of running it."""

from __future__ import annotations

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def to_cell(text: str) -> str:
    """Text for a CSV cell: an apostrophe before what a spreadsheet would take for a formula; see `from_cell`."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA_STARTS) else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` was given."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA_STARTS) else cell
