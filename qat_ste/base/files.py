"""Atomic writing of files, reading of JSON files of limited size, and locks for folders."""

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
MOST_BYTES = 16 << 20  # limit for JSON files that are read


def home_path(path: str | os.PathLike[str]) -> Path:
    """The path with a leading ``~`` replaced by the home folder, where there is one."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises where there is no home)


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """Opens a temporary file that replaces ``path`` at the end; after an error ``path`` is unchanged.

    A link at ``path`` is replaced, not followed.

    Args:
        durable: whether to flush the content to the disk, so that it survives a crash of the machine.

    Raises:
        OSError: the file cannot be written; its ``filename`` is ``path``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process that had the same id
        with temporary.open("xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # users do not know the temporary name
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_unfinished(path: Path) -> None:
    """Removes temporary files that killed processes left beside ``path``; no process may be writing ``path``."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def write(path: Path, content: str | bytes, durable: bool = False) -> None:
    """Writes a file through ``replacing``; lone surrogates, which JSON may contain, become ``?``."""
    with replacing(path, durable) as file:
        file.write(content.encode(errors="replace") if isinstance(content, str) else content)


def write_json(path: Path, content: Any, durable: bool = False) -> None:
    """Writes a JSON file through ``replacing``."""
    write(path, json_text(content, indent=1) + "\n", durable)


def json_text(content: Any, indent: int | None = None) -> str:
    """Returns the content as JSON, with null for NaN and infinity, which JSON does not have."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        OSError: it is missing, not a regular file, or too large.
        ValueError: it is not valid JSON.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path.name} is not a regular file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise OSError(f"{path.name} has {size:,} bytes, at most {MOST_BYTES:,} are allowed")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


class FolderInUse(ValueError):
    """Another process uses the folder; the message names it."""


@contextmanager
def locked(folder: Path, key: str) -> Iterator[None]:
    """Locks an existing folder against other processes; not reentrant.

    If the file system does not support locks, logs a warning and continues without.

    Args:
        key: the configuration key that sets the folder, for the message.

    Raises:
        FolderInUse: another process holds the lock.
    """

    def refuse(holder: str) -> None:
        raise FolderInUse(f"{key}={folder}: in use by {holder}; wait until it ends, or choose another {key}")

    with waiting_lock(folder, refuse):
        yield


@contextmanager
def waiting_lock(folder: Path, held: Callable[[str], object]) -> Iterator[None]:
    """``locked``, but waits while another process holds the lock, unless ``held`` raises; see ``lock``."""
    with (folder / LOCK).open("a+b", buffering=0) as file:
        try:
            lock(file, held)
        except OSError as error:
            log.warning("%s cannot be locked (%s): make sure that no other process uses it", folder, error.strerror)
        yield


def lock(file: FileIO, held: Callable[[str], object]) -> None:
    """Locks an open file and writes the process that holds the lock into it; waits while another process holds it.

    The lock is released when the file is closed or the process ends.

    Args:
        file: opened with mode a+b.
        held: called before waiting, with the name of the process that holds the lock; raise to give up.

    Raises:
        OSError: the file system does not support locks.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        held(file.read().decode(errors="replace").strip() or "another process")
        fcntl.lockf(file, fcntl.LOCK_EX)
    with suppress(OSError):  # the disk is full; the lock holds nevertheless
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
