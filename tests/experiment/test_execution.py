"""How a step is computed, beside the plain way of computing it."""

from __future__ import annotations

import random
import shutil
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn

from qat_ste import Execution
from qat_ste.base.errors import ArgumentError
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.execution import Graphed, candidates, check_execution, fastest, find_device, warn_of_tf32
from qat_ste.experiment.randomness import seed_noise
from tests.experiment.tiny import batches, network, run


def test_accumulated_gradients_are_those_of_the_whole_batch():
    def plain():
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).double()

    data = [(inputs.double(), targets) for inputs, targets in batches(size=15)]
    arguments = {"build_model": plain, "batches": data, "validation": None, "steps": 12}
    whole = run(**arguments)
    parts = run(**arguments, accumulate=4)  # of 4, 4, 4 and 3 images
    for name, numbers in whole.counterparts.items():
        assert parts.counterparts[name].weight_alignment_error == pytest.approx(
            numbers.weight_alignment_error, rel=1e-9
        )
    assert [row["ste/train_loss"] for row in parts.rows] == pytest.approx([row["ste/train_loss"] for row in whole.rows])
    other = run(**arguments | {"batches": [(x[:12], y[:12]) for x, y in data]}, accumulate=4)
    assert other.rows[-1]["ste/train_loss"] != pytest.approx(whole.rows[-1]["ste/train_loss"], rel=1e-6)


def test_bf16_rounds_the_passes_and_leaves_the_latent_weights_alone():
    full, half = (run(steps=10, counterparts=["ste"], precision=p) for p in ("fp32", "bf16"))
    assert all(parameter.dtype == torch.float32 for parameter in half.models["ste"].parameters())
    assert half.reference.test_loss != full.reference.test_loss
    assert half.reference.test_loss == pytest.approx(full.reference.test_loss, rel=0.05)
    assert half.counterparts["ste"].initial_alignment_error == 0


@pytest.mark.parametrize(("name", "value", "message"), [
    ("precision", "fp16", "precision must be one of fp32, bf16, got 'fp16'"),
    ("execution", "fast", "execution must be one of auto, eager, compile, graph, got 'fast'"),
])  # fmt: skip
def test_execution_refuses(name, value, message):
    with pytest.raises(ValueError, match=message):
        Execution(**{name: value})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_is_eager_but_for_rounding():
    """Without dropout, whose noise a compiler draws in its own way; with it the members still share the noise."""
    arguments = {"steps": 6, "counterparts": ["ste"], "lr": 0.003, "build_model": lambda: network(0.0)}
    eager, compiled = run(**arguments), run(**arguments, execution="compile")
    assert compiled.reference.test_loss == pytest.approx(eager.reference.test_loss, rel=1e-5)
    assert compiled.counterparts["ste"].weight_alignment_error == pytest.approx(
        eager.counterparts["ste"].weight_alignment_error, rel=1e-2
    )
    assert not any("_orig_mod" in name for name in compiled.models["ste"].state_dict())
    noisy = run(steps=6, counterparts=["replica"], execution="compile")
    assert noisy.counterparts["replica"].weight_alignment_error == 0


def test_auto_is_eager_where_eager_is_the_same_to_the_bit_each_time():
    eager, auto = (run(steps=5, execution=mode) for mode in ("eager", "auto"))
    assert auto.rows == eager.rows


def test_graphs_need_a_gpu():
    with pytest.raises(ValueError, match="CUDA graphs need one GPU"):
        run(execution="graph")


