"""What only a GPU shows. ``scripts/gpu_check.py`` runs these tests where there is one."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qat_ste.base.errors import ArgumentError
from tests.experiment.test_execution import Counts, counting, drawing, replacing
from tests.experiment.test_waiting import COUNTERPARTS, EVERY, SETTINGS, STEPS
from tests.experiment.tiny import batches, network, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@contextmanager
def waits_raise():
    """Context in which torch raises where an operation waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Watched:
    """Batches from the CPU; while steps 1 to ``EVERY`` - 2 are trained, waiting raises."""

    steps_per_epoch = None

    def starting_at(self, step):
        data = batches()
        with ExitStack() as stack:
            while True:
                if step == 1:
                    stack.enter_context(waits_raise())
                if step == EVERY - 1:
                    stack.close()
                yield data[step % len(data)]
                step += 1


@pytest.fixture(autouse=True)
def _processed_every_eight_steps(monkeypatch):
    monkeypatch.setattr("qat_ste.divergence.trajectory.MAX_PENDING_STEPS", 8)


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_waits_between_rows(setting):
    arguments = {"batches": Watched(), "steps": STEPS, "every": EVERY, "validation": None, "counterparts": COUNTERPARTS}
    run(**arguments | {"device": "cuda", "execution": "eager"} | SETTINGS[setting])


def test_waiting_raises():
    with waits_raise(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device="cuda").item()


@pytest.mark.parametrize("execution", ["eager", "graph", "compile"])
def test_a_gpu_gets_the_numbers_of_a_cpu(execution):
    """In float64, without dropout, whose noise differs."""

    def build():
        return network(0.0).double()

    data = [(inputs.double(), targets) for inputs, targets in batches()]
    arguments = {"build_model": build, "batches": data, "validation": data[:2], "steps": 20, "lr": 0.01, "every": 5}
    arguments["counterparts"] = ["ste", "naive"]
    expected, found = run(**arguments), run(**arguments, device="cuda", execution=execution)
    for row, other in zip(found.rows, expected.rows, strict=True):
        assert row == pytest.approx(other, rel=1e-6, abs=1e-9), row["step"]
    for name, numbers in expected.counterparts.items():
        agreement = "compressed_change_point_sequence_agreement"
        for key in ("weight_alignment_error", "average_change_point_error", agreement):
            assert getattr(found.counterparts[name], key) == pytest.approx(getattr(numbers, key), rel=1e-6)


def test_dropout_in_graphs_draws_the_noise_of_eager_steps():
    found = [run(steps=6, device="cuda", execution=mode, validation=None, every=1) for mode in ("eager", "graph")]
    losses = [[row["ste/train_loss"] for row in each.rows] for each in found]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("change", [counting, replacing, drawing])
def test_graphs_are_refused_where_they_do_not_repeat_a_step(change):
    with pytest.raises(ArgumentError, match="CUDA graphs would not repeat"):
        run(build_model=lambda: Counts(change), steps=2, device="cuda", execution="graph")
    run(build_model=lambda: Counts(change), steps=2, device="cuda")


def test_accumulation_and_bf16_run_in_every_mode_that_allows_them():
    for arguments in ({"accumulate": 2}, {"precision": "bf16"}, {"precision": "bf16", "execution": "graph"}):
        run(steps=4, device="cuda", **arguments)


def test_resumed_runs_on(tmp_path):
    from qat_ste import Checkpoints

    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4))

    arguments = {"build_model": build, "loss": F.cross_entropy, "device": "cuda", "execution": "eager", "every": 5}
    steps = []
    whole = run(**arguments, steps=20)
    with pytest.raises(Exception, match="stopped after step 9"):
        run(**arguments, steps=20, checkpoints=Checkpoints(tmp_path), stop=lambda: steps.append(1) or len(steps) == 9)
    resumed = run(**arguments, steps=20, checkpoints=Checkpoints(tmp_path))
    assert [row["step"] for row in resumed.rows] == [row["step"] for row in whole.rows]
    assert resumed.rows[-1] == pytest.approx(whole.rows[-1], rel=1e-4)
