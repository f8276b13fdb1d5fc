"""Block formats MXFP4, NVFP4 and INT4, bit for bit against slow readings of their definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from qat_ste import Quantization, quantize_weights
from qat_ste.base.errors import ArgumentError
from qat_ste.estimators import Ste, Tanh
from qat_ste.quantizers.grids import GRIDS, GridQuantizer
from qat_ste.quantizers.scales import MovingScale, scale_of
from qat_ste.theory.equivalence import SteEquivalent
from tests.conftest import ROOT

FORMATS = {
    name: {"include": ["Linear"]} | yaml.safe_load((ROOT / "conf" / "quantizer" / f"{name}.yaml").read_text())
    for name in ("mxfp4", "nvfp4", "int4")
}
ZEROS, SUBNORMAL, TIES, BELOW_POWERS = slice(0, 100), slice(100, 200), slice(200, 1200), slice(1200, 2200)


def minifloat(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> Fraction:
    """The value of a code: sign, exponent and mantissa from the highest bit down; subnormal at exponent 0."""
    mantissa = Fraction(code & (2**mantissa_bits - 1), 2**mantissa_bits)
    exponent = code >> mantissa_bits & (2**exponent_bits - 1)
    sign = -1 if code >> mantissa_bits + exponent_bits else 1
    return sign * (
        mantissa * Fraction(2) ** (1 - bias) if exponent == 0 else (1 + mantissa) * Fraction(2) ** (exponent - bias)
    )


def e4m3(code: int) -> Fraction | None:
    """FP8 E4M3 of arXiv 2209.05433, table 1: bias 7, no infinity, NaN where all bits below the sign are 1."""
    return None if code & 127 == 127 else minifloat(code, 4, 3, 7)


def e8m0(code: int) -> Fraction | None:
    """The scale of OCP's Microscaling Formats v1.0: a power of two, bias 127, NaN at code 255."""
    return None if code == 255 else Fraction(2) ** (code - 127)


E2M1 = [minifloat(code, 2, 1, 1) for code in range(16)]
E4M3 = [float(e4m3(code)) for code in range(1, 127)]  # the positive values, ascending


def between(low: Fraction | float, high: Fraction | float) -> float:
    return float((Fraction(low) + Fraction(high)) / 2)


def test_all_codes_of_e2m1_are_the_levels_and_a_tie_goes_to_mantissa_bit_0():
    assert sorted(set(E2M1)) == list(GRIDS["fp4_e2m1"])
    for exponent in (-127, -3, 0, 125):
        unit = 2.0**exponent
        even = GridQuantizer("fp4_e2m1", torch.tensor(6 * unit), ties="even")
        assert even(torch.tensor([float(value) for value in E2M1]) * unit).tolist() == [value * unit for value in E2M1]
        for code in (*range(7), *range(8, 15)):
            halfway = torch.tensor(between(E2M1[code], E2M1[code + 1])) * unit
            assert even(halfway).item() == E2M1[code + code % 2] * unit
    up = GridQuantizer("fp4_e2m1", 6.0)
    assert up(torch.tensor(0.25)).item() == 0.5, "without ties=even the upper level, whose mantissa bit is 1"


def test_all_codes_of_e8m0_are_the_scales_of_mx_power():
    scale = MovingScale("mx_power", largest=6.0)
    for code in range(256):
        if (power := e8m0(code)) is None:
            continue
        for absmax in (4.0, math.nextafter(8.0, 0), 6.0):  # 4 ≤ absmax/scale < 8
            rows = torch.tensor([[absmax * float(power), 0.0]], dtype=torch.float64)
            assert scale.now(rows).item() == 6 * power
    smallest, largest = e8m0(0), e8m0(254)
    for absmax, power in ((0.0, smallest), (1e-300, smallest), (1e300, largest)):
        assert scale.now(torch.tensor([[absmax]], dtype=torch.float64)).item() == 6 * power


@pytest.mark.parametrize(("name", "rounds"), [("mx_power", math.floor), ("msamp_power", math.ceil)])
def test_powers_are_exact_next_to_powers_of_two(name, rounds):
    powers = torch.tensor([2.0**exponent for exponent in range(-120, 120)])
    if name == "msamp_power":
        powers = powers * 6
    near = torch.stack([powers, *(torch.nextafter(powers, powers * factor) for factor in (0, 2))]).flatten()
    unit = 6 if name == "msamp_power" else 4
    slow = []
    for value in near.tolist():
        ratio = Fraction(value) / unit
        exponent = math.frexp(float(ratio))[1] + 2
        while Fraction(2) ** exponent > ratio:
            exponent -= 1
        slow.append(float(6 * Fraction(2) ** (exponent + (rounds is math.ceil and Fraction(2) ** exponent < ratio))))
    assert MovingScale(name, largest=6.0).now(near[:, None]).tolist() == slow
    if name == "mx_power":
        by_log2 = 6 * torch.exp2(torch.floor(torch.log2(near)) - 2)
        assert by_log2.tolist() != slow, "log2 rounds up just below powers of two"


