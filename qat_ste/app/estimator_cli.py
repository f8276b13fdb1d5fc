"""``qat-estimator``: the card of an estimator, and its figure. Nothing is trained.

A command of its own, since the output of ``qat-run dry_run=true`` is read by machines, a line a job. Imports torch only
to work the card out.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from qat_ste.app.compose import (
    COMPOSE_ERRORS,
    compose_file,
    composition_problems,
    config_dir,
    options,
    packaged_default,
    search_path,
    user_dir,
)
from qat_ste.app.job import tell
from qat_ste.app.schema import ConfigError

if TYPE_CHECKING:
    from qat_ste.base.estimator_card import Card

EXAMPLES = """\
  qat-estimator tanh
  qat-estimator tanh estimator.k=9 quantizer.bits=3 optimizer=adam
  qat-estimator power quantizer=fp4_e2m1 --output power.png
  qat-estimator mine --config-dir my_conf       # my_conf/estimator/mine.yaml names your class

Tab completion: eval "$(qat-estimator -sc install=bash)"
"""
WIDTH = 120


def main() -> None:
    """Entry point. Bad input: one line a problem and exit code 2."""
    if sys.argv[1:2] in (["-sc"], ["--shell-completion"]):
        _complete(sys.argv[2:])
        return
    arguments = _parser().parse_intermixed_args()
    name = arguments.name.removeprefix("estimator=")
    if arguments.config_dir is not None and not Path(arguments.config_dir).is_dir():
        _refuse([f"--config-dir {arguments.config_dir}: is no folder"])
    card = _card([f"estimator={name}", *arguments.overrides], arguments.config_dir)
    _show(card)
    _draw(card, arguments.output or Path(f"{Path(name).name}.png"))


def _parser() -> argparse.ArgumentParser:
    folders = config_dir(), user_dir(sys.argv[1:])
    parser = argparse.ArgumentParser(
        prog="qat-estimator",
        description="Shows an estimator: what the theorem asks of it and whether it holds, α and M, which run with the "
        "STE it amounts to under an optimizer, and a figure.",
        epilog=f"{EXAMPLES}\nestimators: {', '.join(options('estimator', *folders))}\n"
        f"grids (quantizer=): {', '.join(options('quantizer', *folders))}\n"
        f"optimizers (optimizer=): {', '.join(options('optimizer', *folders))}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="an estimator, see below")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration, as for qat-run"
    )
    parser.add_argument("--config-dir", "-cd", metavar="DIR", help="a folder with YAML files of your own")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.png", help="where the figure goes (default: NAME.png in this folder)"
    )
    return parser


def _card(overrides: list[str], user: str | None) -> Card:
    folder = config_dir()
    try:
        cfg = compose_file(folder, [*search_path(user), *overrides])
    except COMPOSE_ERRORS as error:
        _refuse(composition_problems(folder, [*overrides, *(["--config-dir", user] if user else [])], error))
    from qat_ste.app.validate import Preparation
    from qat_ste.experiment.card_of import card_of

    choices = {group: choice for group, _, choice in (override.partition("=") for override in overrides)}
    try:
        estimator, quantizer, optimizer = Preparation(cfg, packaged_default(folder, choices)).rule()
    except ConfigError as error:
        _refuse([str(problem) for problem in error.problems])
    return card_of(estimator, quantizer, optimizer, cfg.optimizer.lr)


def _show(card: Card) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from qat_ste.report.card.text import HOLDS, card_numbers

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(Text(f"{card.name} on {card.grid}", style="bold"))
    console.print(Text(card.definition))
    if card.about:
        console.print(Text(card.about, style="dim"))
    flags = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for flag in card.flags:
        style = {True: "green", False: "bold red", None: "dim"}[flag.holds]
        flags.add_row(flag.name, Text(HOLDS[flag.holds], style=style), Text(flag.told))
    numbers = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for title, value in card_numbers(card):
        numbers.add_row(Text(title), Text(value, style="bold" if title == "amounts to" else ""))
    for table in (flags, numbers):
        console.print()
        console.print(table)
    console.print()


def _draw(card: Card, path: Path) -> None:
    from qat_ste.base.files import write
    from qat_ste.report.card.figure import card_png

    try:
        write(path, card_png(card))
    except OSError as error:
        _refuse([f"--output {path}: {error.strerror or error}"])
    print(path.resolve())  # noqa: T201


def _complete(arguments: list[str]) -> None:
    """As Hydra completes ``qat-run``, but that the first word is an estimator's name."""
    program, _, words = os.environ.get("COMP_LINE", "").partition(" ")
    first, *more = words.lstrip().split(" ") or [""]
    naming = "=" not in first and not first.startswith("-")
    if naming:
        os.environ["COMP_LINE"] = " ".join([program, f"estimator={first}", *more])
    with initialize_config_dir(config_dir(), version_base="1.3"), redirect_stdout(StringIO()) as found:
        hydra: Any = GlobalHydra.instance().hydra
        hydra.shell_completion("config", arguments)
    told = found.getvalue()
    if naming and not more:
        told = told.replace("estimator=", "")
    print(told, end="")  # noqa: T201


def _refuse(problems: list[str]) -> NoReturn:
    tell(problems, "qat-estimator")
    raise SystemExit(2)


if __name__ == "__main__":
    main()
