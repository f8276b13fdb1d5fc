"""Set-up of a process: freed memory, the end of its parent, Ctrl-C and closed streams."""

from __future__ import annotations

import atexit
import ctypes
import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress


def keep_freed_memory() -> None:
    """Lets glibc keep up to 1 GiB of freed memory instead of returning it to the operating system.

    Each training step allocates what the last one freed. If the memory is returned in between, a step of `keras_cnn`
    has 5,000 page faults and takes 12 to 23 ms, otherwise 12 to 14 ms (docs/performance.md). Other C libraries stay
    as they are.
    """
    gigabyte, trim_threshold, mmap_threshold = 1 << 30, -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        for parameter in (trim_threshold, mmap_threshold):
            library.mallopt(parameter, gigabyte)


def when_parent_ends(act: Callable[[], object]) -> None:
    """Calls ``act`` in a thread when the parent process ends.

    Raises:
        ValueError: this process was not started by ``multiprocessing``.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise ValueError("this process was not started by multiprocessing")

    def watch() -> None:
        parent.join()
        act()

    threading.Thread(target=watch, daemon=True).start()


def run_program(main: Callable[[], None]) -> None:
    """Calls ``main``; a Ctrl-C that it does not handle ends the process silently, with exit code 130.

    Raises:
        SystemExit: raised by ``main``, or after Ctrl-C.
    """
    atexit.register(_flush_streams)  # registered first, called last
    _repair_streams()
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during exit handlers ends them silently too


def _repair_streams() -> None:
    """Prints ? for characters that the terminal cannot show, and opens closed streams on the null device.

    Otherwise the next file to be opened would take a closed stream's number, and receive its output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is the closed stream's
            setattr(sys, name, os.fdopen(null, "w" if number else "r"))
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _flush_streams() -> None:
    """Flushes both streams; one whose reader is gone goes to the null device, so that Python raises nothing at exit."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError):  # the stream is closed
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
