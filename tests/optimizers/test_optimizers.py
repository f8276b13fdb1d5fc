"""Steps of the optimizers that torch lacks, written out; their errors."""

from __future__ import annotations

import math

import pytest
import torch

from qat_ste.base.errors import ArgumentError
from qat_ste.optimizers import KerasSGD, Lion, Muon, SignSGD


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
    for lr, gradient, result in zip(lrs, gradients, path, strict=True):
        velocity = 0.9 * velocity - lr * gradient
        w = w + (0.9 * velocity - lr * gradient if nesterov else velocity)
        assert torch.allclose(result, w, atol=1e-6)


def test_keras_and_torch_agree_only_at_a_constant_learning_rate():
    for lrs, same in (([0.1] * 6, True), ([0.1, 0.1, 0.3, 0.3, 0.3, 0.1], False)):
        keras, plain = steps(KerasSGD, lrs)[1], steps(torch.optim.SGD, lrs)[1]
        assert torch.allclose(keras[-1], plain[-1], atol=1e-6) == same


def test_rescaled_gradients_change_the_steps_of_sgd_but_not_of_adam():
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


def run(make, shapes, steps=12, **arguments):
    """Initial weights, gradients and weights of each step (lists of float64 tensors), and the learning rates."""
    torch.manual_seed(0)
    weights = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    start = [w.detach().clone() for w in weights]
    optimizer = make([{"params": weights[:1], "lr": 0.03}, {"params": weights[1:]}], lr=0.02, **arguments)
    gradients, path = [], []
    for _ in range(steps):
        gradients.append([torch.randn_like(w) for w in weights])
        for w, gradient in zip(weights, gradients[-1], strict=True):
            w.grad = gradient.clone()
        optimizer.step()
        path.append([w.detach().clone() for w in weights])
    return start, gradients, path, [0.03] + [0.02] * (len(shapes) - 1)


def test_signsgd_steps_against_the_sign_of_the_gradient():
    start, gradients, weights, lrs = run(SignSGD, [(2, 3), (4,)])
    for i, w in enumerate(start):
        for t in range(len(gradients)):
            w = w - lrs[i] * (gradients[t][i] > 0).double() + lrs[i] * (gradients[t][i] < 0).double()
            torch.testing.assert_close(weights[t][i], w, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lion_steps_against_the_sign_of_a_mean_with_more_weight_on_the_last_gradient(weight_decay):
    start, gradients, weights, lrs = run(Lion, [(2, 3), (4,)], betas=(0.8, 0.95), weight_decay=weight_decay)
    for i, w in enumerate(start):
        for t in range(len(gradients)):
            momentum = sum((0.05 * 0.95 ** (t - 1 - s) * gradients[s][i] for s in range(t)), torch.zeros(()))
            w = w - lrs[i] * (torch.sign(0.8 * momentum + 0.2 * gradients[t][i]) + weight_decay * w)
            torch.testing.assert_close(weights[t][i], w, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_steps_against_the_momentum_with_singular_values_near_one(nesterov):
    shapes = [(6, 2, 3, 3), (7, 3), (5,), ()]
    start, gradients, weights, lrs = run(Muon, shapes, momentum=0.8, nesterov=nesterov, weight_decay=0.1)
    for i, w in enumerate(start):
        for t in range(len(gradients)):
            momentum = sum(0.2 * 0.8 ** (t - s) * gradients[s][i] for s in range(t + 1))
            if nesterov:
                momentum = 0.2 * gradients[t][i] + 0.8 * momentum
            matrix = momentum.reshape(shapes[i][0] if shapes[i] else 1, -1)
            u, s, v = torch.linalg.svd(matrix, full_matrices=False)
            s = s / s.norm()
            for _ in range(5):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            assert s.min() > 0.6 and s.max() < 1.3, "roughly orthogonal"
            step = 0.2 * math.sqrt(max(matrix.shape)) * ((u * s) @ v).reshape(shapes[i])
            w = (1 - 0.1 * lrs[i]) * w - lrs[i] * step
            torch.testing.assert_close(weights[t][i], w, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_equals_torch_on_matrices():
    ours = run(Muon, [(6, 4), (3, 8)], nesterov=True, weight_decay=0.1)[2]
    theirs = run(torch.optim.Muon, [(6, 4), (3, 8)], weight_decay=0.1, adjust_lr_fn="match_rms_adamw")[2]
    for result, expected in zip(ours[-1], theirs[-1], strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0.01)  # torch orthogonalizes in bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: Lion(w, betas=(0.9, 1.0)), "betas must be numbers from 0 to below 1, got (0.9, 1.0)"),
        (lambda w: Muon(w, momentum=1.0), "momentum must be a number from 0 to below 1, got 1.0"),
    ],
)
def test_rejects_arguments_out_of_bounds(make, message):
    with pytest.raises(ArgumentError) as error:
        make([torch.zeros(2, 2, requires_grad=True)])
    assert str(error.value) == message


@pytest.mark.parametrize("kind", [KerasSGD, Lion, Muon, SignSGD])
def test_rejects_a_closure_and_keeps_weights_without_gradient(kind):
    w = torch.ones(2, 2, requires_grad=True)
    optimizer = kind([w], lr=0.1)
    optimizer.step()
    assert torch.equal(w, torch.ones(2, 2))
    with pytest.raises(ArgumentError, match="closure must be None, got <function"):
        optimizer.step(lambda: 0.0)


def test_keras_weight_decay_is_multiplied_by_the_learning_rate_once():
    """v <- -η·(G + λ·w): w = 1 becomes 0.995 with λ = 0.5, η = 0.01 and G = 0; the parameter group is unchanged."""
    w = torch.ones(3, requires_grad=True)
    w.grad = torch.zeros(3)
    optimizer = KerasSGD([w], lr=0.01, weight_decay=0.5)
    optimizer.step()
    assert w.tolist() == pytest.approx([0.995] * 3)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.01, 0.5)
