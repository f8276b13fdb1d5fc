"""Wrong values for every key of the configuration, made from what is there, and what the command makes of them."""

from __future__ import annotations

import io
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

from omegaconf import OmegaConf

from .fault import Outcome

# For every key, whatever it is: wrong in sign, size, kind or form.
ANYWHERE = (
    *("0", "-1", "0.5", "1e9", "1000000000000", "1e308", "-1e308", "nan", "inf", "-inf", "true", "null"),
    *("abc", "''", "x" * 10_000, "[]", "[1]", "[[],{}]", "{}", "{a:1}", "'???'", "${nowhere}", "'${nowhere:1}'"),
    "'{x}/../%s'",
)
SECONDS, SLOWEST = 3.0, 60  # of the processor to refuse, on the clock to do anything at all
ROOM = 6 << 30  # bytes that a wrong value may have the command ask for
LONGEST_LINE = 1500
SHORT = ("train.steps=2", "metrics.every=1", "counterparts=[ste]", "logger=none")
MOST_IMAGES = 1000  # times members, of a training that is short enough to be tried


@dataclass(frozen=True)
class Input:
    """A wrong value, and the options under which its key is there."""

    chosen: tuple[str, ...]
    key: str
    text: str

    @property
    def overrides(self) -> list[str]:
        return [*self.chosen, *needs(self.chosen), f"{self.key}={self.text}"]

    def __str__(self) -> str:
        return " ".join(override if len(override) < 80 else f"{override[:60]}…" for override in self.overrides)


@dataclass(frozen=True)
class Done:
    """What the command came to; ``steps``: of training, taken in this process."""

    code: int
    out: str
    err: str
    seconds: float
    steps: int = 0


def wrong(value: Any) -> Iterator[str]:
    """Values that a key with this one may well refuse, as an override writes them."""
    yield from ANYWHERE
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield from (f"{-value:g}", f"{value + 0.5:g}", f"{value * 1e6:g}", f"[{value:g}]", f"'{value:g}x'")
        yield f"{int(value) or 1}" + "0" * 20
    if isinstance(value, str) and re.fullmatch(r"[\w.]+", value):
        yield from (f"{value}x", f"[{value}]", value.swapcase())
    if isinstance(value, list) and value:
        yield from ("[" + ",".join(["-1"] * len(value)) + "]", "[" + ",".join(["7"] * 2000) + "]", "[a,b]", "[nan,1]")
        yield "[null]"


def leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Keys and plain values; a list is one value."""
    if isinstance(node, dict) and node:
        for name, child in node.items():
            yield from leaves(child, f"{key}.{name}")
    else:
        yield key, node


@cache
def groups() -> tuple[str, ...]:
    """Top-level parts of the configuration."""
    from qat_ste.composition import compose_file, config_dir

    return tuple(str(name) for name in compose_file(config_dir(), []) if name != "dry_run")


@cache
def choices(group: str) -> tuple[tuple[str, ...], ...]:
    """The options of a top-level part; of one that has none, nothing to be said."""
    from qat_ste.composition import config_dir, options

    return tuple((f"{group}={name}",) for name in options(group, config_dir())) or ((),)


@cache
def inputs(group: str, chosen: tuple[str, ...]) -> tuple[Input, ...]:
    """All wrong values for the keys of one top-level part under one of its options."""
    from qat_ste.composition import compose_file, config_dir

    part: Any = OmegaConf.to_container(compose_file(config_dir(), list(chosen)))
    found = leaves(part[group], group)
    return tuple(Input(chosen, key, text) for key, value in found for text in dict.fromkeys(wrong(value)))


@cache
def needs(chosen: tuple[str, ...]) -> tuple[str, ...]:
    """What else has to be said with an option: images that fit, where they lie, or what its refusal proposes.

    Raises:
        LookupError: the option cannot be had here.
    """
    shared = Path(os.environ.get("QAT_STE_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
    images = iter(("mnist", "imagenet"))
    more: list[str] = []
    for _ in range(6):
        done = command(*chosen, *more, "logger=none", "dry_run=true") if chosen else Done(0, "", "", 0)
        if not done.code:
            return tuple(more)
        example = done.err.splitlines()[0].rpartition("; for example ")[2].strip("'")
        if "images of" in done.err:
            more = [f"dataset={next(images)}"]
        elif example.startswith("paths.data="):
            with_images = "imagenet" if "dataset=imagenet" in (*chosen, *more) else "mnist"
            more.append(f"paths.data={shared / {'imagenet': 'imagenet-sample', 'mnist': 'mnist'}[with_images]}")
        else:
            more.append(example)
    raise LookupError(f"{' '.join(chosen)} cannot be had here: {done.err}")


class Hung(BaseException):
    """A call took longer than ``SLOWEST`` seconds."""


@contextmanager
def bounded() -> Iterator[None]:
    """No more time and memory than a wrong value may take."""

    def hung(_: int, frame: FrameType | None) -> None:
        raise Hung("".join(traceback.format_stack(frame, 4)))

    before, (soft, hard) = signal.signal(signal.SIGALRM, hung), resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    signal.alarm(SLOWEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def command(*arguments: str) -> Done:
    """``qat-run`` in this process, which has torch already; whatever it raises ends up in ``err`` as a traceback."""
    from hydra.core.global_hydra import GlobalHydra

    from qat_ste import cli
    from qat_ste.training import Lockstep

    GlobalHydra.instance().clear()
    code, out, err, start = 0, io.StringIO(), io.StringIO(), time.perf_counter()
    steps, step = [], Lockstep.step

    def counted(*given: Any) -> Any:
        steps.append(given[1])
        return step(*given)

    given = patch.object(sys, "argv", ["qat-run", *arguments])
    with given, patch.object(Lockstep, "step", counted), bounded(), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except (Exception, Hung):
            code = 1
            traceback.print_exc()
    return Done(code, out.getvalue(), err.getvalue(), time.perf_counter() - start, len(steps))


def ended(program: str, *arguments: str) -> tuple[Done, float]:
    """The same as a process of its own, from the folder that this one is in; with its seconds on the clock."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=SLOWEST)
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        code, out, err = 1, "", f"Traceback: none, but no end after {SLOWEST} s"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Done(code, out, err, seconds), time.perf_counter() - start


def refusal_faults(given: Input, done: Done) -> list[str]:
    """What does not hold of an input that was refused: one line, which names the key and says what is allowed."""
    lines = done.err.splitlines()
    if len(lines) != 1:
        return [f"{len(lines)} lines: " + " | ".join(line[:200] for line in lines[:3])]
    found = []
    told = lines[0].removeprefix("qat-run: ").lstrip("'").partition("=")[0]
    if not (told and f"{given.key}.".startswith(f"{told}.")):
        found.append(f"names another key: {lines[0][:300]}")
    if not re.search("for example|allowed|must", lines[0]):
        found.append(f"does not say what is allowed: {lines[0][:300]}")
    if len(lines[0]) > LONGEST_LINE:
        found.append(f"floods the terminal with {len(done.err)} characters")
    if done.steps:
        found.append(f"refused after {done.steps} steps of training")
    return found


def description_faults(given: Input, done: Done) -> list[str]:
    """What does not hold of an input that was only looked at: refused, or accepted and the run described."""
    if "Traceback" in done.err:
        return [f"traceback: {done.err.splitlines()[-1][:300]}"]
    if done.code == 2:
        return refusal_faults(given, done)
    if done.code or "members x" not in done.out:
        return [f"exit code {done.code}, no run described: {done.err[:300]}"]
    return []


def training_faults(given: Input, done: Done, run: Path) -> list[str]:
    """What does not hold of an input that was tried: refused, trained, or ended with one clear line."""
    status = run / "status.json"
    if "Traceback" in done.err:
        return [f"traceback: {done.err.splitlines()[-1][:300]}"]
    if done.code == 2:
        begun = ["refused after training had begun"] if (run / "metrics.jsonl").exists() else []
        return refusal_faults(given, done) + begun
    if done.code == 0:
        return [] if (run / "results.json").exists() else ["trained, but there is no results.json"]
    told = status.exists() and '"failed"' in status.read_text()
    lines = [line for line in done.err.splitlines() if line.strip()]
    return [] if told and len(lines) == 1 else [f"exit code {done.code} with {len(lines)} lines: {done.err[:300]}"]


