from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qat_ste.app import report_cli
from qat_ste.report.run.figures import FIGURES, OF_SEGMENTS
from tests.conftest import SHORT, command


def numbers(results: dict) -> dict:
    """What must be equal from run to run: all but times and paths."""
    kept = {key: value for key, value in results.items() if key not in ("wall_seconds", "command")}
    kept["config"] = {key: value for key, value in kept["config"].items() if key not in ("paths", "logger")}
    return kept


def test_run_folder_keeps_the_contract(finished_run, check_run):
    done = subprocess.run([sys.executable, check_run, finished_run], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_last_line_is_the_page_and_before_it_stand_table_and_verdict(finished_run):
    lines = (finished_run / "stdout.txt").read_text().strip().splitlines()
    assert lines[-1] == str((finished_run / "report.html").resolve())
    statement = json.loads((finished_run / "results.json").read_text())["verdict"]["statement"]
    assert statement in " ".join(lines), "wrapped between words"
    assert any(line.split() == ["reference", "ste", "naive", "jitter"] for line in lines)
    assert statement in (finished_run / "run.log").read_text()


def test_default_is_the_papers_sgd_claim(finished_run):
    results = json.loads((finished_run / "results.json").read_text())
    assert results["equivalence"] == "remap"
    assert results["lr_factor"] == pytest.approx(0.6095, abs=5e-4)
    assert results["quantized_weights"] == results["sequence_weights"] == 18_720
    ste = results["counterparts"]["ste"]
    assert (ste["initial_alignment_error"], ste["initial_quantized_agreement"]) == (0, 1)
    assert set(ste["layers"]) == {"conv1.weight", "conv2.weight"}
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "reference/train_loss" in row] == [6, 12, 18, 24]
    assert [row["step"] for row in rows if "reference/validation_accuracy" in row] == [8, 16, 24]
    assert rows[-2]["ste/weight_alignment_error"] == pytest.approx(ste["weight_alignment_error"], rel=1e-12)
    assert json.loads((finished_run / "status.json").read_text())["step"] == 24


@pytest.mark.slow
def test_same_seed_same_results_and_members_do_not_touch_each_other(qat_run):
    first = qat_run(*SHORT, "logger=none", folder="a").read("results.json")
    again = qat_run(*SHORT, "logger=none", folder="b").read("results.json")
    assert numbers(first) == numbers(again)
    more = qat_run(*SHORT, "logger=none", "counterparts=[ste,naive,jitter,replica]", folder="c").read("results.json")
    assert {name: more["counterparts"][name] for name in first["counterparts"]} == first["counterparts"]
    assert more["reference"] == first["reference"]
    replica = more["counterparts"]["replica"]
    for name, value in replica.items():
        if "agreement" in name:
            assert value in (1, None), name
        elif "error" in name or "logit" in name:
            assert value in (0, None), name
    other = qat_run(*SHORT, "logger=none", "train.seed=1", folder="d").read("results.json")
    assert other["counterparts"] != first["counterparts"]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["ste", "pwl"])
def test_ste_against_ste_is_exactly_zero(qat_run, estimator):
    ste = qat_run(*SHORT, "logger=none", f"estimator={estimator}", "counterparts=[ste]").read("results.json")
    assert ste["counterparts"]["ste"]["weight_alignment_error"] == 0
    assert ste["counterparts"]["ste"]["logit_mse"] == 0


def test_adam_keeps_everything(qat_run):
    results = qat_run(*SHORT, "logger=none", "optimizer=adam").read("results.json")
    assert results["equivalence"] == "keep"
    assert results["config"]["optimizer"]["betas"] == [0.9, 0.95]
    assert results["counterparts"]["ste"] == results["counterparts"]["naive"]


@pytest.mark.slow
def test_mnist_as_in_the_paper(qat_run, mnist_folder):
    run = qat_run("experiment=mnist_sgd", f"paths.data={mnist_folder}", "train.epochs=1", "train.steps_per_epoch=3",
                  "logger=none")  # fmt: skip
    assert run.code == 0, run.err
    results = run.read("results.json")
    assert results["quantized_weights"] == 92_672
    assert results["steps"] == 3
    assert set(results["counterparts"]["ste"]["layers"]) == {
        "conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "conv3.weight", "conv3.bias"}  # fmt: skip


@pytest.mark.slow
def test_the_default_run_in_full(qat_run):
    """The bars of the default run: accuracy, and the STE three times closer than the naive swap."""
    results = qat_run("estimator=tanh", "optimizer=sgd").read("results.json")
    assert results["reference"]["test_accuracy"] >= 0.97
    errors = {name: found["weight_alignment_error"] for name, found in results["counterparts"].items()}
    assert errors["ste"] <= errors["naive"] / 3
    adam = qat_run("optimizer=adam", "train.steps=600", "logger=none", folder="adam").read("results.json")[
        "counterparts"
    ]
    assert adam["ste"]["weight_alignment_error"] <= 3 * adam["jitter"]["weight_alignment_error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [["optimizer.lr=3e-2"], ["optimizer=adam", "optimizer.betas=[0.9,0.999]"]],
    ids=["large lr", "long memory"],
)
def test_the_verdict_can_come_out_against_the_paper(qat_run, overrides):
    verdict = qat_run(*overrides, "logger=none").read("results.json")["verdict"]
    assert verdict["outcome"] in ("claim fails", "mattered"), verdict


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 140)])
def test_a_signal_ends_the_run_at_the_next_step(qat_run, monkeypatch, number, code):
    from qat_ste.experiment.monitor import DivergenceMonitor

    observe, handler = DivergenceMonitor.observe, signal.getsignal(number)

    def signalled(self, step, levels):
        observe(self, step, levels)
        if step == 13:
            signal.raise_signal(number)

    monkeypatch.setattr(DivergenceMonitor, "observe", signalled)
    run = qat_run("train.steps=100000", "metrics.every=5")
    assert run.code == code, run.err
    assert "Traceback" not in run.err
    assert f"{number.name}: stopped after step 13" in run.out
    status = run.read("status.json")
    assert (status["status"], status["step"]) == ("preempted", 13)
    rows = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in rows] == [5, 10]
    assert signal.getsignal(number) is handler


