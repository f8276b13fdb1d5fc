"""Train the paper's comparison matrix for one set-up, or what is missing of it, and write one page.

    python scripts/reproduce.py mnist --short paths.data=DIR_WITH_THE_MNIST_FILES

Each finished run becomes a small file in docs/results. A run that has one is not trained again, even where its run
folder is gone. Started again, the command continues where it was interrupted. Arguments with "=" are passed to qat-run.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qat_ste.app import run_cli as cli
from qat_ste.app.compose import config_dir
from qat_ste.base.files import read_json
from qat_ste.report.sweep.folders import Run, read_run
from run_records import keep, restore

SETUPS = ("mnist", "mnist_flax", "imagenet")
TIERS = (("default",), ("bits_1", "bits_4"), ("scaledown",), ("scaledown_matched",))  # cheapest first
ONE_SEED = "scaledown_matched"  # at full length it takes as long as all other rows together
RESULTS = Path(__file__).parents[1] / "docs" / "results"
LINE = re.compile(
    r" row=(\w+) experiment=(\w+) train\.seed=(\d+) .*/([^/]+)\"'?  # (\d+) members x (\d+) steps of (\d+)$",
    re.MULTILINE,
)
MEASURED = re.compile(r"(?<=# Time: )(\d+) steps of (\d+) members in (\d+) s")
TRIED = (6, 18)  # steps that time this machine; their difference is free of what a start costs
SECONDS_BETWEEN_RECORDS = 5
SCATTERED = 1000  # weights in the records of one seed


@dataclass(frozen=True)
class Planned:
    """One run of the matrix."""

    row: str
    experiment: str
    seed: int
    folder: str
    members: int
    steps: int
    batch: int

    @property
    def record(self) -> str:
        """Name of its file."""
        return f"{self.experiment}-{self.row}-{self.seed}.json"


@dataclass(frozen=True)
class Speed:
    """What a step of one member costs, in seconds, and how that was found."""

    seconds: float
    source: str


def main() -> int:
    """Returns the exit code: 0 if every run is done and the page is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setup", choices=SETUPS, help="mnist is the paper's keras set-up")
    parser.add_argument("--short", action="store_true", help="8 %% of the epochs (conf/reproduce/short.yaml)")
    parser.add_argument("--seeds", default="42,43,44", help="separated by commas (default: %(default)s)")
    parser.add_argument("--launcher", help="basic, laptop, slurm or your own (default: laptop if joblib is installed)")
    parser.add_argument("--output", type=Path, help="folder of the runs and the page")
    parser.add_argument("--records", type=Path, help="folder of the finished runs' small files (default: docs/results)")
    parser.add_argument("--dry-run", action="store_true", help="list the runs with their hours, train nothing")
    arguments, overrides = parser.parse_known_args()
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            parser.error(f"{override} is neither an option nor an override, for example paths.data=DIR")
    length = "short" if arguments.short else "full"
    name = f"{arguments.setup}_{length}"
    folder: Path = arguments.output or Path("outputs") / name
    records: Path = arguments.records or RESULTS / name
    common = [f"reproduce={length}", f"hydra.sweep.dir={folder}", *overrides]
    experiments = f"experiment={arguments.setup}_sgd,{arguments.setup}_adam"
    sweeps = [
        [f"row={','.join(rows)}", experiments, f"train.seed={_seeds(arguments.seeds, rows, length)}", *common]
        for rows in TIERS
    ]
    planned = []
    for sweep in sweeps:
        with redirect_stdout(StringIO()) as lines:
            if exit_code := _sweep([*sweep, "dry_run=true"]):  # needs no launcher
                return exit_code
        planned += plan(lines.getvalue())
    speeds = {run.experiment: stated_speed(run.experiment) for run in planned}
    if arguments.dry_run:
        print_cost(planned, speeds, records)
        return 0
    launcher = arguments.launcher or ("laptop" if _has_joblib_launcher() else "basic")
    for run in planned:
        if (records / run.record).exists():
            restore(records / run.record, folder / run.folder)
    _keep_finished(planned, folder, records)
    if any(not (records / run.record).exists() for run in planned):
        speeds |= timed_speeds([f"hydra/launcher={launcher}", "row=default", experiments, *overrides])
    print_cost(planned, speeds, records)
    exit_code = 0
    with _kept_at_once(planned, folder, records):
        for sweep in sweeps:
            exit_code = max(exit_code, _sweep([f"hydra/launcher={launcher}", *sweep]))
            if exit_code not in (0, 1):  # 1: some runs failed, which the page reports
                return exit_code
    from qat_ste.report.sweep.page import write_sweep_report

    write_sweep_report([folder], folder)
    print((folder / "report.html").resolve())
    return exit_code


