#!/usr/bin/env python3
"""Run faults against the installed command on real data, and check what must hold afterwards.

    python scripts/faults.py                                         everything
    python scripts/faults.py --only kill disk --rounds 3             faults whose name or group contains a word
    python scripts/faults.py --json docs/reliability/record.json     a record for scripts/reliability_docs.py
    python scripts/faults.py --list                                  the faults

The exit code is 1 if anything did not hold. Faults that need a mount run only as root on Linux.
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
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from campaign.command import Unsupported
from campaign.concurrency import CONCURRENCY
from campaign.fault import Fault, Trial
from campaign.processes import PROCESSES
from campaign.storage import STORAGE
from campaign.surroundings import SURROUNDINGS

FAULTS: tuple[Fault, ...] = (*PROCESSES, *STORAGE, *CONCURRENCY, *SURROUNDINGS)


def one_round(fault: Fault, seed: str) -> Trial:
    """Runs one round in a new folder. An error in the fault's code counts as a breach."""
    trial = Trial(Path(tempfile.mkdtemp(prefix="fault-")), random.Random(seed), fault.arguments)
    try:
        fault.happen(trial)
    except Unsupported as reason:
        trial.ended = f"not run: {reason}"
    except Exception:
        trial.broken.append(traceback.format_exc())
    finally:
        shutil.rmtree(trial.workplace, ignore_errors=True)
    return trial


def campaign(faults: Sequence[Fault], rounds: int | None, seed: int, jobs: int) -> Iterator[dict[str, Any]]:
    """Runs the rounds of all faults in ``jobs`` processes; yields a line per fault."""
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as undisturbed,
        ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
    ):
        os.environ["QAT_FAULTS"] = undisturbed  # folder of undisturbed runs
        futures = {
            fault: [pool.submit(one_round, fault, f"{seed} {fault.name} {n}") for n in range(rounds or fault.rounds)]
            for fault in faults
        }
        for fault, trials in futures.items():
            yield fault.line([trial.result() for trial in trials])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="WORD", help="select faults by words of their name or group"
    )
    parser.add_argument("--rounds", type=int, help="rounds of each fault (default: its own number)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="parallel rounds (default: number of cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record to FILE")
    parser.add_argument("--list", action="store_true", help="list the faults, run none")
    arguments = parser.parse_args()
    chosen = [fault for fault in FAULTS if any(word in f"{fault.group}: {fault.name}" for word in arguments.only)]
    if arguments.list:
        print("\n".join(f"{fault.group}: {fault.name} ({fault.rounds} rounds)" for fault in chosen))
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background shells ignore SIGINT, children inherit that
    record: dict[str, dict[str, Any]] = {}
    for line in campaign(chosen, arguments.rounds, arguments.seed, arguments.jobs):
        name = f"{line['group']}: {line['name']}"
        record[name] = line
        results = [f"{line['survived']} of {line['rounds']} survived", *line["ended"]]
        results += [f"{count} in {phase}" for phase, count in line["counts"].items()]
        print(f"{name}: {'; '.join(results)}", *line["broken"], sep="\n  ", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if broken := [name for name, line in record.items() if line["broken"]]:
        sys.exit(f"did not hold: {', '.join(broken)}")


if __name__ == "__main__":
    main()
