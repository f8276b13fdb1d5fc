from __future__ import annotations

import pytest
import torch

from qat_ste.optimizers import Equivalence, KerasSGD, equivalence_of


def steps(optimizer_type, lrs, **arguments):
    torch.manual_seed(0)
    w = torch.zeros(5, requires_grad=True)
    gradients = torch.randn(len(lrs), 5)
    optimizer = optimizer_type([w], lr=1.0, momentum=0.9, **arguments)
    path = []
    for lr, gradient in zip(lrs, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        w.grad = gradient.clone()
        optimizer.step()
        path.append(w.detach().clone())
    return gradients, path


@pytest.mark.parametrize("nesterov", [False, True])
def test_keras_sgd_has_the_learning_rate_inside_the_velocity(nesterov):
    lrs = [0.0, 0.1, 0.3, 0.2, 0.01]
    gradients, path = steps(KerasSGD, lrs, nesterov=nesterov)
    w = velocity = torch.zeros(5)
    for lr, gradient, found in zip(lrs, gradients, path, strict=True):
        velocity = 0.9 * velocity - lr * gradient
        w = w + (0.9 * velocity - lr * gradient if nesterov else velocity)
        assert torch.allclose(found, w, atol=1e-6)


def test_keras_and_torch_agree_at_a_constant_learning_rate_and_only_there():
    for lrs, same in (([0.1] * 6, True), ([0.1, 0.1, 0.3, 0.3, 0.3, 0.1], False)):
        keras, plain = steps(KerasSGD, lrs)[1], steps(torch.optim.SGD, lrs)[1]
        assert torch.allclose(keras[-1], plain[-1], atol=1e-6) == same


def test_equivalence_by_class_and_base_class():
    w = [torch.zeros(2, 2, requires_grad=True)]
    assert equivalence_of(torch.optim.SGD(w, lr=1)) is Equivalence.REMAP
    assert equivalence_of(KerasSGD(w, lr=1)) is Equivalence.REMAP
    assert equivalence_of(torch.optim.Adam(w)) is Equivalence.KEEP
    assert equivalence_of(torch.optim.Adagrad(w)) is Equivalence.NONE


def test_adams_step_does_not_change_when_gradients_are_rescaled_and_sgds_does():
    for kind, invariant in ((torch.optim.Adam, True), (torch.optim.SGD, False)):
        ends = []
        for scale in (1.0, 0.2):
            torch.manual_seed(0)
            w = torch.zeros(50, requires_grad=True)
            optimizer = kind([w], lr=0.01)
            for _ in range(20):
                w.grad = scale * torch.randn(50)
                optimizer.step()
            ends.append(w.detach())
        assert torch.allclose(*ends, rtol=1e-4, atol=1e-7) == invariant
