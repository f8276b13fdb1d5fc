"""Files of a run folder: read where they are, through no link."""

from __future__ import annotations

import stat
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


def regular(path: Path, most_bytes: int) -> Path:
    """The path itself.

    Raises:
        OSError: there is no such file, it is a link or something else, or larger than that.
    """
    if not stat.S_ISREG((found := no_link(path).lstat()).st_mode):
        raise OSError(f"{path.name} is no file")
    if found.st_size > most_bytes:
        raise OSError(f"{path.name} has {found.st_size:,} bytes where {most_bytes:,} are the most")
    return path