def nvfp4_ranges(*absmax: float) -> list[float]:
    """The ranges of blocks with these largest weights, over 6, in a tensor whose scale is 1."""
    rows = torch.tensor([[2688.0], *([value] for value in absmax)])
    return (MovingScale("nvfp4", largest=6.0).now(rows)[1:].double() / 6).tolist()


def test_all_codes_of_e4m3_are_the_block_scales_of_nvfp4():
    floats = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().tolist()
    for code, value in enumerate(floats):
        assert (math.isnan(value) and e4m3(code) is None) or value == e4m3(code)
    assert (E4M3[0], E4M3[-1]) == (2**-9, 448)
    assert nvfp4_ranges(*(6 * value for value in E4M3)) == E4M3
    halfway = [between(low, high) for low, high in zip(E4M3, E4M3[1:])]
    codes = range(1, 126)
    assert nvfp4_ranges(*(6 * value for value in halfway)) == [E4M3[code + code % 2 - 1] for code in codes]
    assert nvfp4_ranges(*(6.0 * math.nextafter(value, 0) for value in np.float32(halfway))) != halfway
    assert nvfp4_ranges(0.0, 1e-42, 6 * 2.0**-10) == [2**-9] * 3, "no block has the scale 0"


def drawn(levels: str, width: int) -> torch.Tensor:
    """10^6 weights in blocks, among them zeros, subnormals, midpoints of levels, and blocks just below a power of two."""
    generator, grid = torch.Generator().manual_seed(8), torch.tensor(GRIDS[levels])

    def powers(rows: slice) -> torch.Tensor:
        return 2.0 ** torch.randint(-19, -5, (rows.stop - rows.start, 1), generator=generator)

    w = torch.randn(10**6 // width, width, generator=generator)
    w *= 2.0 ** torch.randint(-20, -4, (len(w), 1), generator=generator)
    w[ZEROS] = 0
    w[SUBNORMAL] = torch.randint(-900, 900, w[SUBNORMAL].shape, generator=generator) * 2.0**-149
    midpoints = (grid[1:] + grid[:-1]) / 2
    w[TIES] = midpoints[torch.randint(len(midpoints), w[TIES].shape, generator=generator)]
    w[TIES, 0] = grid[-1]
    w[TIES] *= powers(TIES)
    below = torch.nextafter(powers(BELOW_POWERS), torch.tensor(0.0))
    w[BELOW_POWERS] = (2 * torch.rand(w[BELOW_POWERS].shape, generator=generator) - 1) * below
    w[BELOW_POWERS, :1] = below
    w[-1, 0] = 2688 * 2.0**-12  # the scale of the tensor is 2^-12 under NVFP4, so midpoints of levels are float32
    return w


def to_nearest(x: np.ndarray, values: list[float]) -> np.ndarray:
    """The nearest of these ascending values to each x in float64; of two the one with an even index."""
    order = [*range(0, len(values), 2), *range(1, len(values), 2)]
    table = np.array(values)[order]
    return table[np.abs(x[..., None] - table).argmin(-1)]  # the first of equal distances


def slow_mxfp4(w: np.ndarray) -> np.ndarray:
    """OCP's Microscaling Formats v1.0: the largest power of two <= absmax over that of the largest code."""
    absmax = np.abs(w).max(1, keepdims=True).astype(np.float64)
    powers = 2.0 ** np.arange(-150, 129)
    exponent = np.searchsorted(powers, absmax, side="right") - 151
    scale = 2.0 ** np.clip(exponent - 2, -127, 127)
    return np.copysign(to_nearest(np.abs(w) / scale, [float(x) for x in E2M1[:8]]), w) * scale


def slow_steps(w: np.ndarray, ranges: np.ndarray, codes: list[float]) -> np.ndarray:
    """Levels and midpoints of levels times the range, each rounded once; ties to the even code."""
    ranges, magnitude = ranges.astype(np.float64), np.abs(w)
    index = np.zeros(w.shape, int)
    for code, (low, high) in enumerate(zip(codes, codes[1:])):
        threshold = ((low + high) / 2 * ranges / codes[-1]).astype(np.float32)
        index += (magnitude > threshold) | ((magnitude == threshold) & (code % 2 == 1))
    levels = np.stack([(code * ranges / codes[-1]).astype(np.float32) for code in codes])
    return np.copysign(np.take_along_axis(levels, index[None], 0)[0], w)


def slow_nvfp4(w: np.ndarray) -> np.ndarray:
    absmax = np.abs(w).max(1, keepdims=True)
    of_tensor = absmax.max() / np.float32(2688)
    of_block = to_nearest((absmax / np.float32(6) / of_tensor).astype(np.float64), [-math.inf, *E4M3])
    ranges = (6 * of_block * np.float64(of_tensor)).astype(np.float32)
    return slow_steps(w, ranges, [float(x) for x in E2M1[:8]])


def slow_int4(w: np.ndarray) -> np.ndarray:
    absmax = np.abs(w).max(1, keepdims=True)
    return slow_steps(w, np.where(absmax == 0, 1, absmax), list(range(8)))


def quantized(w: torch.Tensor, **settings) -> torch.Tensor:
    """The quantized weights of a linear layer."""
    layer = nn.Linear(w.shape[1], len(w), bias=False)
    layer.weight = nn.Parameter(w.clone())
    model = quantize_weights(nn.Sequential(layer), Quantization(**settings), Ste())
    return model[0].weight.detach()


SLOW = {"mxfp4": slow_mxfp4, "nvfp4": slow_nvfp4, "int4": slow_int4}


def weights_of(name: str) -> torch.Tensor:
    w = drawn(FORMATS[name]["levels"], FORMATS[name]["granularity"])
    if name == "int4":
        w[ZEROS] = w[SUBNORMAL] = 1.0  # refused, and below the smallest scale
    return w


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_those_of_the_definition_bit_for_bit(name):
    w = weights_of(name)
    found = quantized(w, **FORMATS[name])
    assert torch.equal(found, torch.from_numpy(SLOW[name](w.numpy()).astype(np.float32)))
    assert found.dtype == torch.float32
    upwards = quantized(w, **FORMATS[name] | {"ties": "up"})
    assert (upwards != found).any(1).nonzero().flatten().tolist() == list(range(TIES.start, TIES.stop))
    if name != "int4":
        assert not found[ZEROS].any()


def test_other_ways_to_round_a_scale_are_seen(monkeypatch):
    """Negative control: floor(log2) in float32, and NVFP4 without its E4M3 scales, quantize other values."""
    w = weights_of("mxfp4")
    expected = torch.from_numpy(slow_mxfp4(w.numpy()).astype(np.float32))
    by_log2 = lambda self, absmax: (torch.floor(torch.log2(absmax)) - 2).clamp(-127, 127)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(MovingScale, "_exponent", by_log2)
        differ = (quantized(w, **FORMATS["mxfp4"]) != expected).any(1).nonzero().flatten()
    assert set(range(BELOW_POWERS.start, BELOW_POWERS.stop)) == set(differ.tolist())
    w = weights_of("nvfp4")
    expected = torch.from_numpy(slow_nvfp4(w.numpy()).astype(np.float32))
    absmax = quantized(w[SUBNORMAL.stop :], **FORMATS["nvfp4"] | {"scale": "absmax"})
    assert (absmax != expected[SUBNORMAL.stop :]).any(1).float().mean() > 0.5


@pytest.mark.parametrize("scale", [*FORMATS, "rms_2", "msamp_power", "learned", "initial_absmax"])
def test_which_scales_accept_a_block_of_zeros(scale):
    w, settings = torch.randn(4, 32), FORMATS.get(scale, FORMATS["mxfp4"] | {"scale": scale})
    w[2] = 0
    if scale in ("mxfp4", "nvfp4"):
        assert not quantized(w, **settings)[2].any()
        assert quantized(w, **settings)[[0, 1, 3]].any(1).all()
        return
    with pytest.raises(ArgumentError, match=r"as he: group 2 has zeros alone \(0.weight\), got"):
        quantized(w, **settings)


def test_a_tensor_of_zeros():
    with pytest.raises(ArgumentError, match=r"as he: the tensor has zeros alone \(0.weight\), got 'nvfp4'"):
        quantized(torch.zeros(4, 32), **FORMATS["nvfp4"])
    assert not quantized(torch.zeros(4, 32), **FORMATS["mxfp4"]).any()
    for name in ("mx_power", "nvfp4"):
        for dtype in (torch.float32, torch.float64):
            now = MovingScale(name, largest=6.0).now(torch.zeros(2, 16, dtype=dtype))
            assert now.dtype == dtype and (now > 0).all(), "during training it keeps a positive scale"


def test_m_does_not_keep_the_scale_of_nvfp4():
    assert not scale_of("nvfp4", 6.0).kept and not scale_of("nvfp4").has_gradient
    rows = torch.randn(50, 16)
    unit = GridQuantizer("fp4_e2m1", 1.0, "none", "even")
    scale = MovingScale("nvfp4", largest=6.0)
    ranges = scale.now(rows)
    mapped = SteEquivalent(Tanh(9.0), unit).on(unit.rescaled(ranges[:, None])).weight_map(rows)
    assert (scale.now(mapped) != ranges).any()
    assert torch.equal(unit.rescaled(ranges[:, None])(mapped), unit.rescaled(ranges[:, None])(rows))