def test_the_fastest_counts_how_long_it_takes_to_start(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def candidate(first, each):
        seconds = iter([first] + [each] * 100)
        return lambda: now.__setitem__(0, now[0] + next(seconds))

    def chosen(steps):
        return fastest([("eager", candidate(2, 2)), ("compile", candidate(100, 1)), ("graph", broken)], steps)

    def broken():
        raise RuntimeError("no graph")

    assert chosen(50) == "eager"
    assert chosen(150) == "compile"
    with pytest.raises(RuntimeError, match="graph: RuntimeError: no graph"):
        fastest([("graph", broken)], 10)


@pytest.fixture
def pretended_graphs(monkeypatch):
    """CUDA graphs as torch makes them, but for the GPU: warm-up runs, and parameters that lie where they lay then."""
    shapes = []

    def make(module, sample, allow_unused_input):
        assert allow_unused_input
        for _ in range(3):
            module(*sample).sum().backward()
        torch.rand(1)
        module.zero_grad()
        lay = [parameter.data_ptr() for parameter in module.parameters()]
        forward = module.forward

        def graphed(*inputs):
            shapes.append(inputs[0].shape)
            assert inputs[0].shape == sample[0].shape
            assert [parameter.data_ptr() for parameter in module.parameters()] == lay
            return forward(*inputs)

        module.forward = graphed
        return module

    monkeypatch.setattr("torch.cuda.make_graphed_callables", make)
    return shapes


def test_graphs_of_the_passes_are_the_passes(monkeypatch, pretended_graphs):
    """On a CPU what can be seen there: captured once a member, with the noise and the running means as before."""
    arguments = {"steps": 6, "batches": batches(size=15), "accumulate": 4}  # of 4, 4, 4, 3 images
    eager = run(**arguments)
    assert not pretended_graphs
    monkeypatch.setattr(Cohort, "choose_mode", lambda cohort, *_: [m.execute("graph") for m in cohort.local.values()])
    graphs = run(**arguments)
    assert len(pretended_graphs) == 6 * 3 * len(eager.models), "steps, parts as large as the first, members"
    assert graphs.rows == eager.rows


def test_a_graph_is_for_one_shape_and_leaves_the_module_as_it_was(pretended_graphs):
    module = nn.Sequential(nn.BatchNorm1d(3))
    graphed, forward = Graphed(module), module.forward
    x = torch.rand(4, 3)
    state = torch.get_rng_state()
    graphed(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert module[0].num_batches_tracked == 1
    torch.testing.assert_close(module[0].running_mean, 0.1 * x.mean(0))
    graphed(torch.rand(2, 3))
    assert pretended_graphs == [x.shape]
    assert module.forward == forward


def test_graphs_refuse_tensors_elsewhere_than_when_they_were_captured(pretended_graphs):
    """A graph would go on reading the memory of the tensor that was replaced."""
    module, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.rand(4, 3)
    graphed = Graphed(module)
    graphed(x)
    module[0].weight.data.mul_(2)
    graphed(x)
    module[0].bias.data = torch.ones(3)
    with pytest.raises(ArgumentError, match="^execution must be eager or compile: the optimizer or the model replaces"):
        graphed(x)


class Counts(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.body, self.change, self.steps = network(0.0), change, 0
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.change(self)
        return self.body(x)


def counting(model):
    model.steps += 1


def replacing(model):
    model.mean = model.mean + 1


def drawing(model):
    random.random()


def in_place(model):
    model.mean += 1


@pytest.mark.parametrize(("change", "reason"), [
    (counting, "the change of steps in each step"), (replacing, "the change of mean in each step"),
    (drawing, "random numbers drawn on the CPU"), (in_place, ""),
])  # fmt: skip
def test_what_graphs_do_not_repeat_is_found_before_training(change, reason, monkeypatch):
    needs = []
    make_members = Cohort.make_members
    monkeypatch.setattr(Cohort, "make_members", lambda cohort: needs.append(cohort.needs) or make_members(cohort))
    run(build_model=partial(Counts, change), steps=2)
    assert needs[0].not_replayed == reason
    monkeypatch.setattr("qat_ste.experiment.cohort.check_execution", lambda *_: None)
    monkeypatch.setattr(Graphed, "__call__", lambda self, inputs: self._module(inputs))
    if reason:
        with pytest.raises(ArgumentError, match=f"CUDA graphs would not repeat {reason}, got 'graph'$"):
            run(build_model=partial(Counts, change), steps=2, execution="graph")
    else:
        run(build_model=partial(Counts, change), steps=2, execution="graph")


def test_graphs_are_never_chosen_where_gradients_accumulate():
    """Gradients of captured passes alias there (pytorch issue 181723)."""
    with pytest.raises(ValueError, match="CUDA graphs do not accumulate gradients"):
        check_execution("graph", torch.device("cuda", 0), 1, accumulate=4)
    assert "graph" in candidates(1)
    assert "graph" not in candidates(2)
    assert "graph" not in candidates(1, replayable=False)


def test_the_process_that_launches_ranks_makes_no_tensor_on_a_gpu(monkeypatch):
    """This machine need not have a GPU: here making one would raise."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert find_device("cuda", launching=True) == find_device("auto", launching=True) == torch.device("cuda", 0)
    with pytest.raises(ArgumentError, match=r"device must be a device that this machine has \(it has 2 GPUs\)"):
        find_device("cuda:2", launching=True)
    made = []
    monkeypatch.setattr("torch.zeros", lambda *_, device: made.append(device) or torch.ones(1))
    find_device("cuda:1")
    assert made == [torch.device("cuda:1")], "a process that trains there tries it"


def test_noise_is_seeded_on_the_device_that_is_used(monkeypatch):
    """torch.cuda.manual_seed seeds the current device, which need not be the one that trains."""
    current, seeded = ["cuda:0"], []

    @contextmanager
    def device(which):
        current.append(str(which))
        yield
        current.pop()

    monkeypatch.setattr("torch.cuda.device", device)
    monkeypatch.setattr("torch.cuda.manual_seed", lambda number: seeded.append((current[-1], number)))
    seed_noise(3, 7, torch.device("cuda:1"))
    assert seeded == [("cuda:1", 3 * 1_000_003 + 7)]
    seed_noise(3, 7, torch.device("cpu"))
    assert len(seeded) == 1


def test_tf32_is_told_of_where_it_is_on(monkeypatch, caplog):
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", True)
    warn_of_tf32(torch.device("cpu"))
    assert not caplog.messages
    warn_of_tf32(torch.device("cuda", 0))
    assert "TF32 is on" in caplog.text
    caplog.clear()
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", False)
    warn_of_tf32(torch.device("cuda", 0))
    assert not caplog.messages
