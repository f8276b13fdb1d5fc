"""Simulates how often a tuning study decides; prints a table as Markdown and draws docs/tuning/power.png.

A study has 17 estimators, all compared with the same STE. One differs from the STE by the true difference, the others
do not differ. Differences of a seed are normal; the STE's noise, which they share, has half of their variance.
"""

from __future__ import annotations

import argparse

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from docs_page import DOCS
from qat_ste.report.pages import png
from qat_ste.report.style import COLORS, STYLE
from qat_ste.report.tune.answers import BETTER, EQUIVALENT, WORSE, answers
from qat_ste.report.writers import markdown_lines

FIGURE = DOCS / "tuning" / "power.png"
STUDIES, ESTIMATORS = 20_000, 17
SEEDS, DEVIATIONS = (3, 5, 10, 20, 40), (0.5, 1.0, 2.0)  # deviations in margins
CASES = {  # true difference in margins -> answers that are right, colour, dashes
    0.0: ((EQUIVALENT,), "#00694d", "-"),
    0.5: ((EQUIVALENT,), "#00694d", "--"),
    1.0: ((BETTER, WORSE), COLORS["naive"], "--"),
    2.0: ((BETTER, WORSE), COLORS["naive"], "-"),
}
Power = dict[tuple[float, float, int], float]  # by deviation, true difference and number of seeds


def probabilities() -> Power:
    """Shares of the studies that give the one estimator a right answer."""
    random = np.random.default_rng(1)
    shares = {}
    for seeds in SEEDS:
        noise = random.normal(0, 0.5**0.5, (STUDIES, ESTIMATORS, seeds))
        noise -= random.normal(0, 0.5**0.5, (STUDIES, 1, seeds))
        for deviation in DEVIATIONS:
            for true, (right, *_) in CASES.items():
                differences = deviation * noise
                differences[:, 0] += true
                shares[deviation, true, seeds] = float(np.isin(answers(differences, 1.0).answer[:, 0], right).mean())
    return shares


def title(true: float) -> str:
    """What a line of the figure and a column of the table show."""
    answer = " or ".join(CASES[true][0])
    return f"{answer}, true difference {f'{true:g} × margin' if true else '0'}"


def table(shares: Power) -> str:
    """A line for each deviation and number of seeds."""
    lines = [["sd / margin", "seeds", *map(title, CASES)]]
    for deviation in DEVIATIONS:
        for seeds in SEEDS:
            lines.append([f"{deviation:g}", str(seeds), *(f"{shares[deviation, true, seeds]:.2f}" for true in CASES)])
    return markdown_lines(lines, left=0)


def draw(shares: Power) -> None:
    """Draws probabilities against the number of seeds, a panel for each deviation."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.1))
        axes = figure.subplots(1, len(DEVIATIONS), sharey=True)
        for axis, deviation in zip(axes, DEVIATIONS, strict=True):
            for true, (_, color, dashes) in CASES.items():
                line = [shares[deviation, true, seeds] for seeds in SEEDS]
                axis.plot(SEEDS, line, color=color, ls=dashes, marker="o", ms=4, label=title(true), clip_on=False)
            axis.set(title=f"sd = {deviation:g} × margin", xlabel="seeds", xscale="log", ylim=(0, 1))
            axis.set_xticks(SEEDS, map(str, SEEDS))
            axis.xaxis.set_minor_locator(NullLocator())
        axes[0].set_ylabel("probability")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
        FIGURE.parent.mkdir(exist_ok=True)
        FIGURE.write_bytes(png(figure))


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    shares = probabilities()
    print(table(shares))
    draw(shares)


if __name__ == "__main__":
    main()
