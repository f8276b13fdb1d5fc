"""An estimator from the shell: what a formula trains, and what is refused before anything is trained."""

from __future__ import annotations

import pytest

from tests.conftest import SHORT, every_fifth

E = "(k/3)"
TANH = f"exp(abs(u) * (-4*{E})) * (4*{E}/tanh({E})) / (exp(abs(u) * (-4*{E})) + 1)**2"
QUICK = (*SHORT, "logger=none", "counterparts=[ste]")


def numbers(node, path=""):
    """Every number of results.json but those of the configuration and the clock."""
    for key, value in node.items():
        if key not in ("config", "versions", "wall_seconds"):
            if isinstance(value, dict):
                yield from numbers(value, f"{path}{key}.")
            elif isinstance(value, int | float) and "seconds" not in key:
                yield f"{path}{key}", value


@pytest.mark.slow
def test_tanh_written_out_trains_as_tanh(qat_run):
    formula = ("estimator=formula", f"estimator.expression={TANH}")  # as the shell hands it on, without quotes
    own, written, other = (
        dict(numbers(qat_run(*QUICK, *overrides, folder=folder).read("results.json")))
        for folder, overrides in {
            "own": ("estimator=tanh",),
            "written": (*formula, "estimator.parameters={k: 5.5}"),
            "other": (*formula, "+estimator.parameters.k=5.6"),
        }.items()
    )
    assert len(own) > 20
    assert written == pytest.approx(own, rel=1e-6, abs=1e-6)
    assert other != pytest.approx(own, rel=1e-6, abs=1e-6)


REFUSED = [
    ("__import__('os')", """must be a formula (character 12, "'": not allowed"""),
    ("(1).__class__", "must be a formula (character 1, '(1).__class__': not allowed"),
    ("u.__dict__", "must be a formula (character 1, 'u.__dict__': not allowed"),
    ("10**10**10", "must be a formula (character 1, '10**10**10': not a finite number"),
    ("1 + depth", "must be a formula (character 5, 'depth': unknown name; 'estimator.parameters={depth: 0.5}' gives"),
    ("", "must be a formula (at the end: "),
    ("1+", "must be a formula (at the end: "),
    ("u if u else 1", "must be a formula (character 1, 'u if u else 1': not allowed"),
    ("[u]", "must be text; for example"),
    ("lambda: 1", "must be a formula (character 7, ':': not allowed"),
    ("f'{u}'", """must be a formula (character 2, "'": not allowed"""),
    ("abs(x=u)", "must be a formula (character 1, 'abs(x=u)': not allowed"),
    ("True", "must be text; for example"),
    (
        "(" * 900 + "u" + ")" * 90,
        "must be a formula (character 201, '(((((((((((((((((((…': too many nested parentheses",
    ),
    ("where(u, 1, 2)", "must be a formula (character 1, 'where(u, 1, 2)': not allowed"),
    ("(-1)**0.5", "must be a formula (character 1, '(-1)**0.5': not a finite number"),
    ("1/u", "must be finite for u from -1/2 to 1/2, but is inf at u = 0 in float32"),
]


def one_line(run) -> str:
    assert run.code == 2, run.err
    (line,) = run.err.strip().splitlines()
    assert run.read("status.json")["step"] == 0
    assert not (run.folder / "metrics.jsonl").exists(), "nothing is trained"
    return line


@pytest.mark.parametrize(("expression", "message"), every_fifth(REFUSED))
def test_what_is_no_formula_is_told_in_one_line(qat_run, expression, message):
    line = one_line(qat_run("estimator=formula", f"estimator.expression={expression}"))
    shown = expression.lower() if expression == "True" else expression
    assert line.startswith(f"qat-run: estimator.expression={shown[:199]}")
    assert message in line
    assert line.endswith("; for example 'estimator.expression=1 + 0.5*cos(2*pi*u)'")
    assert len(line) < 600


def test_a_formula_of_a_million_characters_is_refused_at_once(qat_run, tmp_path):
    (tmp_path / "mine" / "estimator").mkdir(parents=True)
    text = "1+" * 500_000 + "1"
    (tmp_path / "mine" / "estimator" / "long.yaml").write_text(
        f"_target_: qat_ste.estimators.Formula\nexpression: {text}\nparameters: null\n"
    )
    run = qat_run("--config-dir", str(tmp_path / "mine"), "estimator=long")
    (line,) = run.err.strip().splitlines()
    assert line.startswith(f"qat-run: estimator.expression={text[:199]}…: must have at most 4096 characters")
    assert (run.code, run.folder.exists()) == (2, False)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("{a: x}", "{a:x}: must be finite numbers by name, such as {a: 0.5}"),
        ("{b: 1}", "{b:1}: must be numbers by names used in the expression (b is not)"),
        ("3", "3: must be numbers by name, such as {a: 0.5}"),
    ],
)
def test_parameters_are_told_in_one_line(qat_run, parameters, message):
    run = qat_run("estimator=formula", "estimator.expression=1 + a*u**2", f"estimator.parameters={parameters}")
    assert one_line(run).startswith(f"qat-run: estimator.parameters={message}; for example")


@pytest.mark.slow
def test_keys_of_the_chosen_estimator_are_no_faults_where_another_key_is_one(qat_run):
    run = qat_run("estimator.expression=1 + abs(u)", "train.steps=x", "estimator=formula")
    assert run.err == "qat-run: train.steps=x: must be a whole number; for example train.steps=1500\n"
    run = qat_run("estimator.expression=1 + abs(u)", "train.steps=x")
    assert "estimator.expression" in run.err, "the tanh has none"


def test_a_sweep_over_formulas_and_over_a_parameter(qat_run):
    run = qat_run("-m", "dry_run=true", "estimator=formula", "estimator.expression='1 + a*abs(u)','1 - a*min(abs(u), 0.1)'",
                  "+estimator.parameters.a=0.1,0.2", "hydra.sweep.dir=sweep")  # fmt: skip
    assert run.code == 0, run.err
    assert [line.count("estimator.expression=") for line in run.out.strip().splitlines()] == [2] * 4, (
        "the run and its folder"
    )
    assert "min(abs(u), 0.1)" in run.out


@pytest.mark.slow
def test_the_theorem_is_asked_of_a_formula_too(qat_run):
    results = qat_run(*SHORT, "logger=none", "estimator=formula", "estimator.expression=1 + w**2").read("results.json")
    assert results["equivalence"] == "none"
    assert results["equivalence_reason"].startswith(
        "Formula('1 + w**2') is not cyclical: g = 2 at w = -1·max but 1.111"
    )
