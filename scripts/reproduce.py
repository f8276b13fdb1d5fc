"""Train the paper's comparison matrix for one set-up, or what is missing of it, and write one page.

    python scripts/reproduce.py mnist --short paths.data=DIR_WITH_THE_MNIST_FILES

Started again, it continues where it was interrupted. Arguments with "=" are passed to qat-run.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qat_ste.app import run_cli as cli
from qat_ste.app.compose import config_dir

SETUPS = ("mnist", "mnist_flax", "imagenet")
ROWS = ("scaledown_matched", "scaledown", "default", "bits_1", "bits_4")  # longest first, so that no core waits for it
RUN = re.compile(r' experiment=(\w+) .*/([^/]+)"\'?  # (\d+) members x (\d+) steps of (\d+)$', re.MULTILINE)
MEASURED = re.compile(r"(?<=# Time: )(\d+) steps of (\d+) members in (\d+) s")


def main() -> int:
    """Returns the exit code: 0 if every run is done and the page is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setup", choices=SETUPS, help="mnist is the paper's keras set-up")
    parser.add_argument("--short", action="store_true", help="8 %% of the epochs (conf/reproduce/short.yaml)")
    parser.add_argument("--seeds", default="42,43,44", help="separated by commas (default: %(default)s)")
    parser.add_argument("--launcher", help="basic, laptop, slurm or your own (default: laptop if joblib is installed)")
    parser.add_argument("--output", type=Path, help="folder of the runs and the page")
    parser.add_argument("--dry-run", action="store_true", help="list the runs with their hours, train nothing")
    arguments, overrides = parser.parse_known_args()
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            parser.error(f"{override} is neither an option nor an override, for example paths.data=DIR")
    length = "short" if arguments.short else "full"
    folder = arguments.output or Path("outputs") / f"{arguments.setup}_{length}"
    sweep = [
        f"row={','.join(ROWS)}",
        f"experiment={arguments.setup}_sgd,{arguments.setup}_adam",
        f"train.seed={arguments.seeds}",
        f"reproduce={length}",
        f"hydra.sweep.dir={folder}",
        *overrides,
    ]
    if arguments.dry_run:  # qat-run needs no launcher then
        with redirect_stdout(StringIO()) as lines:
            exit_code = _sweep([*sweep, "dry_run=true"])
        print_cost(lines.getvalue())
        return exit_code
    launcher = arguments.launcher or ("laptop" if _has_joblib_launcher() else "basic")
    exit_code = _sweep([f"hydra/launcher={launcher}", *sweep])
    if exit_code in (0, 1):  # 1: some runs failed, which the page reports
        from qat_ste.report.sweep.page import write_sweep_report

        write_sweep_report([folder], folder)
        print((folder / "report.html").resolve())
    return exit_code


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


def print_cost(lines: str) -> None:
    """Prints a table of the runs with their hours, at the speed that their experiment's YAML file states.

    Args:
        lines: what ``qat-run`` lists with ``dry_run=true``.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("run", "members", "steps", "batch", "hours"):
        table.add_column(title, justify="left" if title == "run" else "right", overflow="fold")
    total, speeds = 0.0, dict[str, str]()
    for experiment, name, members, steps, batch in RUN.findall(lines):
        header = Path(config_dir(), "experiment", f"{experiment}.yaml").read_text(encoding="utf-8")
        measured = MEASURED.search(header)
        hours = math.nan
        if measured:
            hours = int(members) * int(steps) * int(measured[3]) / (int(measured[1]) * int(measured[2])) / 3600
        speeds[experiment] = f"{experiment}: {measured[0] if measured else 'not measured'}"
        total += hours
        run = name.replace("experiment=", "").replace(",", " ")
        table.add_row(run, members, f"{int(steps):,}", batch, _shown(hours))
    table.add_section()
    table.add_row(f"{table.row_count} runs, one after another", "", "", "", _shown(total))
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)
    console.print(f"Speed on two CPU cores (conf/experiment): {'; '.join(speeds.values())}.", highlight=False)


def _shown(hours: float) -> str:
    return "–" if math.isnan(hours) else f"{hours:.2f}" if hours < 10 else f"{hours:.0f}"


if __name__ == "__main__":
    sys.exit(main())
