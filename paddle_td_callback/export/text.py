"""Text from the data, for pages and files that people read."""

from __future__ import annotations


def visible(text: str) -> str:
    """Control characters as the pictures that Unicode has for them, halves of pairs replaced."""
    shown = "".join(
        chr(0x2400 + ord(char)) if char < " " else "\u2421" if char == "\x7f" else char for char in text
    )
    return shown.encode("utf-8", "replace").decode()
