"""What a process sets up for itself: memory, an end with its parent's, and how it ends on a terminal."""

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
    """Lets the C library keep up to a gigabyte that was freed, and not only what its own guess is.

    A training step frees its activations, and asks for as much again in the next one. Where they go back to the
    operating system in between, a step of `keras_cnn` has 5,000 page faults and takes 12 to 23 ms, else 12 to 14
    (docs/performance.md). A C library other than glibc is left as it is.
    """
    gigabyte, trim_threshold, mmap_threshold = 1 << 30, -1, -3  # of malloc.h
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        for parameter in (trim_threshold, mmap_threshold):
            library.mallopt(parameter, gigabyte)


def when_parent_ends(act: Callable[[], object]) -> None:
    """Calls ``act``, in a thread, when the process that started this one through ``multiprocessing`` is gone.

    Raises:
        ValueError: there is none.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise ValueError("this process was not started through multiprocessing")

    def watch() -> None:
        parent.join()
        act()

    threading.Thread(target=watch, daemon=True).start()


def run_program(main: Callable[[], None]) -> None:
    """Calls ``main``; a Ctrl-C, for which it has no handler, ends it with 130, and without a word.

    Raises:
        SystemExit: as ``main`` does.
    """
    atexit.register(_flush_streams)  # the first to be registered is the last to be called
    _mend_streams()
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # exit handlers are ended without a word too


def _mend_streams() -> None:
    """What a terminal cannot show becomes ?, and what was closed leads nowhere, lest a file is opened in its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, os.fdopen(nowhere, "w" if number else "r"))
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _flush_streams() -> None:
    """Leads to nowhere what nobody reads any more, of which Python would complain at its exit."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError):  # it was closed
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
