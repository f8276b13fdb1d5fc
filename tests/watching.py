"""Reads many inputs in this process, and reports what was executed, what hung and what raised another error."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect",
         "shutil.rmtree", "webbrowser.open")  # fmt: skip
CODE = ("exec", "open", "import")  # of a reader that needs none of these
HANG = 120  # seconds after which a reader counts as hung, however busy the machine is

_heard: list[str] | None = None
_listening: list[tuple[str, ...]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _heard is not None and event in _listening[-1]:
        _heard.append(f"{event} {arguments[:1]!r:.100}")


@contextmanager
def listening(events: Sequence[str]) -> Iterator[list[str]]:
    """Collects events of Python's audit hooks. A hook cannot be removed: there is one a process."""
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
    inputs: Iterable[Any],
    read: Callable[[Any], str],
    documented: Callable[[Exception], bool],
    events: Sequence[str] = NEVER,
) -> tuple[Counter[str], list[str]]:
    """Reads each input; returns how often each result was met, and a line for each of the first 20 violations.

    Args:
        read: returns the name under which the result is counted.
        documented: whether an error is one that the reader's documentation names; it is counted as refused.
        events: those of the audit hooks that must not occur.
    """
    counts, broken = Counter[str](), []
    signal.signal(signal.SIGALRM, _hang)
    for content in inputs:
        violation = ""
        signal.alarm(HANG)
        with listening(events) as heard:
            try:
                name = read(content)
            except Hang:
                name, violation = "hung", "it hangs"
            except Exception as error:
                name = "refused"
                if not documented(error):
                    violation = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        counts[name] += 1
        if heard:
            violation = f"executed: {heard[0]}"
        if violation and len(broken) < 20:
            broken.append(f"{violation[:300]} at {content!r:.200}")
    return counts, broken
