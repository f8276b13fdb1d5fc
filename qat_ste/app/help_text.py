"""``qat-run --help`` and ``qat-atlas --help``: every key with its value and meaning, at 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from qat_ste.app.schema import MODEL_KEYS
from qat_ste.base.sections import SECTIONS
from qat_ste.base.text import shown

WIDTH = 80
ABOUT = {
    "counterparts": "ste, naive, jitter, jitter_<percent>, replica; mirrored: ste that decays and clips as the "
    "reference does; ste_once: ste of the first stage of an estimator that changes, a control (docs/equivalence.md)",
    "dry_run": "true: check everything, print the command of each run and its cost, train nothing",
}
HEADER = """\
qat-run trains a reference with a gradient estimator and its straight-through
counterparts in lockstep, measures how far their weights drift apart, and says
whether the estimator mattered.

Examples:
  qat-run estimator=tanh optimizer=sgd
  qat-run estimator.k=9 optimizer=adam 'counterparts=[ste,jitter,jitter_10]'
  qat-run experiment=mnist_sgd paths.data=DIR_WITH_THE_MNIST_FILES
  qat-run -m estimator.k=2,5.5 train.seed=1,2,3

Options:
  -m, --multirun    run a sweep over comma-separated values
  --config-dir DIR  a folder with your YAML files (estimator/mine.yaml)
  --cfg job         print the composed configuration and exit
  --version         print the version and exit
  --hydra-help      Hydra's options
  Tab completion: eval "$(qat-run -sc install=bash)"
"""


def run_help(cfg: DictConfig, groups: Mapping[str, Sequence[str]]) -> str:
    """The help of ``qat-run`` for a composed configuration, with the options of each group."""
    choices = "\n".join(_paragraph(f"  {group}: ", ", ".join(names)) for group, names in groups.items())
    return (
        f"{HEADER}\nChoices of each group (group=choice):\n{choices}\n\n"
        f"Every value below can be overridden (train.steps=500):\n\n{commented(cfg)}"
    )


def commented(cfg: DictConfig) -> str:
    """The configuration as YAML, with a comment for each key of ``SECTIONS``."""
    lines: list[str] = []
    for key in cfg:
        name = str(key)
        if name in SECTIONS:
            values: Any = OmegaConf.to_container(cfg[name])
            about = {each.name: each.metadata["about"] for each in fields(SECTIONS[name]) if each.metadata}
            lines += ["", f"{name}:"]
            for entry, value in values.items():
                long = isinstance(value, list) and len(shown(value)) > WIDTH - 20
                lines += _entry(f"  {entry}:" if long else f"  {entry}: {shown(value)}", about[entry])
                lines += [f"    - {shown(item)}" for item in value] if long else []
        elif name in ABOUT:
            lines += ["", *_entry(f"{name}: {shown(OmegaConf.to_container(cfg)[name])}", ABOUT[name])]  # type: ignore[index, call-overload]
        else:
            lines += ["", *OmegaConf.to_yaml({name: cfg._get_node(name)}).rstrip().splitlines()]
            for added, meaning in MODEL_KEYS.items():
                if added.startswith(f"{name}.") and OmegaConf.select(cfg, added) is None:
                    lines += _entry(f"  {added.partition('.')[2]}: null", meaning)
    return "\n".join(lines[1:])


def _entry(text: str, about: str, column: int = 30) -> Iterator[str]:
    """``text  # about``, the comment wrapped; it starts on the next line after a long text."""
    comments = textwrap.wrap(about, WIDTH - column - 2)
    if len(text) >= column:
        yield text
        text = ""
    for comment in comments:
        yield f"{text:<{column}}# {comment}"
        text = ""
    if not comments:
        yield text


def _paragraph(head: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent="    ", break_on_hyphens=False)
