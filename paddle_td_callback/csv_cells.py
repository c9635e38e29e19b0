"""Text in a CSV that a spreadsheet shows instead of running it."""

from __future__ import annotations

import re

# What a spreadsheet may take for a formula; a plain negative number is none. The report's script has the same.
_FORMULA = re.compile(r"'*(?:[=@\t\r\n\uff1d\uff0b\uff0d\uff20]|[+-](?!\d+(?:\.\d+)?\Z))")


def to_cell(text: str) -> str:
    """Text for a CSV cell: an apostrophe before what a spreadsheet would take for a formula; see `from_cell`."""
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
