#!/usr/bin/env python3
"""A campaign of faults against the installed command on real data: what happens, and what holds afterwards.

    python scripts/faults.py                                         everything, as often as docs/reliability.md has it
    python scripts/faults.py --only kill disk --rounds 3             faults whose name or group has one of the words
    python scripts/faults.py --json docs/reliability/record.json     the record that docs/reliability.md shows
    python scripts/faults.py --list                                  the faults

Ends with a table, and exit code 1 if anything did not hold. As root on Linux also what needs a mount.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from campaign.command import NotHere
from campaign.concurrency import CONCURRENCY
from campaign.endurance import ENDURANCE
from campaign.fault import Fault, Line, Outcome
from campaign.inputs import INPUTS
from campaign.long_files import LONG_FILES
from campaign.numbers import NUMBERS
from campaign.other_commands import OTHER_COMMANDS
from campaign.processes import PROCESSES
from campaign.readers import READERS
from campaign.several_processes import SEVERAL
from campaign.storage import STORAGE
from campaign.surroundings import SURROUNDINGS

FAULTS: tuple[Fault, ...] = (
    *PROCESSES,
    *SEVERAL,
    *STORAGE,
    *CONCURRENCY,
    *OTHER_COMMANDS,
    *SURROUNDINGS,
    *INPUTS,
    *READERS,
    *NUMBERS,
    *ENDURANCE,
    *LONG_FILES,
)


def one_round(fault: Fault, seed: str) -> Outcome:
    """In a folder of its own; whatever the fault's own code stumbles over counts as a breach."""
    workplace = Path(tempfile.mkdtemp(prefix="fault-"))
    try:
        return fault.happen(workplace, random.Random(seed))
    except NotHere as reason:
        return Outcome(ended=f"not run: {reason}")
    except Exception:
        return Outcome(ended="the campaign failed", broken=[traceback.format_exc()])
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def campaign(faults: Sequence[Fault], rounds: int | None, seed: int, jobs: int) -> Iterator[Line]:
    """Rounds of all faults on ``jobs`` processes; a line as soon as its fault is through."""
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as kept,
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
    ):
        os.environ["QAT_FAULTS"] = kept  # where undisturbed runs lie
        left: dict[str, list[Future[Outcome]]] = {}
        of: dict[Future[Outcome], Fault] = {}
        for fault in faults:
            left[fault.name] = [
                pool.submit(one_round, fault, f"{seed} {fault.name} {number}")
                for number in range(rounds or fault.rounds)
            ]
            of |= dict.fromkeys(left[fault.name], fault)
        for done in as_completed(of):
            fault = of[done]
            if all(future.done() for future in left.get(fault.name, [])) and fault.name in left:
                yield Line.of(fault, (future.result() for future in left.pop(fault.name)))


def table(lines: Sequence[Line]) -> Table:
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("fault", "rounds", "survived", "lost rows", "differing numbers", "worst delay"):
        shown.add_column(title, justify="left" if title == "fault" else "right")
    shown.add_column("ended with, or met", overflow="fold")
    for line in lines:
        met = [*line.ended, ", ".join(f"{name} {count}" for name, count in line.counts.items())]
        met += [", ".join(f"{name} {value:.4g}" for name, value in line.figures.items() if " at " not in name)]
        style = "bold red" if line.broken else ""
        cells = (line.name, line.rounds, line.survived, line.lost_rows, line.differing, f"{line.delay:.1f} s")
        shown.add_row(*map(str, cells), Text("; ".join(filter(None, [*met, *line.broken]))), style=style)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="of a fault's name or group")
    parser.add_argument("--rounds", type=int, help="of each fault; by default its own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="rounds at once")
    parser.add_argument("--json", type=Path, help="the record is written, or what was run is replaced in it")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    chosen = [fault for fault in FAULTS if any(word in f"{fault.group}: {fault.name}" for word in arguments.only)]
    if arguments.list:
        print("\n".join(f"{fault.group}: {fault.name} ({fault.rounds} rounds)" for fault in chosen))
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores: commands would, too
    lines = []
    for line in campaign(chosen, arguments.rounds, arguments.seed, arguments.jobs):
        lines.append(line)
        print(f"{line.group}: {line.name}: {line.survived} of {line.rounds}", *line.broken, sep="\n  ", flush=True)
        if arguments.json:
            record = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
            record[f"{line.group}: {line.name}"] = line.record()
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(lines))
    broken = [line.name for line in lines if line.broken]
    if broken:
        sys.exit(f"did not hold: {', '.join(broken)}")


if __name__ == "__main__":
    main()
