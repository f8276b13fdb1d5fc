"""Models and optimizers with habits that users bring: each is trained right, or refused by name before training."""

from __future__ import annotations

import logging
import pickle
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

from qat_ste import ArgumentError, Checkpoints, compare, remove_quantizers
from qat_ste.estimators import Tanh
from qat_ste.experiment.lockstep import Stopped
from qat_ste.experiment.model_copy import copy_model
from qat_ste.fake_quant.fake_quantize import quantize_weights, quantized_tensors
from tests.arguments import WEIGHTS, quantized, sorted_arguments
from tests.experiment.tiny import SGD, batches, network, run


class InPlace(nn.Module):
    def forward(self, x):
        return x.mul_(2).sub_(1)


class OutOfPlace(nn.Module):
    def forward(self, x):
        return x * 2 - 1


def after(first: nn.Module) -> nn.Module:
    return nn.Sequential(first, *network(0.0))


def replica_error(comparison) -> float:
    return comparison.counterparts["replica"].weight_alignment_error


def continued(tmp_path, build, at: int = 12, make_batches=batches, **changes):
    """The rows of a run in one go, and of one stopped after ``at`` steps and resumed."""
    arguments = {"build_model": build, "steps": 20, "every": 1, "steps_per_epoch": 5} | changes
    whole = run(batches=make_batches(), **arguments)
    calls = iter(range(1, 100))
    with pytest.raises(Stopped):
        run(batches=make_batches(), **arguments, checkpoints=Checkpoints(tmp_path), stop=lambda: next(calls) == at)
    return whole.rows, run(batches=make_batches(), **arguments, checkpoints=Checkpoints(tmp_path)).rows


def test_a_model_that_works_in_place_on_its_inputs():
    data = batches()
    before = [(inputs.clone(), targets.clone()) for inputs, targets in data]
    changes = {"steps": 20, "batches": data, "validation": data[:2], "counterparts": ["ste", "replica"]}
    in_place = run(build_model=lambda: after(InPlace()), **changes)
    assert replica_error(in_place) == 0
    for batch, old in zip(data, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, old, strict=True))
    assert in_place.rows == run(build_model=lambda: after(OutOfPlace()), **changes).rows


def test_a_loss_that_works_in_place():
    data = batches()
    before = [(inputs.clone(), targets.clone()) for inputs, targets in data]

    def in_place(outputs, targets):
        return F.cross_entropy(outputs.mul_(0.5), targets.clamp_(max=2))

    changes = {"steps": 10, "batches": data, "validation": data[:2], "counterparts": ["ste"]}
    rows = run(loss=in_place, **changes).rows
    assert all(torch.equal(a, b) for batch, old in zip(data, before, strict=True) for a, b in zip(batch, old))
    assert rows[-1]["ste/validation_accuracy"] == run(loss=lambda o, t: F.cross_entropy(o * 0.5, t.clamp(max=2)),
                                                      **changes).rows[-1]["ste/validation_accuracy"]  # fmt: skip


def test_modules_that_the_user_put_into_evaluation_mode_stay_there():
    def build():
        model = network()
        model[1].eval()
        return model

    with_validation, without = (
        run(build_model=build, validation=validation, steps=20, steps_per_epoch=5) for validation in (batches(2), None)
    )
    for comparison in (with_validation, without):
        assert comparison.models["reference"][1].num_batches_tracked == 0
    assert torch.equal(*(each.models["reference"][5].bias for each in (with_validation, without)))
    assert run(steps=20, steps_per_epoch=5).models["reference"][1].num_batches_tracked == 20, "control: training mode"


def test_hooks_and_attributes_of_parameters_are_copied():
    def build():
        model = network()
        model[0].bias.register_hook(torch.zeros_like)
        model[5].bias.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
        model[1].weight.tag = "no decay"
        return model

    comparison = run(build_model=build, steps=5)
    torch.manual_seed(0)
    start = build()
    for model in comparison.models.values():
        assert torch.equal(model[0].bias, start[0].bias)
        assert torch.equal(model[5].bias, start[5].bias)
        assert not torch.equal(model[1].bias, start[1].bias), "control: without a hook it moves"
        assert model[1].weight.tag == "no decay"


def test_a_hook_on_a_quantized_weight_is_refused_by_name():
    def build():
        model = network()
        model[0].weight.register_hook(torch.zeros_like)
        return model

    with pytest.raises(ArgumentError, match=r"build_model must be .* without hooks on quantized weights \(0.weight"):
        run(build_model=build)


class PythonNoise(nn.Module):
    def forward(self, x):
        return x if random.random() < 0.5 else x + np.random.rand()


