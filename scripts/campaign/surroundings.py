"""Machines as they are: no home, no terminal, no letters beyond ASCII, odd names, no assertions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from .command import start
from .fault import Fault, Trial

NOWHERE = "/proc/nowhere"  # where not even root can make a folder
ODD = "a b'c\"d=e<f>,ü→[g]{h}$i\\j"
NO_FOLDERS: dict[str, str | None] = {"XDG_CONFIG_HOME": None, "XDG_CACHE_HOME": None, "MPLCONFIGDIR": None}
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
UNWRITABLE = {"WANDB_DIR": NOWHERE, "WANDB_CACHE_DIR": NOWHERE, "WANDB_CONFIG_DIR": NOWHERE, "WANDB_DATA_DIR": NOWHERE}
ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "W&B's folders unwritable": {**UNWRITABLE},
    "no home folder": NO_FOLDERS | {"HOME": NOWHERE},
    "HOME not set": NO_FOLDERS | {"HOME": None},
    "LANG=C, in earnest": {**ASCII},
    "Python's -O": {"PYTHONOPTIMIZE": "1"},
}
STREAMS = {
    "no terminal: streams closed": "<&- >&- 2>&-",
    "no terminal: nobody reads": "| true; exit ${PIPESTATUS[0]}",
}


def in_environment(trial: Trial, changes: Mapping[str, str | None]) -> None:
    """The run comes to its end with the same numbers, whatever the environment variables are."""
    trial.survive(trial.run(environment=changes))


def with_streams(trial: Trial, streams: str) -> None:
    """Standard streams are closed or lead nowhere."""
    trial.survive(trial.run(prefix=["bash", "-c", f'"$@" {streams}', "bash"]))


def in_odd_folder(trial: Trial) -> None:
    """The run folder has an odd name."""
    trial.folder = trial.workplace / ODD / "run"
    trial.survive(trial.run())


def from_odd_folder(trial: Trial) -> None:
    """The command is called in a folder with an odd name, and makes its own run folder there."""
    here = trial.workplace / ODD
    here.mkdir()
    done = trial.end(start(*trial.arguments, cwd=here))
    (trial.folder,) = here.glob("outputs/*/*")
    trial.survive(done)


SURROUNDINGS: tuple[Fault, ...] = (
    *(
        Fault(name, "surroundings", partial(in_environment, changes=changes), rounds=1)
        for name, changes in ENVIRONMENTS.items()
    ),
    *(Fault(name, "surroundings", partial(with_streams, streams=how), rounds=1) for name, how in STREAMS.items()),
    Fault("run folder with an odd name", "surroundings", in_odd_folder, rounds=1),
    Fault("working folder with an odd name", "surroundings", from_odd_folder, rounds=1),
)
