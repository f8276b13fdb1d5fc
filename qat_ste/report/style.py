"""Style of all figures. Colours of Okabe and Ito, which colour-blind readers can tell apart."""

from __future__ import annotations

from typing import Any

from qat_ste.base.text import one_line

COLORS = {"reference": "#000000", "ste": "#0072B2", "naive": "#D55E00", "jitter": "#009E73", "replica": "#CC79A7"}
MORE_COLORS = ("#E69F00", "#56B4E9", "#CC79A7", "#8C564B", "#6A3D9A", "#7A7A00")
DASHES = {"reference": "-", "ste": "-", "naive": "--", "jitter": "-.", "replica": ":"}
DOTS_PER_INCH = 200
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "figure.constrained_layout.use": True,
}


def line(name: str, number: int) -> dict[str, Any]:
    """Returns colour and dashes of a counterpart's curve.

    Args:
        name: of the counterpart.
        number: its index among the counterparts; selects the colour of one that has none of its own.
    """
    kind = name.split("_")[0]
    if name in COLORS:
        return {"color": COLORS[name], "ls": DASHES[name]}
    return {"color": MORE_COLORS[number % len(MORE_COLORS)], "ls": DASHES.get(kind, "-")}


def plain(name: str, width: int = 40) -> str:
    """Formats a name as one line of text of at most ``width`` characters.

    Matplotlib would read "$" as mathematics, and leaves labels that start with "_" out of legends.
    """
    text = one_line(name).lstrip("_") or "?"
    return (text if len(text) <= width else f"{text[: width - 1]}…").replace("$", r"\$")
