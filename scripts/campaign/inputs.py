"""What the command makes of wrong values: refused in one line, or accepted and meaningful."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from .calls import Done, command, ended
from .fault import Outcome
from .wrong_values import Input, drawn

SECONDS = 3.0  # of the processor to refuse
LONGEST_LINE = 1500
SHORT = ("train.steps=2", "metrics.every=1", "counterparts=[ste]", "logger=none")
MOST_IMAGES = 1000  # times members, of a training that is short enough to be tried


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