def test_noise_of_pythons_and_numpys_generators_is_shared_and_resumed(tmp_path):
    python, numpy = random.getstate(), np.random.get_state()[1].copy()
    assert replica_error(run(build_model=lambda: after(PythonNoise()), counterparts=["replica"])) == 0
    whole, resumed = continued(tmp_path, lambda: after(PythonNoise()))
    assert whole == resumed
    assert random.getstate() == python
    assert (np.random.get_state()[1] == numpy).all(), "the caller's generators are as they were"


ENTROPY = random.SystemRandom()


class ForeignNoise(nn.Module):
    def forward(self, x):
        return x + ENTROPY.random()


def test_randomness_that_cannot_be_seeded_is_refused_by_the_name_of_its_module():
    with pytest.raises(ArgumentError, match=r"build_model must be one that repeats itself: .* in the output of 0 "):
        run(build_model=lambda: after(ForeignNoise()))
    with pytest.raises(ArgumentError, match="loss must be one that repeats itself: .* differ in the loss"):
        run(loss=lambda outputs, targets: F.cross_entropy(outputs, targets) * (1 + ENTROPY.random()))


class OwnGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return x + torch.rand(1, generator=self.generator)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x / self.calls


@pytest.mark.parametrize(("module", "name"), [(OwnGenerator, "0.generator"), (Counting, "0.calls")])
def test_state_outside_the_state_dict_is_shared_and_reported_where_a_run_is_saved(module, name, tmp_path, caplog):
    build = partial(after, module())
    assert replica_error(run(build_model=build, counterparts=["replica"], validation=None)) == 0
    assert not caplog.records, "without checkpoints there is nothing to report"
    with caplog.at_level(logging.WARNING):
        run(build_model=build, checkpoints=Checkpoints(tmp_path), steps=5)
    assert f"its numbers will differ: the model keeps state outside its state_dict ({name})" in caplog.text


class MaxNorm(nn.Linear):
    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 0.1)
        return super().forward(x)


class Clamped(nn.Linear):
    def forward(self, x):
        self.weight.data.clamp_(-0.01, 0.01)
        return super().forward(x)


@pytest.mark.parametrize("layer", [MaxNorm, Clamped])
def test_a_forward_pass_that_changes_a_quantized_weight_is_refused_by_name(layer):
    def build():
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), layer(128, 4))

    with pytest.raises(ArgumentError, match=r"leaves quantized weights as they are .*2\.weight"):
        run(build_model=build)
    assert run(build_model=build, include=["Conv2d"], steps=5).steps == 5, "unquantized it is the user's own business"


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 4)

    def forward(self, x):
        x = x[:, 0]
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.layer, self.head = kind(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        state = None
        for step in x[:, 0].unbind(1):
            state = self.layer(step, state)
        return self.head(state[0])


class Kernel(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(36, 4) / 6), nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return x.flatten(1) @ self.kernel + self.shift


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain, self.head = nn.Parameter(torch.ones(36)), nn.Linear(36, 4)

    def forward(self, x):
        return self.head(x.flatten(1) * self.gain)


@pytest.mark.parametrize(
    ("build", "include", "tensors"),
    [
        (Attention, ["MultiheadAttention", "Linear"], {"attention.in_proj_weight", "attention.out_proj.weight",
                                                       "head.weight"}),
        (Attention, ["attention"], {"attention.in_proj_weight"}),
        (partial(Recurrent, nn.LSTMCell), ["LSTMCell"], {"layer.weight_ih", "layer.weight_hh"}),
        (lambda: nn.Sequential(Kernel()), ["Kernel"], {"0.kernel"}),
    ],
)  # fmt: skip
def test_weights_that_are_not_called_weight_are_quantized(build, include, tensors):
    comparison = run(build_model=build, include=include, steps=5)
    assert set(comparison.counterparts["ste"].layers) == tensors
    model = comparison.models["reference"].eval()
    data = batches()[0][0]
    plain = remove_quantizers(copy_model(model))
    for name, latent, fake_quantize in quantized_tensors(model):
        assert torch.equal(plain.get_parameter(name), fake_quantize(latent)), "the levels"
        assert not torch.equal(plain.get_parameter(name), latent)
    torch.testing.assert_close(model(data), plain(data), msg="and training and evaluation use them")


@pytest.mark.parametrize(
    ("build", "include", "words"),
    [
        (Recurrent, ["LSTM", "Linear"], "layer: LSTM does not read its weights from its attributes"),
        (Scaled, ["Scaled"], "its parameters gain are neither called weight nor matrices"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), ["Linear"], "1.weight has no shape before the first"),
        (lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.utils.weight_norm(nn.Conv2d(8, 4, 4)), nn.Flatten()), ["Conv2d"],
         "1.weight is neither a parameter nor a buffer"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_quantized_are_refused_by_name(build, include, words):
    with pytest.raises(ArgumentError, match=words):
        run(build_model=build, include=include)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        partial(prune.l1_unstructured, name="weight", amount=0.5),
    ],
)
def test_reparametrized_layers_train_where_they_are_not_quantized(wrap):
    comparison = run(
        build_model=lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), wrap(nn.Linear(128, 4))),
        include=["Conv2d"], counterparts=["ste", "replica"], steps=10,
    )  # fmt: skip
    assert replica_error(comparison) == 0
    assert comparison.counterparts["ste"].weight_alignment_error > 0


