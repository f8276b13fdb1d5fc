"""Log the phases of a command and disturb it. Python imports this module at its start from a folder on its path.

The environment variable ``QAT_FAULT`` holds the orders as a JSON object. Child processes do not see it:

- ``log``: file for a line per begin and end of a phase, and per disturbance;
- ``phase``, ``occurrence``, ``delay``, ``signal``: send the process this signal, ``delay`` seconds after the phase has
  begun for the ``occurrence``-th time;
- ``fail``, ``at``, ``times``: from call number ``at`` on, ``times`` calls of "module:name" raise "no space left".
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]
PHASES = {
    "qat_ste.app.validate:RunValidator.components": "data",
    "qat_ste.loggers.wandb:WandbLogger.__init__": "W&B's start",
    "qat_ste.experiment.comparison:train": "training",
    "qat_ste.experiment.checkpoint:Checkpoints.save": "checkpoint",
    "qat_ste.experiment.lockstep:evaluate": "evaluation",
    "qat_ste.loggers.files:RunFolder.log_results": "results",
    "qat_ste.report.run.page:render": "page",
    "qat_ste.report.run.page:draw_all": "figures",
    "qat_ste.loggers.wandb:WandbLogger.close": "W&B's end",
}


class Agent:
    """Logs every phase and carries out the orders once."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.orders = orders
        self.log = os.open(orders["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.phases = ["start"]
        self.begun = Counter[str]()
        self.calls = 0
        self.places: dict[str, Wrapper] = {place: partial(self.logged, phase) for place, phase in PHASES.items()}
        if "fail" in orders:
            self.places[orders["fail"]] = self.failing
        self.begin("start")

    def write(self, *words: object) -> None:
        os.write(self.log, (" ".join(map(str, [time.monotonic(), *words])) + "\n").encode())

    def begin(self, phase: str) -> None:
        self.begun[phase] += 1
        self.write("begin", phase)
        if phase == self.orders.get("phase") and self.begun[phase] == self.orders["occurrence"]:
            threading.Thread(target=self.strike, daemon=True).start()

    def strike(self) -> None:
        time.sleep(self.orders["delay"])
        self.write("struck", self.phases[-1])
        os.kill(os.getpid(), self.orders["signal"])

    def logged(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def instead(*arguments: Any, **named: Any) -> Any:
            self.phases.append(phase)
            self.begin(phase)
            try:
                return call(*arguments, **named)
            finally:
                self.write("end", phase)
                self.phases.pop()
                if self.phases == ["start"]:
                    self.phases = ["between"]

        return instead

    def failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def instead(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.orders["at"] <= self.calls < self.orders["at"] + self.orders["times"]:
                self.write("failed", self.orders["fail"], self.phases[-1])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **named)

        return instead

    def hook(self, module: ModuleType) -> None:
        """Wraps the functions of interest in a module that has just been imported."""
        for place, wrapped in self.places.items():
            if place.startswith(f"{module.__name__}:"):
                _wrap(module, place, wrapped)


def _wrap(module: ModuleType, place: str, wrapped: Wrapper) -> None:
    *path, name = place.partition(":")[2].split(".")
    owner: Any = module
    for attribute in path:
        owner = getattr(owner, attribute)
    setattr(owner, name, wrapped(getattr(owner, name)))


class Finder(MetaPathFinder):
    """Finds modules as Python does; hooks into some after their import."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.modules = {place.partition(":")[0] for place in agent.places}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in self.modules else None
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                self.agent.hook(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "QAT_FAULT" in os.environ:
    sys.meta_path.insert(0, Finder(Agent(json.loads(os.environ.pop("QAT_FAULT")))))
