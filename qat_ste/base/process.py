"""What a program spares itself of the care that Python and the C library take of memory."""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For imports, of which everything stays: to look through them for garbage, again and again, takes a second.

    What is there at the end of the first time is not looked through later either.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # never again: of a sweep an earlier job's models may be garbage by then
            gc.freeze()
            atexit.register(gc.unfreeze)  # lest libraries complain that their objects are still there at the end
        if enabled:
            gc.enable()


def keep_freed_memory() -> None:
    """Lets the C library keep up to a gigabyte that was freed, and not only what its own guess is.

    A training step frees its activations, and asks for as much again in the next one. Where they go back to the
    operating system in between, thousands of page faults take up to half of the step of a small network. A C library
    other than glibc is left as it is.
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
    """Calls ``main`` and ends the process, without taking apart what was imported: that would take another second.

    Threads are waited for and exit handlers are called all the same. Should be the first thing that a process does.
    A Ctrl-C, for which ``main`` has no handler, ends it with 130, and without a word.

    Raises:
        SystemExit: as ``main`` does; the process ends with its code.
    """
    codes: list[int] = []
    atexit.register(_leave, codes)  # the first to be registered is the last to be called
    _mend_streams()
    try:
        main()
        codes.append(0)
    except KeyboardInterrupt:
        codes.append(128 + signal.SIGINT)
        raise SystemExit(codes[0]) from None
    except SystemExit as stopped:
        if stopped.code is None or isinstance(stopped.code, int):
            codes.append(stopped.code or 0)
        raise


def _mend_streams() -> None:
    """What a terminal cannot show becomes ?, and what was closed leads nowhere, lest a file is opened in its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, os.fdopen(nowhere, "w" if number else "r"))
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _leave(codes: list[int]) -> None:
    """Leaves an end of another kind, an exception, to Python."""
    if not codes:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(codes[0])
