"""``compare`` and ``qat-run`` have the same defaults, and the same objects check both."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

from qat_ste import ArgumentError, Execution, Metrics, Quantization, Training, compare
from qat_ste.app.compose import compose_file, config_dir
from qat_ste.app.help_text import commented
from qat_ste.app.schema import parameters, problems_in
from qat_ste.base.sections import SECTIONS

OF_COMPARE = {
    "quantization": ("quantizer", Quantization),
    "training": ("train", Training),
    "metrics": ("metrics", Metrics),
    "execution": ("runtime", Execution),
}


def test_few_parameters():
    assert len(inspect.signature(compare).parameters) <= 18


@pytest.mark.parametrize("argument", OF_COMPARE)
def test_defaults_are_those_of_the_command_one_by_one(argument):
    section, kind = OF_COMPARE[argument]
    default = inspect.signature(compare).parameters[argument].default
    composed = parameters(compose_file(config_dir(), []), section)
    assert type(default) is kind
    assert {each.name: getattr(composed, each.name) for each in fields(kind)} == vars(default)


def test_counterparts_are_those_of_the_command():
    assert (
        list(inspect.signature(compare).parameters["counterparts"].default)
        == compose_file(config_dir(), []).counterparts
    )


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_explained_and_its_example_allowed(section):
    for each in fields(SECTIONS[section]):
        assert each.metadata["about"], each.name
        assert not SECTIONS[section].errors({each.name: each.metadata["example"]}), each.name


def test_a_wrong_value_is_refused_by_one_rule_in_python_and_in_the_command():
    with pytest.raises(ArgumentError, match="^warmup must be a number from 0 to below 1, got 1$") as raised:
        Training(warmup=1)
    (problem,) = problems_in(compose_file(config_dir(), ["train.warmup=1"]), "train")
    assert (problem.key, problem.allowed) == ("train.warmup", f"must be {raised.value.allowed}")


def test_help_has_a_comment_for_every_key():
    text = commented(compose_file(config_dir(), []))
    for section in SECTIONS:
        for each in fields(SECTIONS[section]) if section not in ("atlas", "tune") else ():
            assert f"  {each.name}: " in text
            assert each.metadata["about"].split()[0] in text
