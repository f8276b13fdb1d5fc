"""Tests how an optimizer responds to rescaled gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, optim

from qat_ste.optimizers.adjustment import Adjustment, Equivalence

MakeOptimizer = Callable[..., optim.Optimizer]

SHAPE = (4, 6)  # a matrix: optimizers that treat a tensor as a whole do so from two dimensions
MEMORIES = (64, 512, 4096)
# Weights and steps are far below the gradients, so weight decay is negligible; the gradients are far above any ε.
LR, WEIGHT, MAGNITUDES = 1e-12, 1e-6, (1e-3, 1e-1, 1e1, 1e3)
SAME, FORGOTTEN = 0.02, 0.1  # largest relative differences between steps


def probe(make_optimizer: MakeOptimizer) -> Adjustment:
    """Finds the adjustment that an optimizer of any class needs by running it; never raises.

    An estimator multiplies a weight's gradients by g(w), a factor that differs between weights and changes as they
    move. Therefore the optimizer gets the same sequence of gradients, multiplied by factors that are

    * random for each weight and step: ``exact`` if no bit of the weights changes;
    * constant for each weight: ``remap`` if steps scale with them, ``keep`` if steps stay the same, else ``none``;
    * 1 for N steps and then constant for N steps: the last steps must be those under factors that are constant from
      the start, with N from 64 up to 4,096; else the optimizer does not forget, and the result is ``none``.

    Steps need not be linear in the gradients: to first order in η, the theorem only requires that they scale.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            return _run_tests(make_optimizer)
    except Exception as error:  # users' optimizers may raise anything
        return _none(f"it cannot be tested ({' '.join(str(error).split())})")


def _run_tests(make: MakeOptimizer) -> Adjustment:
    length = MEMORIES[0]
    gradients = _gradients(length)
    plain = _path(make, gradients)
    if not plain.isfinite().all():
        return _none("its steps are not finite")
    if plain.diff(dim=0).count_nonzero() == 0:
        return _none("it does not move the weights")
    if torch.equal(plain, _path(make, gradients * 2 ** (8 * torch.rand_like(gradients) - 4))):
        return Adjustment(
            Equivalence.EXACT,
            "factors on the gradients do not change a step",
            "gradients do not vanish, and the loss has no penalty on the weights",
            tested=True,
        )
    factors = 4.0 ** torch.randint(0, 2, SHAPE) / 2
    rescaled = _path(make, gradients * factors)
    if _scaled(rescaled, plain, factors, SAME):
        if not _scaled(_path(make, gradients, lr=2 * LR), plain, torch.tensor(2.0), SAME):
            return _none("its steps scale with the gradients, but not with the learning rate of their parameter group")
        equivalence, expected, reason = Equivalence.REMAP, factors, "steps scale with a weight's gradients"
    elif _scaled(rescaled, plain, torch.ones(()), SAME):
        equivalence, expected, reason = Equivalence.KEEP, torch.ones(()), "a factor on a weight's gradients cancels"
    else:
        return _none("factors on a weight's gradients neither scale its steps nor cancel")
    for memory in MEMORIES:
        gradients = _gradients(2 * memory)
        changed = gradients.clone()
        changed[memory:] *= factors
        if _scaled(_path(make, changed), _path(make, gradients), expected, FORGOTTEN):
            condition = (
                f"g is nearly constant over {memory:,} steps, ε is small compared with the gradient, and there is no "
                "coupled weight decay"
            )
            return Adjustment(equivalence, reason, condition, tested=True)
    return _none(f"{reason}, but earlier values of g are not forgotten within {MEMORIES[-1]:,} steps")


def _none(reason: str) -> Adjustment:
    return Adjustment(Equivalence.NONE, reason, tested=True)


def _gradients(length: int) -> Tensor:
    """Noisy gradients around a mean, with magnitudes that are no product of a row factor and a column factor."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(*map(torch.arange, SHAPE), indexing="ij")
    magnitudes = torch.tensor(MAGNITUDES, dtype=torch.float64)[(rows + columns) % len(MAGNITUDES)]
    mean = torch.randn(SHAPE, dtype=torch.float64) / 2
    return magnitudes * (mean + torch.randn(length, *SHAPE, dtype=torch.float64))


def _path(make: MakeOptimizer, gradients: Tensor, lr: float = LR) -> Tensor:
    """Returns the weights before the first and after each step."""
    torch.manual_seed(1)  # for optimizers that draw random numbers
    weights = (WEIGHT * torch.randn(SHAPE, dtype=torch.float64)).requires_grad_()
    optimizer = make([{"params": [weights], "lr": lr}], lr=lr)
    if callable(getattr(optimizer, "eval", None)):  # some step only in training mode
        cast(Any, optimizer).train()
    path = [weights.detach().clone()]
    for gradient in gradients:
        weights.grad = gradient.clone()
        optimizer.step()
        path.append(weights.detach().clone())
    return torch.stack(path)


def _scaled(path: Tensor, plain: Tensor, factors: Tensor, tolerance: float) -> bool:
    """Whether each weight's last quarter of steps equals that of ``plain`` times the weight's factor."""
    last = len(plain) // 4
    steps, expected = path.diff(dim=0)[-last:], factors * plain.diff(dim=0)[-last:]
    return bool(((steps - expected).norm(dim=0) <= tolerance * expected.norm(dim=0)).all())
