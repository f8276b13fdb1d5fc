#!/usr/bin/env python3
"""Writes docs/catalogue.md and docs/catalogue/*.png from the estimators' classes and the YAML files in conf.

python scripts/catalogue_docs.py             write the page and its figures
python scripts/catalogue_docs.py --check     exit code 1 if the page is not what classes and files give
python scripts/catalogue_docs.py --config-dir my_conf --output my_docs     with estimators of your own
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from docs_page import DOCS, filled, parser, publish
from qat_ste import SteEquivalent
from qat_ste.app.compose import compose_file, config_dir, options
from qat_ste.app.schema import ConfigError
from qat_ste.app.validate import Preparation
from qat_ste.base.estimator_card import Card
from qat_ste.estimators import Estimator
from qat_ste.experiment.card_of import card_of
from qat_ste.optimizers import Equivalence, adjustment_of
from qat_ste.quantizers.grids import make_quantizer
from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.report.card.figure import card_png
from qat_ste.report.card.text import HOLDS, card_numbers, significant
from qat_ste.report.writers import markdown_text

SETTINGS = ((2, "range"), (1, "range"), (2, "bin"))  # bits and saturation: the first that the theorem covers is shown
NOT_COVERED = "not covered"


@dataclass(frozen=True)
class Entry:
    """An estimator with its customary values under one of ``SETTINGS``, and its card with SGD."""

    name: str
    cfg: DictConfig
    estimator: Estimator
    card: Card
    adam: Equivalence


def entries(user_dir: str | None) -> list[Entry]:
    """Every option of ``estimator``, by name."""
    sgd, adam = (compose_file(config_dir(), [f"optimizer={name}"]) for name in ("sgd", "adam"))
    adam_keeps = adjustment_of(Preparation(adam).rule()[2], adam.optimizer.lr).equivalence
    found = []
    for name, path in options("estimator", config_dir(), user_dir).items():
        sgd.estimator = OmegaConf.load(path)
        found.append(_entry(name, sgd, adam_keeps))
    return found


def _entry(name: str, cfg: DictConfig, adam: Equivalence) -> Entry:
    possible = []
    for bits, saturation in SETTINGS:
        cfg = cfg.copy()
        cfg.quantizer.bits, cfg.quantizer.saturation = bits, saturation
        try:
            estimator, quantizer, make = Preparation(cfg).rule()
        except ConfigError as error:  # it is not made for this grid
            refused = error
            continue
        card = card_of(estimator, quantizer, make, cfg.optimizer.lr)
        possible.append(Entry(name, cfg, estimator, card, Equivalence.NONE if card.refusal else adam))
        if not card.refusal:
            return possible[-1]
    if not possible:
        raise refused
    failing = [entry for entry in possible if any(flag.holds is False for flag in entry.card.flags)]
    return (failing or possible)[0]


def page(found: Sequence[Entry]) -> str:
    """The whole page as Markdown."""
    return filled("catalogue", overview=_overview(found), **_grids(found), sections="\n".join(map(_section, found)))


def _overview(found: Sequence[Entry]) -> str:
    lr = found[0].cfg.optimizer.lr
    flags = [flag.name for flag in found[0].card.flags]
    header = ["estimator", "source", *flags, "α", f"STE learning rate for {lr:g}", "SGD sees", "Adam sees"]
    rows = []
    for entry in found:
        card, alpha = entry.card, entry.card.lr_factor
        numbers = ["–", "–"] if alpha is None else [significant(alpha), f"{alpha * lr:.3g}"]
        sources = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in card.sources) or "–"
        seen = [_seen(entry, equivalence) for equivalence in (card.equivalence, entry.adam)]
        holds = [HOLDS[flag.holds] for flag in card.flags]
        rows.append([f"[`{entry.name}`](#{entry.name})", sources, *holds, *numbers, *seen])
    return _table(header, rows)


def _seen(entry: Entry, equivalence: str) -> str:
    card = entry.card
    if entry.estimator.not_covered:
        return "more than that"
    if equivalence == Equivalence.NONE:
        return NOT_COVERED
    if equivalence != Equivalence.REMAP:
        return "nothing"
    moves = card.mapped is not None and not np.allclose(card.mapped, card.w)
    seen = [name for name, there in (("α", card.lr_factor != 1), ("M", moves)) if there]
    return " and ".join(seen) or "nothing"


def _grids(found: Sequence[Entry]) -> dict[str, str]:
    """What the page says of the grids: a table of them, and for which estimators α differs from grid to grid."""
    rows, alphas = [], {}
    bits = SETTINGS[0][0]
    for name, path in options("quantizer", config_dir()).items():
        levels = dict(OmegaConf.to_object(OmegaConf.load(path)))["levels"]  # type: ignore[arg-type]
        quantizer = make_quantizer(1.0, bits=bits, levels=levels)
        about = f" (`quantizer.bits={bits}`)" if levels is None else ""
        values = " ".join(f"{level:.3g}" for level in quantizer.levels.tolist())
        rows.append([f"`{name}`{about}", str(quantizer.num_levels), values])
        alphas[f"`{name}`"] = [
            _alpha(entry, make_quantizer(1.0, entry.cfg.quantizer.saturation, bits=bits, levels=levels))
            for entry in found
        ]
    by_entry = {entry.name: values for entry, *values in zip(found, *alphas.values(), strict=True)}
    covered = {name: values for name, values in by_entry.items() if set(values) != {NOT_COVERED}}
    same = {name for name, values in covered.items() if len({*values} - {NOT_COVERED}) == 1}
    differing = [
        [f"`{name}`", *values] for name, values in covered.items() if name not in same or NOT_COVERED in values
    ]
    return {
        "grids": _table(["`quantizer=`", "levels", "in units of max"], rows),
        "same": str(len(same)),
        "covered": str(len(covered)),
        "differing": _table(["α of", *alphas], differing),
    }


def _alpha(entry: Entry, quantizer: Quantizer) -> str:
    try:
        return significant(SteEquivalent(entry.estimator, quantizer).lr_factor)
    except ValueError:
        return NOT_COVERED


def _section(entry: Entry) -> str:
    card = entry.card
    arguments: Any = OmegaConf.to_container(entry.cfg.estimator)
    told = _arguments(type(entry.estimator))
    values = [
        f"- `{key}` = {_shown(value)}{': ' if key in told else ''}{markdown_text(told.get(key, ''))}"
        for key, value in arguments.items()
        if not key.startswith("_")
    ]
    numbers = [[markdown_text(title), markdown_text(value)] for title, value in card_numbers(card)]
    numbers += [
        [flag.name, markdown_text(f"{HOLDS[flag.holds]}: {flag.told}".removesuffix(": "))] for flag in card.flags
    ]
    parts = [
        f"## {entry.name}",
        markdown_text(card.definition.replace("``", "")),
        *(markdown_text(paragraph.replace("``", "")) for paragraph in card.about.splitlines()),
        "\n".join(values),
        f"![{entry.name}](catalogue/{entry.name}.png)",
        f"`{arguments['_target_']}`, `estimator={entry.name}`, on {card.grid}:",
        _table(["", "with SGD"], numbers),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _arguments(kind: type[Estimator]) -> dict[str, str]:
    """What the class's docstring says of each argument."""
    section = re.search(r"^Args:\n((?: +.*\n?)+)", inspect.getdoc(kind) or "", re.MULTILINE)
    items = re.split(r"^ {4}(\w+): ", section[1] if section else "", flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(items[1::2], items[2::2], strict=True)}


def _shown(value: Any) -> str:
    return f"`{value:.6g}`" if isinstance(value, float) else f"`{value}`"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _draw(entry: Entry, file: Path) -> None:
    file.write_bytes(card_png(entry.card))


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--config-dir", metavar="DIR", help="a folder with YAML files of your own")
    line.add_argument("--output", type=Path, default=DOCS, metavar="DIR", help="where the page goes (default: docs)")
    arguments = line.parse_args()
    found = entries(arguments.config_dir)
    figures = {f"{entry.name}.png": partial(_draw, entry) for entry in found}
    return publish(arguments.output / "catalogue.md", page(found), arguments.check, figures)


if __name__ == "__main__":
    sys.exit(main())
