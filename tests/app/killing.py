"""Kills a process once it has written a file."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path


def kill_after(process: subprocess.Popen, folder: Path, pattern: str) -> None:
    """Sends SIGKILL once a file in ``folder`` matches the pattern; the process must be running until then."""
    while not list(folder.glob(pattern)):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)
