"""Choice of the learning rates in a tuning study: ties, faults, rates beyond the grid, what is trained next."""

from __future__ import annotations

import json

import pytest

from qat_ste.report.tune.comparison import Comparison
from qat_ste.report.tune.study import Study, read_study
from tests.report.tuning import cell, flat, invented, write

GRID = (0.01, 0.03, 0.09)
INSIDE = {0.01: [0.7, 0.7], 0.03: [0.9, 0.9], 0.09: [0.8, 0.8]}
BAD = [None, 0.99]  # seed 1 diverged


def curve(values, **other):
    """The curve of ``tanh`` with these validation metrics by rate and seed, beside a plain STE."""
    return Study(flat({"ste": INSIDE, "tanh": values}, **{"grid": GRID, "seeds": (1, 2)} | other)).curves["tanh"]


def test_the_best_mean_over_seeds_is_chosen():
    assert curve({0.01: [0.5, 0.99], 0.03: [0.8, 0.8], 0.09: [0.7, 0.85]}).best == 0.03
    assert curve({0.01: [0.5, 0.99], 0.03: [0.8, 0.8], 0.09: [0.7, 0.85]}, metric="loss").best == 0.01, "smallest loss"


def test_the_test_split_takes_no_part():
    content = flat({"ste": INSIDE, "tanh": INSIDE}, grid=GRID)
    for each in content["cells"]:
        each["test_accuracy"] = 1.0 if each["lr"] == 0.09 else 0.1
    comparison = Comparison(Study(content))
    assert (comparison.ste.best, comparison.rows[0].best) == (0.03, 0.03)
    assert comparison.rows[0].test.mean == 0.1


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_of_equal_rates_the_smallest_is_chosen(metric):
    assert curve({0.01: [0.8, 0.8], 0.03: [0.8, 0.8], 0.09: [0.8, 0.8]}, metric=metric).best == 0.01
    # 307 of 360 on average, but the means of 0.01 and 0.03 differ in the last digit
    counts = {0.01: [307, 307, 307], 0.03: [304, 307, 310], 0.09: [307, 304, 310]}
    for order in (counts, dict(zip(GRID, reversed(counts.values()), strict=True))):
        same = {rate: [count / 360 for count in numbers] for rate, numbers in order.items()}
        chosen = curve(same, metric=metric, seeds=(1, 2, 3))
        assert len(set(chosen.means.values())) == 2
        assert chosen.best == 0.01
    almost = {0.01: [0.8, 0.8], 0.03: [0.8, 0.8 - 1e-9], 0.09: [0.8, 0.8 + 1e-9]}
    assert curve(almost, metric=metric).best == {"accuracy": 0.09, "loss": 0.03}[metric]


def test_a_rate_with_a_fault_or_a_missing_seed_is_not_chosen():
    failed = curve({0.01: [0.7, 0.7], 0.03: [0.8, 0.8], 0.09: BAD})
    assert failed.best == 0.03
    assert failed.faults == {0.09: {1: "the loss is nan at step 3"}}
    assert not failed.at_edge, "the rate beyond has a fault: the curve ends there"
    assert failed.settled
    content = flat({"ste": INSIDE, "tanh": INSIDE}, grid=GRID)
    content["cells"][-4]["fault"] = "the loss is nan at step 9"  # its numbers of an earlier step remain
    assert content["cells"][-4]["lr"] == 0.03
    assert Study(content).curves["tanh"].best == 0.09
    missing = curve({0.01: [0.7, 0.7], 0.03: [0.8, 0.8], 0.09: [0.99]})
    assert (missing.best, missing.unfinished, missing.settled, missing.next_rate) == (0.03, [0.09], False, None)
    infinite = curve({0.01: [0.7, 0.7], 0.03: [0.8, 0.8], 0.09: [float("inf"), 0.9]})
    assert infinite.best == 0.03


def test_without_an_eligible_rate_nothing_is_chosen_and_nothing_added():
    nothing = curve(dict.fromkeys(GRID, BAD))
    assert (nothing.best, nothing.means, nothing.next_rate, nothing.at_edge) == (None, {}, None, False)
    assert nothing.settled


def test_the_grid_is_extended_beyond_its_largest_rate():
    up = curve({0.01: [0.7, 0.7], 0.03: [0.8, 0.8], 0.09: [0.9, 0.9]})
    assert up.at_edge
    assert up.next_rate == pytest.approx(0.27)
    assert not up.settled
    further = {0.01: [0.7, 0.7], 0.03: [0.8, 0.8], 0.09: [0.9, 0.9], 0.27: [0.95, 0.95]}
    assert curve(further).next_rate == pytest.approx(0.81)
    assert curve(further).added == 1
    assert curve(further | {0.81: [0.9, 0.9]}).next_rate is None
    assert curve(further | {0.81: BAD}).next_rate is None
    assert curve(further | {0.81: BAD}).settled


def test_the_grid_is_extended_below_its_smallest_rate():
    down = {0.01: [0.9, 0.9], 0.03: [0.8, 0.8], 0.09: [0.7, 0.7]}
    assert curve(down).next_rate == pytest.approx(0.01 / 3)
    assert curve({0.00333: [0.95, 0.95]} | down).next_rate == pytest.approx(0.00333**2 / 0.01)
    uneven = {0.01: [0.9, 0.9], 0.02: [0.8, 0.8], 0.2: [0.7, 0.7]}
    assert curve(uneven, grid=(0.01, 0.02, 0.2)).next_rate == pytest.approx(0.005), "the ratio of the outermost two"


