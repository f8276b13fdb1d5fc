"""Machines as they are: no network, no home, no font, no terminal, odd names, odd clocks."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from qat_ste.app.job import quoted

from . import command
from .command import RUN, undisturbed
from .fault import Fault, Outcome
from .processes import survived

NOWHERE = "/proc/nowhere"  # where not even root can make a folder
ODD = "a b'c\"d=e<f>,ü→[g]{h}$i\\j"


@dataclass(frozen=True)
class Surrounding:
    """The run comes to its end with the same numbers, whatever is around it."""

    name: str
    environment: Mapping[str, str | None] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    prefix: Sequence[str] = ()
    orders: dict[str, Any] | None = None
    said: str = ""  # what has to be told
    folder: str = "run"
    streams: str = ""  # which are closed or lead nowhere
    group: str = "surroundings"
    rounds: int = 1

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        reference = undisturbed(*RUN)
        folder = workplace / self.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        orders = None if self.orders is None else self.orders | {"log": str(workplace / "log")}
        place = quoted("hydra.run.dir", str(folder))
        options: dict[str, Any] = {"environment": self.environment, "orders": orders, "cwd": folder.parent}
        if self.streams:
            options["prefix"] = ["bash", "-c", f'"$@" {self.streams}', "bash"]
        else:
            options["prefix"] = self.prefix
        outcome = survived(command.run(*RUN, *self.arguments, place, **options), folder, reference)
        outcome.broken += self._not_said(folder)
        return outcome

    def _not_said(self, folder: Path) -> list[str]:
        log = folder / "run.log"
        return [] if self.said in (log.read_text() if log.exists() else "") else [f"run.log does not say {self.said!r}"]


@dataclass(frozen=True)
class WrongKey:
    """W&B's server refuses the key, or answers nonsense: the run goes on offline, and that is said."""

    name: str
    status: int
    group: str = "surroundings"
    rounds: int = 1

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        status = self.status

        class Refuses(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_POST  # noqa: N815  # names are http.server's

            def log_message(self, format: str, *arguments: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        environment = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
        online = Surrounding("", environment, said="logging offline")
        try:
            return online.happen(workplace, draw)
        finally:
            server.shutdown()


@dataclass(frozen=True)
class WorkingFolder:
    """The command is called in a folder with an odd name, and makes its own run folder there."""

    name: str = "working folder with an odd name"
    group: str = "surroundings"
    rounds: int = 1

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        here = workplace / ODD
        here.mkdir()
        done = command.run(*RUN, cwd=here)
        (folder,) = here.glob("outputs/*/*")
        return survived(done, folder, undisturbed(*RUN))


NO_FOLDERS: dict[str, str | None] = {"XDG_CONFIG_HOME": None, "XDG_CACHE_HOME": None, "MPLCONFIGDIR": None}
UNWRITABLE = {"WANDB_DIR": NOWHERE, "WANDB_CACHE_DIR": NOWHERE, "WANDB_CONFIG_DIR": NOWHERE, "WANDB_DATA_DIR": NOWHERE}
SURROUNDINGS: tuple[Fault, ...] = (
    Surrounding("W&B offline", {"WANDB_MODE": "offline"}),
    Surrounding("W&B disabled", {"WANDB_MODE": "disabled"}),
    Surrounding("W&B online, no network", {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40}, said="logging offline"),
    Surrounding("W&B online, no key", {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9"}, said="offline"),
    WrongKey("W&B's server refuses the key", 401),
    WrongKey("W&B's server fails", 500),
    Surrounding("W&B's folders unwritable", UNWRITABLE),
    Surrounding("no home folder", NO_FOLDERS | {"HOME": NOWHERE}),
    Surrounding("HOME not set", NO_FOLDERS | {"HOME": None}),
    Surrounding(
        "no font",
        orders={"fail": "matplotlib.font_manager:FontManager.findfont", "at": 1, "times": 10**9},
        said="figure",
    ),
    Surrounding("no terminal: streams closed", streams="<&- >&- 2>&-"),
    Surrounding("no terminal: nobody reads", streams="| true; exit ${PIPESTATUS[0]}"),
    Surrounding("terminal without colour, TERM unset", {"TERM": None}),
    Surrounding("LANG=C", {"LC_ALL": "C", "LANG": "C"}),
    Surrounding("LANG=C, in earnest", {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    Surrounding("run folder with an odd name", folder=f"{ODD}/run"),
    WorkingFolder(),
    Surrounding("one core", prefix=("taskset", "-c", "0")),
    Surrounding("clock set back by a day", orders={"clock": 86_400}),
    Surrounding("Python's -O", {"PYTHONOPTIMIZE": "1"}),
    Surrounding("Python's -OO", {"PYTHONOPTIMIZE": "2"}),
)
