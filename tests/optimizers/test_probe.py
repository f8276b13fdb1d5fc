"""The adjustments of known optimizers agree with ``probe``; ``probe`` on other optimizers."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import optim

from qat_ste.app.compose import config_dir
from qat_ste.optimizers import KNOWN, Equivalence, Lion, adjustment_of, probe

OPTIONS = sorted(Path(config_dir(), "optimizer").glob("*.yaml"))
LISTED = {path.stem: instantiate(OmegaConf.load(path), _convert_="all") for path in OPTIONS}
TABLE = LISTED | {str(kind): kind for kind in KNOWN if kind not in [make.func for make in LISTED.values()]}


class Signs(optim.Optimizer):
    """Sign descent in three lines."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                w -= group["lr"] * self.direction(w, w.grad)

    def direction(self, w, gradient):
        return gradient.sign()


class SomeSigns(Signs):
    """Draws random numbers, which must be the same in the runs that ``probe`` compares."""

    def direction(self, w, gradient):
        return gradient.sign() * (torch.rand_like(gradient) < 0.5)


class Scaled(Signs):
    def direction(self, w, gradient):
        return 3 * gradient


class Summed(Signs):
    """Similar to Adagrad."""

    def direction(self, w, gradient):
        state = self.state[w]
        state["sum"] = state.get("sum", 0) + gradient**2
        return gradient / state["sum"].sqrt()


class SignOfMomentum(Signs):
    def direction(self, w, gradient):
        state = self.state[w]
        state["momentum"] = 0.9 * state.get("momentum", 0) + gradient
        return state["momentum"].sign()


class Normalized(Signs):
    def direction(self, w, gradient):
        return gradient / gradient.norm()


class NormalizedByTheWeights(Signs):
    def direction(self, w, gradient):
        return gradient * w.norm() / gradient.norm()


class NormalizedOnce(Signs):
    def direction(self, w, gradient):
        return gradient / self.state[w].setdefault("first", gradient.abs())


class Cubed(Signs):
    def direction(self, w, gradient):
        return gradient**3


class Clipped(optim.SGD):
    def __init__(self, params, lr, clip=math.inf):
        self.clip = clip
        super().__init__(params, lr=lr, momentum=0.9)

    def step(self):
        for group in self.param_groups:
            for w in group["params"]:
                w.grad.clamp_(-self.clip, self.clip)
        super().step()


class ClippedByNorm(Clipped):
    def step(self):
        for group in self.param_groups:
            if self.clip < math.inf:
                torch.nn.utils.clip_grad_norm_(group["params"], self.clip)
        optim.SGD.step(self)


class LearningRateOfFirstGroup(Signs):
    def direction(self, w, gradient):
        return gradient / self.param_groups[0]["lr"]


class Motionless(Signs):
    def direction(self, w, gradient):
        return 0 * gradient


class Exploding(Signs):
    def direction(self, w, gradient):
        return gradient / 0


class Raising(Signs):
    def step(self):
        raise RuntimeError("not\ntoday")


@pytest.mark.parametrize("make", TABLE.values(), ids=TABLE)
def test_known_adjustments_agree_with_probe(make):
    kind = getattr(make, "func", make)
    assert probe(make).equivalence is KNOWN[kind].equivalence
    assert adjustment_of(make, lr=1.0) is KNOWN[kind]


def test_required_optimizers_are_listed():
    required = "sgd keras_sgd adam adamw nadam adamax rmsprop rprop adagrad adafactor muon lion signsgd"
    assert set(required.split()) == set(LISTED)
    assert all(a.reason and (a.condition or a.equivalence is Equivalence.NONE) for a in KNOWN.values())


@pytest.mark.parametrize(
    ("make", "equivalence"),
    [
        (Signs, "exact"),
        (SomeSigns, "exact"),
        (Scaled, "remap"),
        (Summed, "none"),
        (SignOfMomentum, "keep"),
        (Normalized, "none"),
        (NormalizedByTheWeights, "none"),
        (NormalizedOnce, "none"),
        (Cubed, "none"),
        (LearningRateOfFirstGroup, "none"),
        (Motionless, "none"),
        (Exploding, "none"),
        (Raising, "none"),
        (lambda params, lr: 1 / 0, "none"),
        (optim.LBFGS, "none"),
        (partial(optim.SGD, momentum=0.99, nesterov=True, weight_decay=0.1), "remap"),
        (partial(optim.AdamW, betas=(0.9, 0.95), weight_decay=0.1), "keep"),
        (partial(optim.RMSprop, alpha=0.9, momentum=0.9, centered=True), "keep"),
        (partial(Lion, betas=(0.9, 0.95), weight_decay=0.1), "keep"),
    ],
)
def test_probe_recognizes_an_optimizer_by_its_steps(make, equivalence):
    adjustment = probe(make)
    assert adjustment.equivalence == equivalence, adjustment
    assert adjustment.tested
    assert "\n" not in str(adjustment)


@pytest.mark.parametrize(
    ("make", "off", "on", "plain"),
    [
        (partial(optim.Adam, betas=(0.9, 0.95)), {"amsgrad": False}, {"amsgrad": True}, "keep"),
        (Clipped, {}, {"clip": 1.0}, "remap"),
        (ClippedByNorm, {}, {"clip": 1.0}, "remap"),
        (partial(optim.Adam, betas=(0.9, 0.95)), {"eps": 1e-7}, {"eps": 1.0}, "keep"),
    ],
)
def test_one_option_changes_the_adjustment(make, off, on, plain):
    assert probe(partial(make, **off)).equivalence == plain
    assert probe(partial(make, **on)).equivalence == "none"


@pytest.mark.parametrize(
    ("beta2", "memory"), [(0.9, "64"), (0.99, "512"), pytest.param(0.999, "4,096", marks=pytest.mark.slow)]
)
def test_probe_measures_the_memory(beta2, memory):
    assert f" {memory} steps" in probe(partial(optim.Adam, betas=(0.9, beta2))).condition


def test_known_classes_are_looked_up_and_others_tested():
    assert adjustment_of(optim.SGD, lr=1.0) is KNOWN[optim.SGD]
    assert adjustment_of(partial(optim.Adam, amsgrad=True), lr=1.0).equivalence == "none", "not that of the class"
    assert adjustment_of(partial(Clipped, clip=1.0), lr=1.0).equivalence == "none", "not that of the base class"
    derived = adjustment_of(Clipped, lr=1.0)
    assert (derived.equivalence, derived.tested) == ("remap", True)


def test_probe_is_reproducible_and_keeps_the_random_state():
    seen = [[], []]
    for seed, gradients in enumerate(seen):
        torch.manual_seed(seed)
        before = torch.get_rng_state()

        class Recording(Signs):
            def direction(self, w, gradient, gradients=gradients):
                gradients.append(torch.stack([w.detach(), gradient]))
                return gradient

        assert probe(Recording).equivalence == "remap"
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(torch.stack(seen[0]), torch.stack(seen[1]))
