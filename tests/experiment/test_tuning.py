"""``tune``: rounds of trainings, the grid's edge, and what it refuses."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from qat_ste import ArgumentError, Training, Tuning, tune
from qat_ste.estimators import Ste, Tanh
from qat_ste.experiment.trials import TrialResult
from qat_ste.experiment.tuning import Place, content_of, next_places
from tests.arguments import WEIGHTS
from tests.experiment.tiny import SGD, batches, network

GRID = [0.01, 0.03, 0.09]
REMAP = {"lr_factor": 0.5, "equivalence": "remap", "reason": "", "refused": None}
KEEP = {"lr_factor": 0.5, "equivalence": "keep", "reason": "", "refused": None}


def study(estimators, **changes):
    return content_of(Tuning(**{"lr": GRID, "seeds": 2} | changes), 0.01, "accuracy", estimators, "sgd", "")


def finish(content, best, accuracy=lambda name, lr: 0.9):
    """Adds cells, round by round, whose validation accuracy falls with the distance from ``best[name]``."""
    rounds = []
    while places := next_places(content):
        rounds.append(places)
        for place in places:
            distance = abs(torch.tensor(place.lr / best[place.of or place.estimator]).log().item())
            value = accuracy(place.estimator, place.lr) - 0.1 * distance
            result = TrialResult(1.0, value, 1.0, value, 1.0)
            content["cells"].append(asdict(place) | asdict(result))
    return rounds


def test_rounds_of_a_study_whose_optima_lie_inside():
    rounds = finish(study({"tanh": REMAP, "dsq": KEEP}), {"ste": 0.03, "tanh": 0.03, "dsq": 0.03})
    assert len(rounds) == 2
    assert rounds[0] == [Place(name, lr, seed) for name in ("ste", "tanh", "dsq") for lr in GRID for seed in (1, 2)]
    assert rounds[1] == [Place("ste", 0.03, seed, "adjusted", "tanh") for seed in (1, 2)]


def test_an_optimum_outside_the_grid_is_found():
    rounds = finish(study({"tanh": REMAP, "dsq": KEEP}), {"ste": 0.03, "tanh": 0.8, "dsq": 0.0034})
    added = [{(place.estimator, round(place.lr, 6)) for place in places} for places in rounds[1:-1]]
    assert added[:2] == [{("tanh", 0.27), ("dsq", 0.003333)}, {("tanh", 0.81), ("dsq", 0.001111)}]
    assert added[2] == {("tanh", 2.43)}, "0.81 is the best, until a larger one is known"
    assert len(added) == 3
    last = {(place.estimator, round(place.lr, 6), place.role, place.of) for place in rounds[-1]}
    assert last == {
        ("ste", 0.81, "swap", None), ("ste", 0.003333, "swap", None), ("ste", 0.81, "adjusted", "tanh")
    }  # fmt: skip


def test_no_more_rates_are_added_than_allowed():
    for extensions in (0, 1, 3):
        content = study({"tanh": KEEP}, extensions=extensions)
        finish(content, {"ste": 0.03, "tanh": 1e4})
        rates = {cell["lr"] for cell in content["cells"] if cell["estimator"] == "tanh"}
        assert len(rates) == len(GRID) + extensions


def test_more_seeds_need_only_their_own_trainings():
    content = study({"tanh": KEEP})
    finish(content, {"ste": 0.03, "tanh": 0.03})
    content["seeds"] = [1, 2, 3]
    assert {place.seed for place in next_places(content)} == {3}


def tuned(**changes):
    arguments = {
        "loss": F.cross_entropy, "estimators": {"tanh": Tanh(5.5), "again": Ste()}, "optimizer": SGD, "lr": 0.01,
        "validation": lambda seed: batches(3)[2:], "test": batches(2), "quantization": WEIGHTS,
        "tuning": Tuning(lr=[0.001, 0.003], seeds=2, extensions=2), "training": Training(steps=20),
    }  # fmt: skip
    return tune(network, lambda seed: batches(), **arguments | changes)


def test_from_python(tmp_path):
    result = tuned()
    cells = {(c["estimator"], c["lr"], c["seed"], c["role"]): c for c in result.content["cells"]}
    rates = sorted({lr for name, lr, _, role in cells if (name, role) == ("tanh", "grid")})
    assert rates == pytest.approx([0.001, 0.003, 0.009, 0.027]), "this network learns more at larger rates"
    for (name, lr, seed, role), cell in cells.items():
        if name == "again":
            assert cell | {"estimator": "ste"} == cells["ste", lr, seed, role]
    assert result.content["estimators"]["tanh"]["equivalence"] == "remap"
    assert result.content["estimators"]["tanh"]["lr_factor"] == pytest.approx(0.6095, abs=1e-4)
    adjusted = {cell["of"] for cell in result.content["cells"] if cell["role"] == "adjusted"}
    assert adjusted == {"tanh", "again"}
    page = result.report(tmp_path / "study")
    assert page.name == "tune.html"
    assert "tanh" in page.read_text()


def test_what_is_refused():
    with pytest.raises(ArgumentError, match="estimators must be a mapping of names other than ste to estimators"):
        tuned(estimators={"ste": Ste()})
    with pytest.raises(ArgumentError, match="estimators must be a mapping"):
        tuned(estimators={"tanh": "tanh"})
    with pytest.raises(ArgumentError, match="lr must be None or a list of different positive numbers, at least 2"):
        Tuning(lr=[0.1, 0.1])
    data = [(images, torch.rand(len(images), 4)) for images, _ in batches()]
    with pytest.raises(ArgumentError, match="metric must be loss, since the targets are no classes"):
        tune(
            network, lambda seed: data, loss=F.mse_loss, estimators={"tanh": Tanh(5.5)}, optimizer=SGD, lr=0.01,
            validation=lambda seed: data, test=data, quantization=WEIGHTS, training=Training(steps=2),
            tuning=Tuning(lr=[0.01, 0.02], seeds=1),
        )  # fmt: skip