def drawn(draw: random.Random, count: int) -> list[Input]:
    """As many of each part of the configuration, however many keys it has."""
    found = []
    for _ in range(count):
        group = draw.choice(groups())
        found.append(draw.choice(inputs(group, draw.choice(choices(group)))))
    return found


def trainable(done: Done) -> bool:
    """Whether what is described is short enough to be tried."""
    work = re.search(r"# (\d+) members x (\d+) steps of (\d+)$", done.out.strip())
    return bool(work) and int(work[1]) * int(work[2]) * int(work[3]) <= MOST_IMAGES  # type: ignore[index]


@dataclass(frozen=True)
class WrongValues:
    """Looked at in this process, where a hundred take a minute; some of those accepted are trained with."""

    name: str = "a wrong value for any key, looked at"
    group: str = "inputs"
    rounds: int = 4
    count: int = 120
    trained: int = 5

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        outcome, counts = Outcome(), Counter(refused=0, accepted=0, tracebacks=0, hangs=0, trained=0)
        with chdir(workplace):
            command("dry_run=true", "logger=none")  # what is imported is there
            for number, given in enumerate(drawn(draw, self.count)):
                done = command(*SHORT, *given.overrides, "dry_run=true")
                faults = description_faults(given, done)
                if not done.code and counts["trained"] < self.trained and trainable(done):
                    run = workplace / f"run{number}"
                    tried = command(*SHORT, *given.overrides, f"hydra.run.dir={run}")
                    faults += training_faults(given, tried, run)
                    counts["trained"] += 1
                counts["refused" if done.code == 2 else "accepted"] += 1
                counts["tracebacks"] += "Traceback" in done.err
                counts["hangs"] += "Hung" in done.err
                counts["trainings begun"] += bool(done.steps)
                outcome.delay = max(outcome.delay, done.seconds if done.code == 2 else 0.0)
                outcome.broken += [f"{given}: {fault}" for fault in faults]
        outcome.counts = dict(counts)
        return outcome


@dataclass(frozen=True)
class WrongCommands:
    """The installed command, which would train; seconds are those of the processor, which others share."""

    name: str = "a wrong value for any key, given to the installed command"
    group: str = "inputs"
    rounds: int = 5
    count: int = 10

    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        outcome, counts, clock = Outcome(), Counter[str](), 0.0
        torch_seconds = ended(sys.executable, "-c", "import torch")[0].seconds
        most = max(SECONDS, 2 * torch_seconds)  # machines differ, and torch is most of it
        program = str(Path(sys.executable).with_name("qat-run"))
        with chdir(workplace):
            for number, given in enumerate(drawn(draw, self.count)):
                run = workplace / f"run{number}"
                if not trainable(looked := command(*SHORT, *given.overrides, "dry_run=true")) and not looked.code:
                    counts["too long to be tried"] += 1
                    continue
                own = () if given.key.startswith("paths.") else (f"hydra.run.dir={run}",)
                done, seconds = ended(program, *SHORT, *given.overrides, *own)
                faults = training_faults(given, done, run) if own or done.code == 2 else []
                if done.code == 2 and done.seconds > most:
                    faults.append(f"refused after {done.seconds:.1f} s of the processor")
                counts["refused" if done.code == 2 else "ended in one line" if done.code else "trained"] += 1
                counts["trainings begun"] += done.code == 2 and (run / "metrics.jsonl").exists()
                if done.code == 2:
                    outcome.delay, clock = max(outcome.delay, done.seconds), max(clock, seconds)
                outcome.broken += [f"{given}: {fault}" for fault in faults]
        outcome.counts, outcome.figures = (
            dict(counts),
            {
                "seconds on the clock to refuse": clock,
                "seconds to import torch alone": torch_seconds,
            },
        )
        return outcome


INPUTS = (WrongValues(), WrongCommands())
