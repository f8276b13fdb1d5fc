"""Formulas of strangers: refused in one line or taken; nothing executed, nothing slow."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("inputs", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_fuzz(monkeypatch, inputs):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    from campaign.readers import Expressions

    outcome = Expressions(inputs=inputs).happen(Path(), random.Random(0))
    assert outcome.broken == []
    assert min(outcome.counts["refused"], outcome.counts["accepted"]) > inputs // 20


def test_what_executes_or_raises_something_else_would_be_told(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    from campaign.watching import CODE, each

    def read(text: str) -> str:
        return str(eval(text))

    outcome = each(iter(["1 + 1", "1 +"]), read, lambda error: isinstance(error, ValueError), CODE)
    assert [line.partition(" ")[0] for line in outcome.broken] == ["executed:", "SyntaxError:"]
