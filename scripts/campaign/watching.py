"""Reads many inputs in one process, and tells what was executed, what was slow and what fell."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .fault import Outcome

NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect",
         "shutil.rmtree", "webbrowser.open")  # fmt: skip
CODE = ("exec", "open", "import")  # of a reader that needs none of these
SLOW, LONG, HANG = 1.0, 20.0, 120  # seconds: of processor time, since others may be at work; of a clock
DRAWN, TRAINED = "drawn as a whole", "trained on"  # what takes longer than to read it

_heard: list[str] | None = None
_listening: list[tuple[str, ...]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _heard is not None and event in _listening[-1]:
        _heard.append(f"{event} {arguments[:1]!r:.100}")


@contextmanager
def listening(events: Sequence[str]) -> Iterator[list[str]]:
    """Events of Python's audit hooks meanwhile. A hook cannot be taken away: there is one a process."""
    global _heard
    if not _listening:
        sys.addaudithook(_hear)
    _listening.append(tuple(events))
    _heard = []
    try:
        yield _heard
    finally:
        _heard = None


class Hang(BaseException):
    """No reader may take this for an error of its own."""


def _hang(*_: object) -> None:
    raise Hang


def each(
    inputs: Iterator[Any],
    read: Callable[[Any], str],
    stated: Callable[[Exception], bool],
    events: Sequence[str] = NEVER,
) -> Outcome:
    """What came of each input.

    Args:
        read: returns the name under which it is counted.
        stated: whether an error is one that the reader's documentation says; it is counted as refused.
        events: those of the audit hooks that must not occur.
    """
    outcome = Outcome()
    signal.signal(signal.SIGALRM, _hang)
    for content in inputs:
        before, began = time.process_time(), time.perf_counter()
        broken = ""
        signal.alarm(HANG)
        with listening(events) as heard:
            try:
                name = read(content)
            except Hang:
                name, broken = "hung", "it hangs"
            except Exception as error:
                name = "refused"
                if not stated(error):
                    broken = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        outcome.counts[name] = outcome.counts.get(name, 0) + 1
        if name not in (DRAWN, TRAINED):
            outcome.delay = max(outcome.delay, time.perf_counter() - began)
        if (took := time.process_time() - before) > (LONG if name in (DRAWN, TRAINED) else SLOW):
            broken = broken or f"it takes {took:.1f} s"
        if heard:
            broken = f"executed: {heard[0]}"
        if broken and len(outcome.broken) < 20:
            outcome.broken.append(f"{broken[:300]} at {content!r:.200}")
    return outcome