def test_no_more_rates_are_added_than_allowed():
    rising = {0.01: [0.7, 0.7], 0.03: [0.8, 0.8], 0.09: [0.9, 0.9], 0.27: [0.95, 0.95]}
    assert curve(rising, extensions=2).next_rate == pytest.approx(0.81)
    limited = curve(rising, extensions=1)
    assert (limited.next_rate, limited.settled, limited.at_edge) == (None, True, True)
    assert curve({rate: rising[rate] for rate in GRID}, extensions=0).settled


def test_an_added_rate_that_lacks_seeds_is_trained_before_another_is_added():
    rates = {0.01: [0.7, 0.7], 0.03: [0.8, 0.8], 0.09: [0.9, 0.9], 0.27: [0.95]}
    assert (curve(rates).next_rate, curve(rates).settled, curve(rates).best) == (0.27, False, 0.09)


def test_cells_in_any_order_and_of_other_roles():
    content = flat({"ste": INSIDE, "tanh": INSIDE}, grid=GRID)
    content["cells"] += [
        cell("ste", 0.5, seed, 0.99, role=role, of=of)
        for seed in (1, 2)
        for role, of in (("swap", None), ("adjusted", "tanh"))
    ]
    content["cells"].reverse()
    study = Study(content)
    assert study.curves["ste"].rates == GRID, "only cells of the grid are candidates"
    assert study.curves["ste"].best == 0.03
    assert study.curves["ste"].test[0.03] == (0.9, 0.9)


def places(values, factors=None, **other):
    study = Study(flat(values, factors, **{"grid": GRID, "seeds": (1, 2)} | other))
    return study.swap_rates(), study.adjusted()


def test_swap_rates_are_those_that_the_ste_lacks():
    beyond = {0.01: [0.7, 0.7], 0.03: [0.8, 0.8], 0.09: [0.9, 0.9], 0.27: [0.95, 0.95], 0.81: [0.2, 0.2]}
    below = {0.00333: [0.95, 0.95], 0.00111: [0.2, 0.2], 0.01: [0.9, 0.9], 0.03: [0.8, 0.8], 0.09: [0.7, 0.7]}
    assert places({"ste": INSIDE, "tanh": beyond, "dsq": INSIDE, "sine": below, "again": beyond}) == (
        [0.00333, 0.27],
        {"tanh": 0.27, "dsq": 0.03, "sine": 0.00333, "again": 0.27},
    )
    assert places({"ste": beyond, "tanh": beyond})[0] == []


def test_swap_and_adjusted_trainings_wait_for_the_choice():
    rising = {0.01: [0.7, 0.7], 0.03: [0.8, 0.8], 0.09: [0.9, 0.9]}
    beyond = rising | {0.27: [0.95, 0.95], 0.81: [0.2, 0.2]}
    assert places({"ste": INSIDE, "tanh": rising}) == ([], {})
    assert places({"ste": rising, "tanh": beyond}) == ([], {"tanh": 0.27}), "the STE may get the rate itself"
    assert places({"ste": INSIDE, "tanh": {0.01: [0.7, 0.7]}}) == ([], {}), "cells are missing"
    assert places({"ste": INSIDE, "tanh": dict.fromkeys(GRID, BAD)}) == ([], {})


def test_only_remapped_estimators_with_a_factor_are_adjusted():
    content = flat({"ste": INSIDE, **dict.fromkeys(("a", "b", "c", "d"), INSIDE)}, grid=GRID)
    changes = {"a": ("remap", 0.4), "b": ("remap", None), "c": ("keep", 0.4), "d": ("none", None)}
    for name, (equivalence, factor) in changes.items():
        content["estimators"][name] |= {"equivalence": equivalence, "lr_factor": factor}
    study = Study(content)
    assert study.adjusted() == {"a": 0.03}
    assert [study.factor(name) for name in changes] == [0.4, 1.0, 1.0, 1.0]


def test_a_study_without_cells_or_with_half_of_them_is_read():
    content = invented(("tanh", "sine"), extensions=1)
    whole = content["cells"]
    for number in (0, 1, len(whole) // 2, len(whole)):
        content["cells"] = whole[:number]
        study = Study(content)
        rows = Comparison(study).rows
        assert [row.label for row in rows] == ["tanh", "sine"]
        if number < 2:
            assert (study.swap_rates(), study.adjusted()) == ([], {})
            assert all(row.answer == "no numbers" and row.swap.mean is None and row.best is None for row in rows)


def test_other_files_are_refused(tmp_path):
    content = invented(("tanh",))
    assert read_study(write(tmp_path, content) / "tune.json").labels == ("tanh",)
    with pytest.raises(ValueError, match=r"tune.json: schema 2 is not supported, only 1 is"):
        read_study(write(tmp_path, content | {"schema": 2}) / "tune.json")
    with pytest.raises(ValueError, match=r"tune.json: metric 'f1' is not supported, only accuracy and loss are"):
        read_study(write(tmp_path, content | {"metric": "f1"}) / "tune.json")
    (tmp_path / "tune.json").write_text(json.dumps(content)[:100])
    with pytest.raises(ValueError):
        read_study(tmp_path / "tune.json")
