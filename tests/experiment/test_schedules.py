"""Learning-rate schedules."""

from __future__ import annotations

import math

import pytest

from qat_ste.experiment.schedules import by_name


def test_cosine_with_warm_up_is_linear_from_zero_then_half_a_cosine():
    factor = by_name("cosine", 1000, 0.02)
    assert [factor(step) for step in (0, 5, 10, 19)] == pytest.approx([0, 0.25, 0.5, 0.95])
    for step in (20, 21, 510, 999):
        assert factor(step) == pytest.approx(0.5 * (1 + math.cos(math.pi * (step - 20) / 980)))
    assert factor(20) == 1
    assert factor(999) == pytest.approx(0, abs=1e-5)


def test_constant_and_step_decay():
    assert {by_name("constant", 100, 0)(step) for step in range(100)} == {1}
    factor = by_name("step", 100, 0.0)
    assert [factor(step) for step in (0, 49, 50, 74, 75, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("name", ["cosine", "constant", "step"])
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_factors_stay_between_0_and_1_for_any_length(name, steps):
    assert all(0 <= by_name(name, steps, 0.02)(step) <= 1 for step in range(steps))
