"""Files of a run folder: read and written where they are, through no link."""

from __future__ import annotations

import os
from pathlib import Path


class LinkError(OSError):
    """A link stands where a file or folder was expected."""


def no_link(path: Path) -> Path:
    """The path itself.

    Raises:
        LinkError: it is a link, which might lead out of the folder.
    """
    if path.is_symlink():
        raise LinkError(f"{path.name} is a link, and links are not followed: put the file itself there")
    return path


def read_text(path: Path) -> str:
    """Raises OSError or UnicodeDecodeError."""
    return no_link(path).read_text(encoding="utf-8")


def write(path: Path, content: str | bytes) -> None:
    """Writes a new file beside the old one, then puts it in its place; a link there is replaced, not followed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
