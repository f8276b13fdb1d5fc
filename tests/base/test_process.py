"""How the program ends: as Python would, but without taking apart what was imported."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qat_ste.base import process
from qat_ste.base.process import without_garbage_collection

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(process.__file__).parents[2])}
PROGRAM = """
import atexit, os, sys, threading, time
from qat_ste.base.process import run_program

class Told:
    def __del__(self): os.write(1, b"taken apart\\n")

def main():
    sys.modules["told"] = Told()
    atexit.register(print, "exit handler")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    print("main")
    END

START
"""


def run(end: str, start: str = "run_program(main)") -> subprocess.CompletedProcess:
    code = PROGRAM.replace("END", end).replace("START", start)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)


@pytest.mark.parametrize(("end", "code"), [("", 0), ("sys.exit()", 0), ("sys.exit(3)", 3), ("sys.exit(143)", 143)])
def test_threads_and_exit_handlers_have_their_say_and_nothing_is_taken_apart(end, code):
    done = run(end)
    assert (done.returncode, done.stdout, done.stderr) == (code, "main\nthread\nexit handler\n", "")
    control = run(end, start="main()")
    assert (control.returncode, control.stdout) == (code, "main\nthread\nexit handler\ntaken apart\n")


@pytest.mark.parametrize(
    ("end", "told"), [("sys.exit('no')", "no\n"), ("1 / 0", "ZeroDivisionError: division by zero\n")]
)
def test_other_ends_are_python_s(end, told):
    done = run(end)
    assert done.returncode == 1
    assert done.stdout.endswith("taken apart\n")
    assert done.stderr.endswith(told)


def test_garbage_is_collected_again_afterwards_but_not_among_what_was_there():
    def inside() -> bool:
        with without_garbage_collection():
            assert not gc.isenabled()
            return gc.get_freeze_count() > 0

    inside()
    frozen = gc.get_freeze_count()
    assert gc.isenabled() and frozen
    kept = [[] for _ in range(1000)]
    assert inside() and gc.get_freeze_count() <= frozen, "what came later may become garbage"
    assert kept
    with pytest.raises(ValueError), without_garbage_collection():
        raise ValueError
    assert gc.isenabled()


def test_a_ctrl_c_ends_it_without_a_word():
    done = run("os.kill(os.getpid(), 2)")
    assert (done.returncode, done.stderr) == (130, "")
    assert "KeyboardInterrupt" in run("os.kill(os.getpid(), 2)", start="main()").stderr


@pytest.mark.parametrize("start", ["run_program(main)", "main()"])
def test_a_terminal_that_cannot_show_a_letter_or_is_gone(start):
    """Closed streams lead nowhere: not into the next file that is opened."""
    code = PROGRAM.replace("END", "print('α'); print(os.open(os.devnull, os.O_RDONLY), file=sys.stderr)")
    command = [sys.executable, "-c", code.replace("START", start)]
    ascii_only = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(command, capture_output=True, text=True, env=ascii_only)
    closed = subprocess.run(command, env=ENVIRONMENT, preexec_fn=lambda: os.closerange(0, 3), close_fds=False)
    if start == "main()":
        assert "UnicodeEncodeError" in shown.stderr
    else:
        assert "\n?\n" in shown.stdout and int(shown.stderr) > 2
        assert closed.returncode == 0
