"""Runs of estimators whose g is not a function of the offset between two levels."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import SHORT


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "signsgd"])
def test_one_bit(qat_run, check_run, optimizer):
    run = qat_run(*SHORT, "logger=none", "quantizer.bits=1", "estimator=ede", f"optimizer={optimizer}")
    assert run.code == 0, run.err
    results = run.read("results.json")
    assert results["lr_factor"] == 1.0
    ste, naive = results["counterparts"]["ste"], results["counterparts"]["naive"]
    assert (ste["initial_alignment_error"], ste["initial_quantized_agreement"]) == (0.0, 1.0)
    if optimizer == "sgd":
        assert results["equivalence"] == "remap"
        assert 0 < ste["weight_alignment_error"] < naive["weight_alignment_error"] / 2
    else:
        assert results["equivalence"] == "exact"
        assert ste["weight_alignment_error"] == 0
        assert "the same run, bit for bit" in results["verdict"]["statement"]
    checked = subprocess.run([sys.executable, check_run, run.folder], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "equivalence"), [("sgd", "remap"), ("adam", "keep"), ("signsgd", "exact")])
def test_the_verdict_says_that_ewgs_is_not_covered_unless_only_signs_count(qat_run, optimizer, equivalence):
    run = qat_run(*SHORT, "logger=none", "estimator=ewgs", f"optimizer={optimizer}")
    assert run.code == 0, run.err
    results = run.read("results.json")
    assert results["equivalence"] == equivalence
    assert results["lr_factor"] == pytest.approx(0.99666, abs=1e-5)
    statement, reason = results["verdict"]["statement"], results["equivalence_reason"]
    if equivalence == "exact":
        assert results["counterparts"]["ste"]["weight_alignment_error"] == 0
        assert "the same run, bit for bit" in statement
        assert "cover" not in statement + reason
    else:
        assert results["counterparts"]["ste"]["weight_alignment_error"] > 0
        assert statement.endswith(
            "The theorem does not cover this estimator; the distance measured says how much that matters."
        )
        assert "but the theorem does not cover Ewgs(delta=0.2): its g depends on the sign of the gradient" in reason
