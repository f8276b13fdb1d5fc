"""Formats texts, values and errors as one printable line for messages and pages."""

from __future__ import annotations

from typing import Any


def one_line(text: str, longest: int | None = None) -> str:
    """Replaces unprintable characters, such as line breaks, by spaces; cuts the text to ``longest`` characters."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if longest is None or len(line) <= longest else f"{line[: longest - 1]}…"


def of_value(value: object) -> str:
    """``repr(value)`` in one line of at most 200 characters."""
    return one_line(" ".join(repr(value).split()), 200)


def of_error(error: BaseException) -> str:
    """Type and text of an error; file and reason of an error of the operating system."""
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return one_line(" ".join(f"{type(error).__name__}: {error}".split()), 500)


def shown(value: Any, longest: int = 200) -> str:
    """A value as written in an override, in one line."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        text = "[" + ",".join(shown(item) for item in value) + "]"
    elif isinstance(value, dict):
        text = "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items()) + "}"
    else:
        text = str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
