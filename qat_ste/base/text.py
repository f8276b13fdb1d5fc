"""What a message or a page shows of texts, values and errors, whatever they hold: a line that steers no terminal."""

from __future__ import annotations

from typing import Any


def one_line(text: str, longest: int | None = None) -> str:
    """Without line breaks and what else cannot be printed; of what is longer than ``longest`` characters the start."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if longest is None or len(line) <= longest else f"{line[: longest - 1]}…"


def of_value(value: object) -> str:
    """The start of how Python writes it."""
    return one_line(" ".join(repr(value).split()), 200)


def of_error(error: BaseException) -> str:
    """Kind and text; of an error of the operating system the file and the reason, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return one_line(" ".join(f"{type(error).__name__}: {error}".split()), 500)


def shown(value: Any, longest: int = 200) -> str:
    """A value as an override has it, in one line."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        text = "[" + ",".join(shown(item) for item in value) + "]"
    elif isinstance(value, dict):
        text = "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items()) + "}"
    else:
        text = str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