@pytest.mark.slow
def test_a_finished_run_is_not_overwritten_and_a_cut_off_one_kept_aside(qat_run):
    first = qat_run(*SHORT, "logger=none")
    before = first.read("results.json")
    again = qat_run(*SHORT, "logger=none", "train.seed=7")
    assert again.code == 2
    assert "results.json was made with train.seed=42; use that value, or choose another hydra.run.dir" in again.err
    assert again.read("results.json") == before
    same = qat_run(*SHORT, "logger=none")
    assert (same.code, same.out) == (0, f"finished already: {first.folder}/report.html\n")
    for name in ("results.json", "checkpoint.pt"):
        (first.folder / name).unlink()
    rows = (first.folder / "metrics.jsonl").read_text()
    assert qat_run(*SHORT, "logger=none", "train.seed=7").code == 0
    assert (first.folder / "metrics.previous.jsonl").read_text() == rows


def test_a_loss_that_explodes_is_told_in_one_line(qat_run):
    run = qat_run(*SHORT, "logger=none", "optimizer.lr=1e30")
    assert run.code == 1
    assert run.err.strip().startswith("the loss of reference is ")
    assert len(run.err.strip().splitlines()) == 1
    assert run.read("status.json")["status"] == "failed"


def test_a_report_that_fails_costs_no_numbers(qat_run, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("numpy.savez", full)
    run = qat_run(*SHORT, "logger=none")
    assert run.code == 1
    reason = "the report could not be written: OSError: No space left on device"
    assert run.err == f"{reason}; this command writes it later: qat-report {run.folder}\n"
    assert "report.html" not in run.out
    assert run.read("results.json")["counterparts"]["ste"]["weight_alignment_error"] > 0
    assert run.read("status.json") | {"wall_seconds": 0} == {
        "status": "done", "step": 24, "wall_seconds": 0, "error": reason,
    }  # fmt: skip
    again = qat_run(*SHORT, "logger=none")
    assert (again.code, again.out) == (0, f"finished already: {run.folder}; its page: qat-report {run.folder}\n")


def test_a_page_that_could_not_be_written_can_be_written_later(qat_run, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setitem(sys.modules, "matplotlib.figure", None)  # its import raises
        for name in [name for name in sys.modules if name.startswith("qat_ste.report.run.")]:
            broken.delitem(sys.modules, name)
        broken.delitem(sys.modules, "qat_ste.report.pages", raising=False)
        run = qat_run("-m", *SHORT, "logger=none", "hydra.sweep.dir=sweep")
    assert run.code == 1
    (folder,) = Path("sweep").resolve().glob("*/")
    assert "failed" in run.out and "the report could not be written: ModuleNotFoundError" in " ".join(run.out.split())
    assert run.out.splitlines()[-1] == f"1 failed: {folder.parent}"
    monkeypatch.setattr(sys, "argv", ["qat-report", str(folder)])
    report_cli.main()
    assert {path.stem for path in (folder / "figures").iterdir()} == set(FIGURES) - set(OF_SEGMENTS)
    assert (folder / "report.html").is_file()


def test_a_figure_that_fails_costs_nothing_else(qat_run, monkeypatch):
    from qat_ste.report.run import figures

    def broken(run):
        raise OSError("No space left on device")

    monkeypatch.setitem(figures.FIGURES, "curves", broken)
    run = qat_run(*SHORT, "logger=none")
    assert run.code == 0
    assert "figure curves could not be drawn: OSError: No space left on device" in run.err
    assert (run.folder / "report.html").is_file()
    assert not (run.folder / "figures" / "curves.png").exists()
    assert run.read("status.json")["status"] == "done"


def test_starting_ranks_on_gpus_opens_no_context_in_the_process_that_starts_them(monkeypatch):
    """Without a GPU here, any use of one would be refused."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    done = command("dry_run=true", "runtime.devices=2", "runtime.device=cuda")
    assert done.code == 0, done.err
    assert "4 members x" in done.out
    if not torch.cuda.is_available():
        monkeypatch.setenv("LOCAL_RANK", "1")  # as in a rank, which tries its GPU
        assert (
            "runtime.device=cuda: must be a device that this machine has"
            in command("dry_run=true", "runtime.devices=2", "runtime.device=cuda").err
        )
