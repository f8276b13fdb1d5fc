"""Checks of the files in a run folder before they are read."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from qat_ste.base.files import read_json


class LinkError(OSError):
    """A symbolic link in place of a file or folder of a run."""


def no_link(path: Path) -> Path:
    """Returns the path if it is not a symbolic link, which might lead out of the run folder.

    Raises:
        LinkError: it is one.
    """
    if path.is_symlink():
        raise LinkError(f"{path.name} is a symbolic link, which is not followed; put the file itself there")
    return path


def read_content(path: Path, schema: int) -> dict[str, Any]:
    """The content of a JSON file that has this ``schema``.

    Raises:
        OSError, ValueError, KeyError: the file is unreadable, a symbolic link, or of another schema.
    """
    content: dict[str, Any] = read_json(no_link(path))
    if content["schema"] != schema:
        raise ValueError(f"{path}: schema {content['schema']} is not supported, only {schema} is")
    return content


def regular(path: Path, most_bytes: int) -> Path:
    """Returns the path if it is a regular file of at most ``most_bytes`` bytes.

    Raises:
        OSError: it is missing, larger, a symbolic link or not a file.
    """
    status = no_link(path).lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path.name} is not a regular file")
    if status.st_size > most_bytes:
        raise OSError(f"{path.name} has {status.st_size:,} bytes, more than the limit of {most_bytes:,}")
    return path
