"""What the theorem means: with steps five times smaller the adjusted STE comes at least three times closer, for each
estimator that it covers and for none that it does not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qat_ste import UniformQuantizer, estimators
from qat_ste.estimators import Cosine, Estimator, Ewgs, StableQat, SwishSign, Xnor
from qat_ste.experiment.counterparts import MemberSpec, adjust
from qat_ste.optimizers import Adjustment, Equivalence
from qat_ste.quantizers.quantizer import Quantizer
from tests.theory import slow_whole_line, test_catalogue

WEIGHTS, SWINGS, DISTANCE = 200, 2, 2.0  # the learning rate times the number of steps, in units of max
CLOSER = 3.0
LINEAR = Adjustment(Equivalence.REMAP, "gradient descent")
ONE_BIT, TWO_BITS = (UniformQuantizer(bits, torch.tensor(1.0, dtype=torch.float64), "none") for bits in (1, 2))


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def descend(estimator: Estimator, w: Tensor, quantizer: Quantizer, lr: float, steps: int) -> tuple[Tensor, float]:
    """Final weights and length of the way, under gradients that depend on Q(w) and on time alone."""
    torch.manual_seed(1)
    phase, coupling, way = 2 * math.pi * uniform(WEIGHTS), (uniform(WEIGHTS, WEIGHTS) - 0.5) / math.sqrt(WEIGHTS), 0.0
    for step in range(steps):
        gradient = torch.cos(2 * math.pi * SWINGS * step / steps + phase) + coupling @ quantizer(w)
        change = lr * estimator.backward(gradient, w, quantizer)
        w, way = w - change, way + change.abs().sum().item()
    return w, way


def errors(name: str, estimator: Estimator, quantizer: Quantizer) -> list[float]:
    """Alignment errors of a counterpart with a learning rate and with a fifth of it."""
    adjustment, pair = adjust(LINEAR, estimator, quantizer)
    spec = MemberSpec.of(name, estimator, adjustment.equivalence, pair, mirrors=False)
    torch.manual_seed(0)
    initial, found = 1.9 * uniform(WEIGHTS) - 0.95, []
    for steps in (200, 1000):
        reference, _ = descend(estimator, initial, quantizer, DISTANCE / steps, steps)
        start = initial
        if spec.remap:
            start, reference = pair.weight_map(initial), pair.weight_map(reference)
        lr = DISTANCE / steps * spec.lr_factor
        counterpart, way = descend(spec.estimator, start, quantizer, lr, steps)
        found.append((reference - counterpart).abs().sum().item() / way)
    return found


WHOLE_LINE = [name for name in slow_whole_line.VALUES if name != "SwishSign"]
PERIODIC = [name for name in test_catalogue.VALUES if name not in {"Ewgs", "Scaled"}]  # M of the latter is exact


@pytest.mark.parametrize(
    ("estimator", "quantizer"),
    [
        *((getattr(estimators, name)(), TWO_BITS if name == "Mad" else ONE_BIT) for name in WHOLE_LINE),
        (Xnor(n=9.0, c=1.0), ONE_BIT),
        *(pytest.param(getattr(estimators, name)(), TWO_BITS, marks=pytest.mark.slow) for name in PERIODIC),
    ],
    ids=str,
)
def test_what_is_covered_comes_closer(estimator, quantizer):
    large, small = errors("ste", estimator, quantizer)
    assert small < large / CLOSER
    large, small = errors("naive", estimator, quantizer)
    assert small > large / 1.5, "negative control: without M a smaller learning rate does not bring them together"


@pytest.mark.parametrize(
    ("estimator", "quantizer"),
    [(SwishSign(), ONE_BIT), (Cosine(1.0), TWO_BITS), (StableQat(0.25), TWO_BITS)],
    ids=str,
)
def test_a_counter_example_does_not(estimator, quantizer):
    large, small = errors("ste", estimator, quantizer)
    assert small > large / 1.5
    assert small > 0.05


@pytest.mark.parametrize("delta", [0.2, 1.0])
def test_ewgs_does_not_either_for_all_its_alpha_and_map(delta):
    """The pull towards the levels is of first order: it stays while the learning rate shrinks."""
    large, small = errors("ste", Ewgs(delta), TWO_BITS)
    assert small == pytest.approx(large, rel=0.1)
    assert small > delta / 20
