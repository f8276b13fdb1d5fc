"""The scale of arXiv 2405.05171."""

from __future__ import annotations

import pytest
import torch

from qat_ste.quantizers.scales import he_uniform_bound


def test_range_is_the_he_uniform_bound():
    assert he_uniform_bound(torch.empty(64, 32, 3, 3)) == pytest.approx((6 / 288) ** 0.5)
    assert he_uniform_bound(torch.empty(10, 128)) == pytest.approx((6 / 128) ** 0.5)
    assert he_uniform_bound(torch.empty(64)) == pytest.approx((6 / 64) ** 0.5)
