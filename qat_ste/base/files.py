"""Files are written whole or not at all, JSON is read within bounds, and one process at a time works in a folder."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)
LOCK = ".lock"
MOST_BYTES = 16 << 20  # of a JSON file


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """Opens a new file that takes the place of ``path`` at the end; after an error ``path`` is what it was before.

    A link at ``path`` is replaced, not followed.

    Args:
        durable: waits until the content lies on the disk, where even the end of the machine leaves it.

    Raises:
        OSError: of the operating system, with ``path`` as its file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a process that had the same number and was killed
        with temporary.open("xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # a full disk names none, the temporary name helps nobody
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_unfinished(path: Path) -> None:
    """Removes what killed processes left of a file that nobody else is writing; they may be as large as it is."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


def write(path: Path, content: str | bytes, durable: bool = False) -> None:
    """Writes a file through ``replacing``; half characters, which JSON may hold, become ``?``."""
    with replacing(path, durable) as file:
        file.write(content.encode(errors="replace") if isinstance(content, str) else content)


def write_json(path: Path, content: Any, durable: bool = False) -> None:
    """Writes a JSON file through ``replacing``."""
    write(path, json_text(content, indent=1) + "\n", durable)


def json_text(content: Any, indent: int | None = None) -> str:
    """The content as JSON, which has no NaN and no infinity: they become null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        OSError: there is none, or it is too large.
        ValueError: it is no JSON.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path.name} is no file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise OSError(f"{path.name} has {size:,} bytes where {MOST_BYTES:,} are the most")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


class FolderInUse(ValueError):
    """Another process works in the folder; says which."""


@contextmanager
def locked(folder: Path, key: str) -> Iterator[None]:
    """Keeps other processes out of ``folder``, which must exist. Not reentrant: the inner one would end the lock.

    Where the file system knows no locks it goes on without, and says so.

    Args:
        key: of the configuration, that says which folder.

    Raises:
        FolderInUse: at once, if another process is in it.
    """

    def refuse(holder: str) -> None:
        raise FolderInUse(f"{key}={folder}: in use by {holder}; wait until that ends, or choose another {key}")

    with (folder / LOCK).open("a+b", buffering=0) as file:
        try:
            lock(file, refuse)
        except OSError as error:
            log.warning("%s cannot be locked (%s): see to it that no other process uses it", folder, error.strerror)
        yield


def lock(file: FileIO, held: Callable[[str], object]) -> None:
    """Locks an open file, and writes into it by whom; closing it, or any end of the process, unlocks it.

    Args:
        file: opened with mode a+b.
        held: is called with the name of the process that has the lock; unless this raises, that process is waited for.

    Raises:
        OSError: the file system knows no locks.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        held(file.read().decode(errors="replace").strip() or "another process")
        fcntl.lockf(file, fcntl.LOCK_EX)
    with suppress(OSError):  # a full disk: it is locked all the same
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
