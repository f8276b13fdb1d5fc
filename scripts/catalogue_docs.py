#!/usr/bin/env python3
"""Writes docs/catalogue.md and docs/catalogue/*.png from the estimators' classes and the YAML files in conf.

python scripts/catalogue_docs.py             write the page and its figures
python scripts/catalogue_docs.py --check     exit code 1 if the page is stale
python scripts/catalogue_docs.py --config-dir my_conf --output my_docs     include your own estimators
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
from qat_ste.app.validate import RunValidator
from qat_ste.base.estimator_card import Card
from qat_ste.estimators import Estimator
from qat_ste.experiment.card_of import card_of
from qat_ste.optimizers import Equivalence, adjustment_of
from qat_ste.quantizers.grids import make_quantizer
from qat_ste.quantizers.quantizer import Quantizer
from qat_ste.report.card.figure import card_png
from qat_ste.report.card.text import HOLDS, card_numbers, significant
from qat_ste.report.writers import markdown_text

SETTINGS = ((2, "range"), (1, "range"), (2, "bin"))  # bits, saturation: the first that the theorem covers is shown
NOT_COVERED = "not covered"


@dataclass(frozen=True)
class Entry:
    """An estimator with the arguments in its YAML file under one of ``SETTINGS``, and its card with SGD."""

    name: str
    cfg: DictConfig
    estimator: Estimator
    card: Card
    adam: Equivalence


def entries(user_dir: str | None) -> list[Entry]:
    """Entries of all options of ``estimator``, in the order of their names."""
    sgd, adam = (compose_file(config_dir(), [f"optimizer={name}"]) for name in ("sgd", "adam"))
    adam_equivalence = adjustment_of(RunValidator(adam).rule()[2], adam.optimizer.lr).equivalence
    made = []
    for name, path in options("estimator", config_dir(), user_dir).items():
        sgd.estimator = OmegaConf.load(path)
        made.append(_entry(name, sgd, adam_equivalence))
    return made


def _entry(name: str, cfg: DictConfig, adam: Equivalence) -> Entry:
    candidates = []
    for bits, saturation in SETTINGS:
        cfg = cfg.copy()
        cfg.quantizer.bits, cfg.quantizer.saturation = bits, saturation
        try:
            estimator, quantizer, make = RunValidator(cfg).rule()
        except ConfigError as error:  # the estimator does not support this grid
            config_error = error
            continue
        card = card_of(estimator, quantizer, make, cfg.optimizer.lr)
        candidates.append(Entry(name, cfg, estimator, card, Equivalence.NONE if card.refusal else adam))
        if not card.refusal:
            return candidates[-1]
    if not candidates:
        raise config_error
    failing = [entry for entry in candidates if any(flag.holds is False for flag in entry.card.flags)]
    return (failing or candidates)[0]


def page(shown: Sequence[Entry]) -> str:
    """The whole page as Markdown."""
    return filled("catalogue", overview=_overview(shown), **_grids(shown), sections="\n".join(map(_section, shown)))


def _overview(shown: Sequence[Entry]) -> str:
    lr = shown[0].cfg.optimizer.lr
    flags = [flag.name for flag in shown[0].card.flags]
    header = ["estimator", "source", *flags, "α", f"STE learning rate for {lr:g}", "adjust for SGD", "adjust for Adam"]
    rows = []
    for entry in shown:
        card, alpha = entry.card, entry.card.lr_factor
        numbers = ["–", "–"] if alpha is None else [significant(alpha), f"{alpha * lr:.3g}"]
        sources = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in card.sources) or "–"
        adjusted = [_adjusted(entry, equivalence) for equivalence in (card.equivalence, entry.adam)]
        holds = [HOLDS[flag.holds] for flag in card.flags]
        rows.append([f"[`{entry.name}`](#{entry.name})", sources, *holds, *numbers, *adjusted])
    return _table(header, rows)


def _adjusted(entry: Entry, equivalence: str) -> str:
    """What to adjust for the STE to replace the estimator."""
    card = entry.card
    if entry.estimator.not_covered or equivalence == Equivalence.NONE:
        return NOT_COVERED
    if equivalence != Equivalence.REMAP:
        return "nothing"
    moves = card.mapped is not None and not np.allclose(card.mapped, card.w)
    adjusted = [name for name, needed in (("α", card.lr_factor != 1), ("M", moves)) if needed]
    return " and ".join(adjusted) or "nothing"


def _grids(shown: Sequence[Entry]) -> dict[str, str]:
    """Template values about grids: a table of the grids, and a table of the estimators whose α differs between them."""
    rows, alphas = [], {}
    listed: list[Any] = []  # formats that differ in their scales alone share a grid
    bits = SETTINGS[0][0]
    for name, path in options("quantizer", config_dir()).items():
        levels = dict(OmegaConf.to_object(OmegaConf.load(path)))["levels"]  # type: ignore[arg-type]
        if levels in listed:
            continue
        listed.append(levels)
        quantizer = make_quantizer(1.0, bits=bits, levels=levels)
        about = f" (`quantizer.bits={bits}`)" if levels is None else ""
        values = " ".join(f"{level:.3g}" for level in quantizer.levels.tolist())
        rows.append([f"`{name}`{about}", str(quantizer.num_levels), values])
        alphas[f"`{name}`"] = [
            _alpha(entry, make_quantizer(1.0, entry.cfg.quantizer.saturation, bits=bits, levels=levels))
            for entry in shown
        ]
    by_entry = {entry.name: values for entry, *values in zip(shown, *alphas.values(), strict=True)}
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
    descriptions = _arguments(type(entry.estimator))
    values = [
        f"- `{key}` = {_code(value)}{': ' if key in descriptions else ''}{_prose(descriptions.get(key, ''))}"
        for key, value in arguments.items()
        if not key.startswith("_")
    ]
    numbers = [[markdown_text(title), markdown_text(value)] for title, value in card_numbers(card)]
    numbers += [
        [flag.name, markdown_text(f"{HOLDS[flag.holds]}: {flag.told}".removesuffix(": "))] for flag in card.flags
    ]
    paragraphs = [
        f"## {entry.name}",
        _prose(card.definition),
        *map(_prose, card.about.splitlines()),
        "\n".join(values),
        f"![{entry.name}](catalogue/{entry.name}.png)",
        f"`{arguments['_target_']}`, `estimator={entry.name}`, on {card.grid}:",
        _table(["", "with SGD"], numbers),
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _arguments(kind: type[Estimator]) -> dict[str, str]:
    """Descriptions of the arguments in a class's docstring, by name."""
    section = re.search(r"^Args:\n((?: +.*\n?)+)", inspect.getdoc(kind) or "", re.MULTILINE)
    items = re.split(r"^ {4}(\w+): ", section[1] if section else "", flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(items[1::2], items[2::2], strict=True)}


def _prose(docstring: str) -> str:
    return markdown_text(docstring.replace("``", ""))


def _code(value: Any) -> str:
    return f"`{value:.6g}`" if isinstance(value, float) else f"`{value}`"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _draw(entry: Entry, file: Path) -> None:
    file.write_bytes(card_png(entry.card))


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--config-dir", metavar="DIR", help="folder with your own YAML files")
    line.add_argument("--output", type=Path, default=DOCS, metavar="DIR", help="folder of the page (default: docs)")
    arguments = line.parse_args()
    shown = entries(arguments.config_dir)
    figures = {f"{entry.name}.png": partial(_draw, entry) for entry in shown}
    return publish(arguments.output / "catalogue.md", page(shown), arguments.check, figures)


if __name__ == "__main__":
    sys.exit(main())
