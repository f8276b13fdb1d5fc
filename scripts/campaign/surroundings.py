"""Unusual environments: no home folder, no terminal, ASCII only, odd names, no assertions."""

from __future__ import annotations

from functools import partial
from typing import Any

from .command import start
from .fault import Fault, Trial

NOWHERE = "/proc/nowhere"  # not even root can make this folder
ODD = "a b'c\"d=e<f>,ü→[g]{h}$i\\j"
NO_FOLDERS = {"XDG_CONFIG_HOME": None, "XDG_CACHE_HOME": None, "MPLCONFIGDIR": None}
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
UNWRITABLE = dict.fromkeys(("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"), NOWHERE)
OPTIONS: dict[str, dict[str, Any]] = {
    "W&B's folders unwritable": {"environment": UNWRITABLE},
    "no home folder": {"environment": NO_FOLDERS | {"HOME": NOWHERE}},
    "HOME not set": {"environment": NO_FOLDERS | {"HOME": None}},
    "LANG=C without UTF-8 mode": {"environment": ASCII},
    "Python's -O": {"environment": {"PYTHONOPTIMIZE": "1"}},
    "no terminal: streams closed": {"prefix": ["bash", "-c", '"$@" <&- >&- 2>&-', "bash"]},
    "no terminal: closed pipe": {"prefix": ["bash", "-c", '"$@" | true; exit ${PIPESTATUS[0]}', "bash"]},
}


def run_in_environment(trial: Trial, **options: Any) -> None:
    """Runs with these environment variables and streams; the numbers must be the same."""
    trial.survive(trial.run(**options))


def in_odd_folder(trial: Trial) -> None:
    """Runs in a run folder with an odd name."""
    trial.folder = trial.workplace / ODD / "run"
    trial.survive(trial.run())


def from_odd_folder(trial: Trial) -> None:
    """Runs the command in a working folder with an odd name, in which it makes its run folder."""
    folder = trial.workplace / ODD
    folder.mkdir()
    done = trial.end(start(*trial.arguments, cwd=folder))
    (trial.folder,) = folder.glob("outputs/*/*")
    trial.survive(done)


SURROUNDINGS: tuple[Fault, ...] = (
    *(
        Fault(name, "surroundings", partial(run_in_environment, **options), rounds=1)
        for name, options in OPTIONS.items()
    ),
    Fault("run folder with an odd name", "surroundings", in_odd_folder, rounds=1),
    Fault("working folder with an odd name", "surroundings", from_odd_folder, rounds=1),
)
