"""The paper's tables and figures: trains the matrix of a set-up, or what is missing of it, and writes the page.

    python scripts/reproduce.py mnist --short paths.data=DIR_WITH_THE_MNIST_FILES

Started again it goes on where it was cut off. Arguments with "=" are given to qat-run as they are.
"""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qat_ste.app import run_cli as cli

SETUPS = ("mnist", "mnist_flax", "imagenet")
ROWS = ("scaledown_matched", "scaledown", "default", "bits_1", "bits_4")  # the longest first: no core waits for it
COST = re.compile(r'([^/]+)"\'?  # (\d+) members x (\d+) steps of (\d+)$', re.MULTILINE)


def main() -> int:
    """Returns the exit code: 0 where every run is done and the page is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setup", choices=SETUPS, help="mnist is the paper's keras set-up")
    parser.add_argument("--short", action="store_true", help="8 %% of the epochs (conf/reproduce/short.yaml)")
    parser.add_argument("--seeds", default="42,43,44", help="with commas (default: %(default)s)")
    parser.add_argument("--launcher", help="basic, laptop, slurm or one of yours; laptop where joblib is installed")
    parser.add_argument("--output", type=Path, help="folder of the runs and the page")
    parser.add_argument("--dry-run", action="store_true", help="list the runs with their cost, train nothing")
    arguments, overrides = parser.parse_known_args()
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            parser.error(f"{override} is neither an option nor an override such as paths.data=DIR")
    length = "short" if arguments.short else "full"
    folder = arguments.output or Path("outputs") / f"{arguments.setup}_{length}"
    launcher = arguments.launcher or ("laptop" if find_spec("hydra_plugins.hydra_joblib_launcher") else "basic")
    sweep = [
        f"row={','.join(ROWS)}",
        f"experiment={arguments.setup}_sgd,{arguments.setup}_adam",
        f"train.seed={arguments.seeds}",
        f"reproduce={length}",
        f"hydra.sweep.dir={folder}",
        f"hydra/launcher={launcher}",
        *overrides,
    ]
    if arguments.dry_run:
        with redirect_stdout(StringIO()) as lines:
            exit_code = _sweep([*sweep, "dry_run=true"])
        print_cost(lines.getvalue())
        return exit_code
    exit_code = _sweep(sweep)
    if exit_code in (0, 1):  # 1: some runs failed, and the page says so
        from qat_ste.report.sweep.page import write_sweep_report

        write_sweep_report([folder], folder)
        print((folder / "report.html").resolve())
    return exit_code


def _sweep(overrides: list[str]) -> int:
    sys.argv = ["qat-run", "-m", *overrides]
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def print_cost(lines: str) -> None:
    """A table of the runs with the images that each takes through forward and backward pass."""
    runs = [(name, *map(int, numbers)) for name, *numbers in COST.findall(lines)]
    total = sum(members * steps * batch for _, members, steps, batch in runs)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("run", "members", "steps", "batch", "images", "share"):
        table.add_column(title, justify="left" if title == "run" else "right", overflow="fold")
    for name, members, steps, batch in runs:
        images = members * steps * batch
        told = name.replace("experiment=", "").replace(",", " ")
        table.add_row(told, f"{members}", f"{steps:,}", f"{batch}", f"{images:,}", f"{images / total:.1%}")
    table.add_section()
    table.add_row(f"{len(runs)} runs", "", "", "", f"{total:,}", "")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