def _seeds(seeds: str, rows: tuple[str, ...], length: str) -> str:
    return seeds.partition(",")[0] if length == "full" and ONE_SEED in rows else seeds


def _has_joblib_launcher() -> bool:
    try:
        return find_spec("hydra_plugins.hydra_joblib_launcher") is not None
    except ModuleNotFoundError:  # no plugin at all: the package hydra_plugins is missing too
        return False


def _sweep(overrides: list[str]) -> int:
    sys.argv = ["qat-run", "-m", *overrides]
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _keep_finished(planned: list[Planned], folder: Path, records: Path) -> None:
    for run in planned:
        if not (records / run.record).exists() and isinstance(read_run(folder / run.folder), Run):
            weights = SCATTERED if run.row == "default" and run.seed == planned[0].seed else 0
            keep(folder / run.folder, records / run.record, weights)


@contextmanager
def _kept_at_once(planned: list[Planned], folder: Path, records: Path) -> Iterator[None]:
    """Keeps records of runs while they finish: their processes may belong to another machine."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SECONDS_BETWEEN_RECORDS):
            _keep_finished(planned, folder, records)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        _keep_finished(planned, folder, records)


def plan(lines: str) -> list[Planned]:
    """Reads the runs that ``qat-run`` lists with ``dry_run=true``."""
    return [
        Planned(row, experiment, int(seed), folder, int(members), int(steps), int(batch))
        for row, experiment, seed, folder, members, steps, batch in LINE.findall(lines)
    ]


def stated_speed(experiment: str) -> Speed:
    """Reads the speed that the experiment's YAML file states."""
    header = Path(config_dir(), "experiment", f"{experiment}.yaml").read_text(encoding="utf-8")
    if (stated := MEASURED.search(header)) is None:
        return Speed(math.nan, "not measured")
    return Speed(int(stated[3]) / int(stated[1]) / int(stated[2]), f"{stated[0]} (conf/experiment)")


def timed_speeds(sweep: list[str]) -> dict[str, Speed]:
    """Times the first steps of each experiment on this machine, as many runs at a time as later."""
    few, many = TRIED
    with tempfile.TemporaryDirectory() as folder:
        trial = ["train.epochs=1", f"train.steps_per_epoch={few},{many}", "logger=none", f"hydra.sweep.dir={folder}"]
        with redirect_stdout(StringIO()):
            _sweep([*sweep, *trial])
        seconds: dict[str, dict[int, float]] = {}
        members: dict[str, int] = {}
        for path in Path(folder).glob("*/results.json"):
            results = read_json(path)
            experiment = results["choices"]["experiment"]
            members[experiment] = 1 + len(results["counterparts"])
            seconds.setdefault(experiment, {})[results["steps"]] = results["wall_seconds"]
    return {
        experiment: Speed(
            max(0.0, of[many] - of[few]) / (many - few) / members[experiment], f"{many - few} steps on this machine"
        )
        for experiment, of in seconds.items()
        if len(of) == len(TRIED)
    }


def print_cost(planned: list[Planned], speeds: dict[str, Speed], records: Path) -> None:
    """Prints a table of the runs with their hours; validation is not in them."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("run", "members", "steps", "batch", "hours"):
        table.add_column(title, justify="left" if title == "run" else "right", overflow="fold")
    total, done = 0.0, 0
    for run in planned:
        hours = run.members * run.steps * speeds[run.experiment].seconds / 3600
        if kept := (records / run.record).exists():
            done += 1
        else:
            total += hours
        name = f"{run.experiment} row={run.row} train.seed={run.seed}"
        table.add_row(name, str(run.members), f"{run.steps:,}", str(run.batch), "done" if kept else _shown(hours))
    table.add_section()
    table.add_row(f"{len(planned) - done} of {len(planned)} runs, one after another", "", "", "", _shown(total))
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    sources = "; ".join(f"{experiment}: {speed.source}" for experiment, speed in speeds.items())
    console.print(f"Speed: {sources}. On several cores, as many runs at a time.", highlight=False)


def _shown(hours: float) -> str:
    return "–" if math.isnan(hours) else f"{hours:.2f}" if hours < 10 else f"{hours:.0f}"


if __name__ == "__main__":
    sys.exit(main())
