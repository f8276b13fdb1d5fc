"""Error of `ste` against the learning rate in units of the step size Δ, at 1, 2 and 4 bits: python scripts/four_bits.py

Trains on digits, prints a table and draws docs/four_bits/error.png beside what docs/results holds of MNIST.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from moving_scales import errors, run
from qat_ste.base.files import read_json
from qat_ste.estimators import Tanh
from qat_ste.report.pages import png
from qat_ste.report.style import STYLE

K = {1: 2.0, 2: 5.5, 4: 18.0}  # of tanh, by bits (arXiv 2405.05171)
LR, STEPS, SEEDS = 0.01, 200, (1, 2, 3)
MEMBERS = ("ste", "jitter", "naive")
SMALLER = (1, 2, 5, 10, 20)  # η is divided by it, and the steps are multiplied
DOCS = Path(__file__).parents[1] / "docs"
FIGURE = DOCS / "four_bits" / "error.png"
XLIM = (0.012, 7)
Point = tuple[int, float, float, float]  # bits, η/Δ (1: at 2 bits and the largest η), errors of ste and jitter


def relative_rate(bits: int, factor: float) -> float:
    """η/Δ with η multiplied by ``factor``, where 2 bits without a factor have 1."""
    return factor * (2**bits - 1) / 3


def on_digits() -> Iterator[Point]:
    """Errors on digits, geometric mean of the seeds; prints a line for each point."""
    print("| bits | η | η/Δ | `ste` | `jitter` | `naive` | ste / jitter |\n|---:|---:|---:|---:|---:|---:|---:|")
    for bits, k in K.items():
        for less in SMALLER:
            runs = [
                run(LR / less, STEPS * less, seed, "he", estimator=Tanh(k), counterparts=MEMBERS, bits=bits)
                for seed in SEEDS
            ]
            found = map(errors, runs)
            ste, jitter, naive = (statistics.geometric_mean(of) for of in zip(*found, strict=True))
            rate = relative_rate(bits, 1 / less)
            cells = f"{rate:.3g} | {ste:.3g} | {jitter:.3g} | {naive:.3g} | {ste / jitter:.3g}"
            print(f"| {bits} | {LR / less:g} | {cells} |", flush=True)
            yield bits, rate, ste, jitter


def on_mnist() -> Iterator[Point]:
    """Errors of the short form on MNIST under SGD, mean of the seeds."""
    rows = read_json(DOCS / "results" / "mnist_short.json")["experiments"]["mnist_sgd"]
    for row, bits in (("bits_1", 1), ("default", 2), ("bits_4", 4)):
        ste, jitter = (rows[row]["counterparts"][name]["weight_alignment_error"][0] for name in ("ste", "jitter"))
        yield bits, relative_rate(bits, 1), ste, jitter
    records = [read_json(path)["results"] for path in sorted((DOCS / "results" / "mnist_four_bits").glob("*.json"))]
    found = [
        [record["counterparts"][name]["weight_alignment_error"] for record in records] for name in ("ste", "jitter")
    ]
    yield 4, relative_rate(4, records[0]["config"]["train"]["lr_scale"]), *map(statistics.mean, found)


def draw(panels: dict[str, list[Point]]) -> None:
    """Draws errors against η/Δ, one panel a data set."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.1), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (title, points) in zip(axes, panels.items(), strict=True):
            for number, (bits, marker) in enumerate(zip(K, "osD", strict=True)):
                of_bits = sorted((rate, ste, jitter) for each, rate, ste, jitter in points if each == bits)
                rates, ste, jitter = zip(*of_bits, strict=True)
                label = f"{bits} bit" + "s" * (bits > 1)
                axis.plot(rates, ste, marker=marker, color=f"C{number}", label=f"ste, {label}")
                axis.plot(
                    rates, jitter, marker=marker, color=f"C{number}", ls=":", mfc="none", label=f"jitter, {label}"
                )
            axis.set(xscale="log", yscale="log", xlabel="η/Δ (1: 2 bits, largest η)", title=title, xlim=XLIM)
            axis.xaxis.set_minor_formatter(NullFormatter())
        axes[0].set_ylabel("weight alignment error")
        axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        FIGURE.parent.mkdir(exist_ok=True)
        FIGURE.write_bytes(png(figure))


if __name__ == "__main__":
    draw({"digits": list(on_digits()), "MNIST, short form": list(on_mnist())})
