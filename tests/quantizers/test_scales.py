from __future__ import annotations

import pytest
import torch

from qat_ste.quantizers.scales import he_uniform_bound


def test_range_is_the_he_uniform_bound():
    assert he_uniform_bound(torch.empty(64, 32, 3, 3)) == pytest.approx((6 / 288) ** 0.5)
    assert he_uniform_bound(torch.empty(10, 128)) == pytest.approx((6 / 128) ** 0.5)
    assert he_uniform_bound(torch.empty(64)) == pytest.approx((6 / 64) ** 0.5)
    model = quantize_weights(network(), 2, Ste(), max=lambda w: w.detach().abs().amax((1, 2, 3), keepdim=True),
                             include=["Conv2d"])  # fmt: skip
    weight = model[0].weight
    assert len(weight[0].unique()) <= 4 < len(weight.unique())
