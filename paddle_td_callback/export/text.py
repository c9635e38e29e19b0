"""Text from the data, for pages and files that people read."""

from __future__ import annotations

import json
from typing import Any


def embedded_json(data: Any) -> str:
    """JSON in ASCII that no HTML parser ends early, whatever the texts in it are."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def visible(text: str) -> str:
    """Control characters as the pictures that Unicode has for them, halves of pairs replaced."""
    shown = "".join(
        chr(0x2400 + ord(char)) if char < " " else "\u2421" if char == "\x7f" else char for char in text
    )
    return shown.encode("utf-8", "replace").decode()
