"""``qat-estimator``: prints the card of an estimator and writes its figure. Trains nothing.

Imports torch only to compute the card.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from qat_ste.app.compose import (
    COMPOSE_ERRORS,
    add_modules_beside,
    compose_file,
    composition_problems,
    config_dir,
    options,
    packaged_default,
    search_path,
    user_dir,
)
from qat_ste.app.job import refuse
from qat_ste.app.schema import ConfigError, Problem
from qat_ste.base.files import home_path
from qat_ste.base.text import of_error, shown

if TYPE_CHECKING:
    from qat_ste.base.estimator_card import Card

DESCRIPTION = (
    "Shows an estimator: whether the theorem covers it, which STE run corresponds to it under an optimizer, α and M, "
    "and a figure."
)
EXAMPLES = """\
examples:
  qat-estimator tanh
  qat-estimator tanh estimator.k=9 quantizer.bits=3 optimizer=adam
  qat-estimator power quantizer=fp4_e2m1 --output power.png
  qat-estimator mine --config-dir my_conf

my_conf/estimator/mine.yaml names your class as _target_; put its module
beside my_conf or on PYTHONPATH.

Tab completion: eval "$(qat-estimator -sc install=bash)"
"""
PROGRAM, WIDTH = "qat-estimator", 120


def main() -> None:
    """Entry point. Bad input: one line for each problem and exit code 2."""
    if sys.argv[1:2] in (["-sc"], ["--shell-completion"]):
        _complete(sys.argv[2:])
        return
    arguments = _parser().parse_intermixed_args()
    name = arguments.name.removeprefix("estimator=")
    if arguments.config_dir is not None:
        if not Path(arguments.config_dir).is_dir():
            refuse([f"--config-dir {arguments.config_dir}: no such folder"], PROGRAM)
        add_modules_beside(arguments.config_dir)
    card = _card([f"estimator={name}", *arguments.overrides], arguments.config_dir)
    _print(_as_text(card))
    path = arguments.output or Path(f"{Path(name).name}.png")
    from qat_ste.base.files import write
    from qat_ste.report.card.figure import card_png

    try:
        write(path, card_png(card))
    except OSError as error:
        refuse([f"--output {path}: {error.strerror or error}"], PROGRAM)
    _print(f"{path.resolve()}\n")


def _parser() -> argparse.ArgumentParser:
    folders = config_dir(), user_dir(sys.argv[1:])
    titles = {"estimator": "estimators", "quantizer": "grids (quantizer=)", "optimizer": "optimizers (optimizer=)"}
    width = shutil.get_terminal_size().columns - 2  # as argparse
    lists = [
        textwrap.fill(f"{title}: {', '.join(options(group, *folders))}", width, subsequent_indent="  ")
        for group, title in titles.items()
    ]
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=textwrap.fill(DESCRIPTION, width),
        epilog="\n\n".join([EXAMPLES.rstrip(), *lists]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="an estimator from the list below, or one of yours")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration, as for qat-run"
    )
    parser.add_argument(
        "--config-dir", "-cd", type=os.path.expanduser, metavar="DIR", help="a folder with your YAML files"
    )
    parser.add_argument(
        "--output",
        type=home_path,
        metavar="FILE.png",
        help="file of the figure (default: NAME.png in the current folder)",
    )
    return parser


def _card(overrides: list[str], user: str | None) -> Card:
    folder = config_dir()
    try:
        cfg = compose_file(folder, [*search_path(user), *overrides])
    except COMPOSE_ERRORS as error:
        refuse(composition_problems(folder, [*overrides, *(["--config-dir", user] if user else [])], error), PROGRAM)
    from qat_ste.app.validate import RunValidator
    from qat_ste.experiment.card_of import card_of

    choices = {group: choice for group, _, choice in (override.partition("=") for override in overrides)}
    try:
        estimator, quantizer, optimizer = RunValidator(cfg, packaged_default(folder, choices)).rule()
        return card_of(estimator, quantizer, optimizer, cfg.optimizer.lr)
    except ConfigError as error:
        refuse([_with_module_path(problem, user) for problem in error.problems], PROGRAM)
    except ValueError as error:
        refuse([" ".join(str(error).split())], PROGRAM)
    except Exception as error:  # a foreign estimator may raise anything
        refuse([f"{overrides[0]}: {of_error(error)}"], PROGRAM)


def _with_module_path(problem: Problem | str, user: str | None) -> str:
    """The problem as a line; for a class that cannot be imported, with the folders to put its module in."""
    if not isinstance(problem, Problem) or problem.key != "estimator._target_":
        return str(problem)
    beside = f"beside the folder {user} or " if user else ""
    return f"{problem.key}={shown(problem.value)}: {shown(problem.allowed, 500)}; put its module {beside}on PYTHONPATH"


def _as_text(card: Card) -> str:
    """The card in lines, with colours if standard output is a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from qat_ste.report.card.text import HOLDS, card_numbers

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    (_, theorem), *rest = card_numbers(card)
    numbers = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for title, value in rest:
        numbers.add_row(Text(title), Text(value, style="bold" if title == "amounts to" else ""))
    flags = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for flag in card.flags:
        style = {True: "green", False: "bold red", None: "dim"}[flag.holds]
        flags.add_row(flag.name, Text(HOLDS[flag.holds], style=style), Text(flag.told))
    with console.capture() as captured:
        console.print(Text(f"{card.name} on {card.grid}", style="bold"))
        console.print(Text(f"The theorem {theorem}.", style="red" if card.refusal or card.not_covered else "green"))
        console.print(Text(card.definition))
        if card.about:
            console.print(Text(card.about, style="dim"))
        for table in (numbers, flags):
            console.print()
            console.print(table)
        console.print()
    return captured.get()


def _print(text: str) -> None:
    """Prints unless the reader of the output, such as ``head``, has exited."""
    with suppress(BrokenPipeError):
        print(text, end="")  # noqa: T201


def _complete(arguments: list[str]) -> None:
    """Completes words as Hydra does for ``qat-run``, except that the first word is the name of an estimator."""
    program, _, words = os.environ.get("COMP_LINE", "").partition(" ")
    first, *more = words.lstrip().split(" ") or [""]
    naming = "=" not in first and not first.startswith("-")
    if naming:
        os.environ["COMP_LINE"] = " ".join([program, f"estimator={first}", *more])
    with initialize_config_dir(config_dir(), version_base="1.3"), redirect_stdout(StringIO()) as output:
        hydra: Any = GlobalHydra.instance().hydra
        hydra.shell_completion("config", arguments)
    completions = output.getvalue()
    if naming and not more:
        completions = completions.replace("estimator=", "")
    print(completions, end="")  # noqa: T201


if __name__ == "__main__":
    main()
