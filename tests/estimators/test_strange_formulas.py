"""Generated formulas: rejected with a one-line message or accepted, never executed as code, never slow."""

from __future__ import annotations

import random

import pytest

from qat_ste.base.errors import ArgumentError
from qat_ste.estimators import Formula
from tests.strangers import formula
from tests.watching import CODE, NEVER, each


@pytest.mark.parametrize("inputs", [300, pytest.param(5_000, marks=pytest.mark.slow)])
def test_fuzz(inputs):
    draw = random.Random(0)

    def read(text: str) -> str:
        Formula(text, {"a": 0.5} if "a" in text and draw.random() < 0.5 else None)
        return "accepted"

    def documented(error: Exception) -> bool:
        message = str(error)
        one_line = len(message.splitlines()) == 1 and len(message) < 1000
        return isinstance(error, ArgumentError) and one_line and message.startswith(("expression", "parameters"))

    each(("u", "where(u < w, 1, sin(u))", "1 +"), read, documented)  # triggers late imports
    counts, broken = each((formula(draw) for _ in range(inputs)), read, documented, (*NEVER, *CODE))
    assert broken == []
    assert min(counts["refused"], counts["accepted"]) > inputs // 20


def test_reports_code_that_runs_and_other_errors():
    def read(text: str) -> str:
        return str(eval(text))

    _, broken = each(["1 + 1", "1 +"], read, lambda error: isinstance(error, ValueError), CODE)
    assert [line.partition(" ")[0] for line in broken] == ["executed:", "SyntaxError:"]