class MadeInForward(nn.Module):
    """A buffer made in the first forward pass, one that grows, one that goes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", None)
        self.register_buffer("queue", torch.zeros(0))
        self.register_buffer("first", torch.ones(1))

    def forward(self, x):
        if self.training:
            self.mean = x.detach().mean(0) if self.mean is None else 0.9 * self.mean + 0.1 * x.detach().mean(0)
            self.queue = torch.cat([self.queue, x.detach().mean().reshape(1)])
            self.first = None
        return x - self.mean + self.queue.mean()


def test_buffers_that_come_grow_and_go_are_resumed(tmp_path):
    whole, resumed = continued(tmp_path, lambda: after(MadeInForward()))
    assert whole == resumed


class Outputs(nn.Module):
    """A network with an auxiliary head that returns both outputs in a structure."""

    def __init__(self, structure):
        super().__init__()
        self.model, self.auxiliary, self.structure = network(0.0), nn.Linear(36, 4), structure

    def forward(self, x):
        return self.structure(self.model(x), self.auxiliary(x.flatten(1)))


@pytest.mark.parametrize(("structure", "first"), [(lambda a, b: {"y": a, "aux": b}, "y"), (lambda a, b: (a, b), 0)])
def test_outputs_of_any_structure(structure, first):
    def loss(outputs, targets):
        return F.cross_entropy(outputs[first], targets)

    comparison = run(build_model=lambda: Outputs(structure), loss=loss, steps=10, counterparts=["ste", "replica"])
    assert comparison.reference.test_accuracy is None
    assert comparison.reference.test_loss > 0
    assert replica_error(comparison) == 0


def test_float64_throughout():
    def build():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 1), nn.Sigmoid()).double()

    data = [(inputs.double(), (targets > 1).double()[:, None]) for inputs, targets in batches()]
    comparison = run(build_model=build, batches=data, validation=data[:2], loss=F.binary_cross_entropy, steps=5)
    outputs = [comparison.models["reference"](inputs) for inputs, _ in data[:2]]
    expected = F.binary_cross_entropy(torch.cat(outputs), torch.cat([targets for _, targets in data[:2]]))
    assert comparison.reference.test_loss == pytest.approx(expected.item(), rel=1e-12), "no rounding to float32"


class Force(nn.Module):
    """Returns the derivative of an energy with respect to the inputs."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Softplus(), nn.Flatten(), nn.Linear(128, 1))

    def forward(self, x):
        x = x.requires_grad_()
        return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0].flatten(1)[:, :4]


def test_a_forward_pass_that_takes_derivatives_is_evaluated():
    comparison = run(build_model=Force, steps=5, counterparts=["ste", "replica"])
    assert comparison.reference.test_loss > 0
    assert replica_error(comparison) == 0
    assert not any(inputs.requires_grad for inputs, _ in batches())


