"""One process at a time works in a folder: a lock that its holder's end takes away, whatever that end is."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)
FILE = ".lock"


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
    with (folder / FILE).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise FolderInUse(
                f"{key}={folder}: in use by {holder}; wait until that ends, or choose another {key}"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): see to it that no other process uses it", folder, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield
