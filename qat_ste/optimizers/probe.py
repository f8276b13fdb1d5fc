"""What an optimizer does with rescaled gradients, found by trying it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, optim

from qat_ste.optimizers.adjustment import Adjustment, Equivalence

MakeOptimizer = Callable[..., optim.Optimizer]

SHAPE = (4, 6)  # a matrix, since optimizers that look at whole tensors do so from two dimensions on
MEMORIES = (64, 512, 4096)
# Weights and steps far below the gradients, so that weight decay does not count; these far above any ε.
LR, WEIGHT, MAGNITUDES = 1e-12, 1e-6, (1e-3, 1e-1, 1e1, 1e3)
SAME, FORGOTTEN = 0.02, 0.1  # relative differences of steps that still pass


def probe(make_optimizer: MakeOptimizer) -> Adjustment:
    """The adjustment that the steps of an optimizer call for, whatever its class; never raises.

    An estimator multiplies a weight's gradients by g(w): other factors for other weights, changing as they move. So the
    same history of gradients is fed to the optimizer with factors that are

    * new for every weight and step: ``exact`` if not one bit of the weights changes;
    * constant for each weight: steps have to scale with them (``remap``) or stay the same (``keep``); else ``none``;
    * 1 for N steps and then constant for N steps: in the end steps have to be as if they had always been so, or the
      optimizer does not forget and it is ``none``. N grows from 64 to 4,096 until that is so.

    Superposition is not asked for: to first order in η the theorem needs no more than that steps scale.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            return _probe(make_optimizer)
    except Exception as error:  # a foreign optimizer may raise anything
        return _none(f"it cannot be tested ({' '.join(str(error).split())})")


def _probe(make: MakeOptimizer) -> Adjustment:
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
            "no factor on any gradient changes a step",
            "gradients that do not vanish, and no penalty on the weights",
            tested=True,
        )
    factors = 4.0 ** torch.randint(0, 2, SHAPE) / 2
    rescaled = _path(make, gradients * factors)
    if _near(rescaled, plain, factors, SAME):
        if not _near(_path(make, gradients, lr=2 * LR), plain, torch.tensor(2.0), SAME):
            return _none("its steps scale with the gradients but not with the learning rate of their group")
        equivalence, expected, reason = Equivalence.REMAP, factors, "steps scale with a weight's gradients"
    elif _near(rescaled, plain, torch.ones(()), SAME):
        equivalence, expected, reason = Equivalence.KEEP, torch.ones(()), "a factor on a weight's gradients cancels"
    else:
        return _none("factors on the gradients of single weights neither scale their steps nor cancel")
    for memory in MEMORIES:
        gradients = _gradients(2 * memory)
        changed = gradients.clone()
        changed[memory:] *= factors
        if _near(_path(make, changed), _path(make, gradients), expected, FORGOTTEN):
            condition = (
                f"g nearly constant over {memory:,} steps, ε small against the gradient, no coupled weight decay"
            )
            return Adjustment(equivalence, reason, condition, tested=True)
    return _none(f"{reason}, but earlier values of g are not forgotten within {MEMORIES[-1]:,} steps")


def _none(reason: str) -> Adjustment:
    return Adjustment(Equivalence.NONE, reason, tested=True)


def _gradients(length: int) -> Tensor:
    """Noise around a mean, of magnitudes that rows and columns do not explain."""
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(*map(torch.arange, SHAPE), indexing="ij")
    magnitudes = torch.tensor(MAGNITUDES, dtype=torch.float64)[(rows + columns) % len(MAGNITUDES)]
    mean = torch.randn(SHAPE, dtype=torch.float64) / 2
    return magnitudes * (mean + torch.randn(length, *SHAPE, dtype=torch.float64))


def _path(make: MakeOptimizer, gradients: Tensor, lr: float = LR) -> Tensor:
    """The weights before and after each step."""
    torch.manual_seed(1)  # for an optimizer with noise of its own
    weights = (WEIGHT * torch.randn(SHAPE, dtype=torch.float64)).requires_grad_()
    optimizer = make([{"params": [weights], "lr": lr}], lr=lr)
    path = [weights.detach().clone()]
    for gradient in gradients:
        weights.grad = gradient.clone()
        optimizer.step()
        path.append(weights.detach().clone())
    return torch.stack(path)


def _near(path: Tensor, plain: Tensor, factors: Tensor, tolerance: float) -> bool:
    """Whether each weight's steps are those of the plain path times its factor, in the last quarter."""
    last = len(plain) // 4
    steps, expected = path.diff(dim=0)[-last:], factors * plain.diff(dim=0)[-last:]
    return bool(((steps - expected).norm(dim=0) <= tolerance * expected.norm(dim=0)).all())
