"""Through the command: what is known of an optimizer, what testing shows of one's own, and one that cannot train."""

from __future__ import annotations

import pytest

from tests.conftest import SHORT, every_fifth

MINE = """
import torch
from torch import optim


class Mine(optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                w -= group["lr"] * self.direction(w.grad, self.state[w])


class Signs(Mine):
    def direction(self, gradient, state):
        return gradient.sign()


class Scaled(Mine):
    def direction(self, gradient, state):
        return 3 * gradient


class Summed(Mine):
    def direction(self, gradient, state):
        state["sum"] = state.get("sum", 0) + gradient**2
        return gradient / (state["sum"].sqrt() + 1e-9)
"""


@pytest.mark.parametrize("name", ["signsgd", pytest.param("rprop", marks=pytest.mark.slow)])
def test_where_signs_alone_count_the_ste_run_is_the_same_run(qat_run, name):
    run = qat_run(*SHORT, "logger=none", "estimator=tanh", f"optimizer={name}", "counterparts=[ste,naive]")
    assert run.code == 0, run.err
    results = run.read("results.json")
    assert results["equivalence"] == "exact"
    assert results["reference"]["moved_fraction"] > 0
    for counterpart in results["counterparts"].values():
        assert counterpart["weight_alignment_error"] == 0
    assert "the same run, bit for bit" in results["verdict"]["statement"]


@pytest.mark.parametrize(
    ("name", "equivalence"), every_fifth([("lion", "keep"), ("adagrad", "none"), ("muon", "none")])
)
def test_elsewhere_it_is_not(qat_run, name, equivalence):
    run = qat_run(*SHORT, "logger=none", "estimator=tanh", f"optimizer={name}", "counterparts=[ste,naive]")
    results = run.read("results.json")
    assert results["equivalence"] == equivalence
    assert results["equivalence_reason"]
    assert results["counterparts"]["ste"]["weight_alignment_error"] > 0
    told = f"{name}: none, no adjustment is known: {results['equivalence_reason']}"
    for text in (run.out, (run.folder / "run.log").read_text()):
        assert text.lower().count(told.lower()) == (equivalence == "none")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "equivalence"), [("Signs", "exact"), ("Scaled", "remap"), ("Summed", "none")])
def test_an_optimizer_of_ones_own_is_told_by_testing(qat_run, tmp_path, monkeypatch, name, equivalence):
    (tmp_path / "mine_tested.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "conf/optimizer").mkdir(parents=True)
    (tmp_path / "conf/optimizer/mine.yaml").write_text(f"_target_: mine_tested.{name}\n_partial_: true\nlr: 1e-3\n")
    run = qat_run(
        "--config-dir", str(tmp_path / "conf"), *SHORT, "logger=none", "optimizer=mine", "counterparts=[ste,naive]"
    )
    assert run.code == 0, run.err
    results = run.read("results.json")
    assert results["equivalence"] == equivalence
    same = results["counterparts"]["ste"] == results["counterparts"]["naive"]
    assert same == (equivalence != "remap")
    assert (results["counterparts"]["ste"]["weight_alignment_error"] == 0) == (equivalence == "exact")
    line = f"with mine_tested.{name}: {equivalence}, found by testing: {results['equivalence_reason']}"
    for text in (run.out, (run.folder / "run.log").read_text()):
        assert text.count(line) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("torch.optim.SparseAdam", "", "SparseAdam does not support dense gradients"),
        ("torch.optim.LBFGS", "", "LBFGS"),
        ("torch.optim.Muon", "weight_decay: 0", "2D parameters"),
    ],
)
def test_one_that_cannot_train_the_network_is_refused_in_one_line(qat_run, tmp_path, name, arguments, words):
    if not hasattr(__import__("torch").optim, name.rpartition(".")[2]):
        pytest.skip(f"this torch has no {name}")
    (tmp_path / "conf/optimizer").mkdir(parents=True)
    (tmp_path / "conf/optimizer/mine.yaml").write_text(f"_target_: {name}\n_partial_: true\nlr: 1e-3\n{arguments}\n")
    run = qat_run("--config-dir", str(tmp_path / "conf"), *SHORT, "logger=none", "optimizer=mine")
    assert run.code == 2
    (line,) = run.err.strip().splitlines()
    assert line.startswith("qat-run: optimizer: cannot train this network: ")
    assert words in line
