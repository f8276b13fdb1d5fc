"""Quantizers of groups are bit for bit those with one scale a weight."""

from __future__ import annotations

import pytest
import torch

from qat_ste import GridQuantizer, UniformQuantizer
from qat_ste.quantizers.grouped import GroupedQuantizer

SIZE = 8
KINDS = {
    "uniform": lambda end, saturation: UniformQuantizer(3, end, saturation),
    "E2M1": lambda end, saturation: GridQuantizer("fp4_e2m1", end, saturation, "even"),
    "nf4": lambda end, saturation: GridQuantizer("nf4", end, saturation),
}


@pytest.mark.parametrize("saturation", ["range", "bin", "none"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("members", [(), (3,)])
def test_equal_to_one_scale_a_weight(kind, saturation, dtype, members):
    scales = torch.rand(500, dtype=dtype) + 0.1
    grouped = GroupedQuantizer(KINDS[kind](scales[:, None], saturation), SIZE)
    by_weight = KINDS[kind](scales.repeat_interleave(SIZE), saturation)
    w = torch.randn(*members, 500 * SIZE, dtype=dtype)
    if not members:  # weights on thresholds and beside them
        thresholds = by_weight.thresholds[1]
        w = torch.cat([w, thresholds, torch.nextafter(thresholds, thresholds - 1)])[: 500 * SIZE]
    index = by_weight.index(w)
    assert torch.equal(grouped.index(w), index)
    assert torch.equal(grouped.level(index), by_weight.level(index))
    for name in ("__call__", "offset", "relative", "gradient_mask", "saturated", "alive"):
        assert torch.equal(getattr(grouped, name)(w), getattr(by_weight, name)(w)), name
    for name in ("interval", "cell"):
        for a, b in zip(getattr(grouped, name)(w), getattr(by_weight, name)(w), strict=True):
            assert torch.equal(a, torch.as_tensor(b).expand_as(a)), name
    for a, b in zip(grouped.reach("bin", w), by_weight.reach("bin", w), strict=True):
        assert torch.equal(a, b)
    for name in ("max", "levels", "thresholds"):
        assert torch.equal(getattr(grouped, name), getattr(by_weight, name)), name
    assert grouped.num_levels == by_weight.num_levels
    assert grouped.state.keys() == by_weight.state.keys()
    assert torch.equal(grouped.state["max"], by_weight.max)
