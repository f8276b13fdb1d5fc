"""How a program ends: as Python does, except after Ctrl-C, with closed streams and unprintable characters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qat_ste.base import process

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(process.__file__).parents[2])}
PROGRAM = """
import atexit, os, sys, threading, time
from qat_ste.base.process import run_program

def main():
    atexit.register(print, "exit handler")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    print("main")
    END

START
"""


def run(end: str, start: str = "run_program(main)") -> subprocess.CompletedProcess:
    code = PROGRAM.replace("END", end).replace("START", start)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)


@pytest.mark.parametrize("start", ["run_program(main)", "main()"])
@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        ("", 0, ""), ("sys.exit()", 0, ""), ("sys.exit(3)", 3, ""), ("sys.exit(143)", 143, ""),
        ("sys.exit('no')", 1, "no\n"), ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ],
)  # fmt: skip
def test_threads_and_exit_handlers_run(end, code, message, start):
    done = run(end, start)
    assert (done.returncode, done.stdout) == (code, "main\nthread\nexit handler\n")
    assert done.stderr.endswith(message) if message else not done.stderr


def test_ctrl_c_ends_it_silently():
    done = run("os.kill(os.getpid(), 2)")
    assert (done.returncode, done.stderr) == (130, "")
    assert "KeyboardInterrupt" in run("os.kill(os.getpid(), 2)", start="main()").stderr
    at_exit = run("atexit.register(os.kill, os.getpid(), 2)")
    assert (at_exit.returncode, at_exit.stderr) == (-signal.SIGINT, "")


def test_a_closed_pipe_changes_no_exit_code():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", PROGRAM.replace("END", "sys.exit(3)").replace("START", "run_program(main)")]
    buffered = {key: value for key, value in ENVIRONMENT.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=buffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (3, b"")


@pytest.mark.parametrize("start", ["run_program(main)", "main()"])
def test_unprintable_characters_and_closed_streams(start):
    """The output of a closed stream does not go to the next file that is opened."""
    code = PROGRAM.replace("END", "print('α'); print(os.open(os.devnull, os.O_RDONLY), file=sys.stderr)")
    command = [sys.executable, "-c", code.replace("START", start)]
    ascii_only = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    printed = subprocess.run(command, capture_output=True, text=True, env=ascii_only)
    closed = subprocess.run(command, env=ENVIRONMENT, preexec_fn=lambda: os.closerange(0, 3), close_fds=False)
    if start == "main()":
        assert "UnicodeEncodeError" in printed.stderr
    else:
        assert "\n?\n" in printed.stdout and int(printed.stderr) > 2
        assert closed.returncode == 0
