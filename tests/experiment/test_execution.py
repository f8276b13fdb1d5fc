"""How a step is computed, beside the plain way of computing it."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from qat_ste import Execution
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.execution import Graphed, candidates, check_execution, fastest
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

    def make(module, sample):
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


def test_graphs_are_never_chosen_where_gradients_accumulate():
    """Gradients of captured passes alias there (pytorch issue 181723)."""
    with pytest.raises(ValueError, match="CUDA graphs do not accumulate gradients"):
        check_execution("graph", torch.device("cuda", 0), 1, accumulate=4)
    assert "graph" in candidates(1)
    assert "graph" not in candidates(2)


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