class Lambda(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(128, 4)
        self.features = lambda x: self.conv(x)

    def forward(self, x):
        return self.head(self.features(x).relu().flatten(1))


def test_a_copy_that_uses_the_original_is_refused():
    with pytest.raises(ArgumentError, match="the copy uses the original's conv.(weight|bias), perhaps in a lambda"):
        run(build_model=Lambda)


def test_sparse_gradients_are_trained_or_refused():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(10, 8, sparse=True), nn.Linear(288, 4)

        def forward(self, x):
            return self.head(self.embedding((x * 9).long()).flatten(1))

    assert run(build_model=Embedded, optimizer=torch.optim.SGD, steps=5).steps == 5
    with pytest.raises(ArgumentError, match="build_model must be a function whose quantized weights get dense ones"):
        run(build_model=Embedded, include=["Embedding", "Linear"], optimizer=torch.optim.SGD)


class Averaged(torch.optim.Optimizer):
    """Evaluates an average of its iterates, as schedule-free optimizers do; writes through ``data``."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "training": False})

    def _swap(self, training):
        for group in self.param_groups:
            for parameter in group["params"] if group["training"] != training else ():
                state = self.state[parameter]
                if state:
                    iterate = parameter.data.clone()
                    parameter.data.copy_(state["other"])
                    state["other"].copy_(iterate)
            group["training"] = training

    def train(self):
        self._swap(True)

    def eval(self):
        self._swap(False)

    def step(self, closure=None):
        for group in self.param_groups:
            assert group["training"], "called in evaluation mode"
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state.setdefault("other", parameter.data.clone())
                    parameter.data.add_(parameter.grad, alpha=-group["lr"])
                    state["other"].mul_(0.9).add_(parameter.data, alpha=0.1)


def test_an_optimizer_with_modes_is_evaluated_at_its_average():
    averaged, plain = (run(optimizer=optimizer, steps=10, validation=batches(2), steps_per_epoch=5,
                           build_model=partial(network, 0.0)) for optimizer in (Averaged, torch.optim.SGD))  # fmt: skip
    assert torch.equal(averaged.models["reference"][0].bias, plain.models["reference"][0].bias), "the same path"
    assert averaged.reference.test_loss != plain.reference.test_loss


class Replacing(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data = parameter.data - group["lr"] * parameter.grad


def test_optimizers_that_cannot_be_followed_are_refused_by_name():
    with pytest.raises(ArgumentError, match="optimizer must be one that changes weights in place, got '0.weight'"):
        run(optimizer=Replacing)
    with pytest.raises(ArgumentError, match=r"optimizer must be a function that takes parameter groups .*groups"):
        run(optimizer=torch.optim.LBFGS)


def pooled(seed: int):
    """In another process."""
    arguments = {"loss": F.cross_entropy, "estimator": Tanh(5.5), "optimizer": SGD, "lr": 0.05, "steps": 3}
    return compare(network, batches(), **sorted_arguments(arguments | {"seed": seed}))


def test_results_travel():
    here = pooled(1)
    there = pickle.loads(pickle.dumps(here))
    assert vars(there.counterparts["ste"]) == vars(here.counterparts["ste"])
    assert there.rows == here.rows
    assert there.models["ste"].state_dict().keys() == here.models["ste"].state_dict().keys()
    inputs = batches()[0][0]
    for name, model in here.models.items():
        assert torch.equal(model.eval()(inputs), there.models[name].eval()(inputs))


@pytest.mark.slow
def test_results_travel_from_a_process_pool():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(pooled, 1).result().rows == pooled(1).rows


def test_a_state_dict_holds_tensors_alone_and_survives_an_average():
    model = quantized(network(), Tanh(5.5), max=lambda w: w.abs().amax((1, 2, 3) if w.ndim == 4 else 1, keepdim=True))
    average = {name: torch.zeros_like(values, dtype=torch.float32) for name, values in model.state_dict().items()}
    for _ in range(3):
        for name, values in model.state_dict().items():
            average[name] = average[name] + values / 3
    other = quantized(network(), Tanh(5.5), max=lambda w: w.abs().amax((1, 2, 3) if w.ndim == 4 else 1, keepdim=True))
    assert not all(torch.equal(a.quantizer.max, b.quantizer.max) for (_, _, a), (_, _, b)
                   in zip(quantized_tensors(model), quantized_tensors(other), strict=True))  # fmt: skip
    other.load_state_dict(average)
    for (_, _, a), (_, _, b) in zip(quantized_tensors(model), quantized_tensors(other), strict=True):
        assert torch.equal(a.quantizer.levels, b.quantizer.levels)


def test_a_range_computed_from_the_weights_and_a_channel_of_zeros():
    largest = quantized(network(), Tanh(5.5), max=lambda w: w.abs().max())
    assert copy_model(largest)[0].weight.abs().max() > 0
    zeros = network()
    nn.init.zeros_(zeros[0].weight[3])
    with pytest.raises(ArgumentError, match=r"max must be positive and finite for every channel \(0.weight\)"):
        quantize_weights(zeros, WEIGHTS, Tanh(5.5), max=lambda w: w.detach().abs().amax(tuple(range(1, w.ndim)),
                                                                                        keepdim=True))  # fmt: skip


def test_a_failing_quantization_changes_nothing(monkeypatch):
    register, calls = parametrize.register_parametrization, []

    def fails_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("this layer keeps its weight")
        register(*arguments)

    for second, fault in ((nn.Linear(128, 4).half(), None), (nn.Linear(128, 4), fails_at_the_second)):
        model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), second)
        keys = list(model.state_dict())
        if fault:
            monkeypatch.setattr(parametrize, "register_parametrization", fault)
        with pytest.raises((ArgumentError, RuntimeError), match="float16|this layer keeps its weight"):
            quantized(model, Tanh(5.5))
        assert sorted(model.state_dict()) == sorted(keys)
        assert type(model[0]) is nn.Conv2d
