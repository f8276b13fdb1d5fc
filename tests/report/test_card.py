"""The figure of a card: no panel overlaps another, and points where an assumption fails are marked."""

from __future__ import annotations

from functools import partial

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import optim

from qat_ste import card_of
from qat_ste.estimators import Acos, Cosine, Ewgs, FastSigmoid, Power, Pwl, StableQat, Ste, Tanh
from qat_ste.quantizers.grids import make_quantizer
from qat_ste.report.card.figure import ESTIMATOR, FAULT, PANELS, card_figure, card_png
from qat_ste.report.card.text import card_numbers
from qat_ste.report.style import STYLE

SGD = partial(optim.SGD, momentum=0.9)
CASES = [
    (Tanh(5.5), make_quantizer(1.0)),
    (Tanh(2.0), make_quantizer(1.0, bits=1)),
    (Tanh(300.0), make_quantizer(1.0, bits=8)),
    (Power(), make_quantizer(1.0, levels="fp4_e2m1")),
    (FastSigmoid(), make_quantizer(1.0, "none", levels="nf4")),
    (Acos(1.0), make_quantizer(1.0)),
    (Acos(1.0), make_quantizer(1.0, "bin")),
    (StableQat(0.25), make_quantizer(1.0)),
]


def drawn(estimator, quantizer):
    with mpl.rc_context(STYLE | PANELS):
        figure = card_figure(card_of(estimator, quantizer, SGD, 3e-3))
        FigureCanvasAgg(figure).draw()
    return figure


@pytest.mark.parametrize(("estimator", "quantizer"), CASES, ids=str)
def test_no_panel_overlaps_another(estimator, quantizer):
    figure = drawn(estimator, quantizer)
    renderer, edges = figure.canvas.get_renderer(), figure.bbox
    shown = [axis for axis in figure.axes if axis.axison]
    boxes = [axis.get_tightbbox(renderer) for axis in shown]
    boxes += [text.get_window_extent(renderer) for axis in figure.axes if axis not in shown for text in axis.texts]
    for place, box in enumerate(boxes):
        assert edges.x0 - 1 <= box.x0 and box.x1 <= edges.x1 + 1 and edges.y0 - 1 <= box.y0 and box.y1 <= edges.y1 + 1
        assert not any(box.overlaps(other) for other in boxes[:place])
        assert place > 4 or min(box.width, box.height) > 0.3 * edges.height or len(shown) < 5


def marked(figure) -> np.ndarray:
    lines = [line.get_xdata() for line in figure.axes[0].lines if line.get_color() == FAULT]
    return np.concatenate(lines) if lines else np.empty(0)


def test_points_where_g_is_not_positive_are_marked_and_there_is_no_map():
    figure = drawn(Cosine(1.0), make_quantizer(1.0))
    assert set(marked(figure).round(6)) == {-1, -0.333333, 0.333333, 1}
    assert figure.axes[2].get_title(loc="left") == "no weight map: g is not positive"
    assert (np.abs(marked(drawn(Pwl(), make_quantizer(1.0, "none")))) > 1).all()
    assert not len(marked(drawn(Tanh(5.5), make_quantizer(1.0))))


def test_the_density_of_remapped_weights_is_one_in_all():
    figure = drawn(Tanh(5.5), make_quantizer(1.0))
    z, density = figure.axes[4].lines[0].get_data()
    assert ((density[1:] + density[:-1]) / 2 * np.diff(z)).sum() / 2 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("estimator", "largest"), [(Tanh(5.5), 0.158), (Ewgs(), 6.445e-4), (Ste(), 0.0)], ids=str)
def test_the_shift_fills_its_panel_however_small_it_is(estimator, largest):
    (axis,) = [axis for axis in drawn(estimator, make_quantizer(1.0)).axes if "M(w) − w" in axis.get_title("left")]
    (line,) = [line for line in axis.lines if line.get_color() == ESTIMATOR]
    assert np.abs(line.get_ydata()).max() == pytest.approx(largest, rel=5e-3)
    assert axis.get_ylim()[1] == pytest.approx(1.15 * largest if largest else 0.0115, rel=5e-3)


def test_the_text_says_first_whether_the_theorem_covers_the_estimator():
    grid = make_quantizer(1.0)
    texts = [card_numbers(card_of(estimator, grid, SGD, 3e-3)) for estimator in (Tanh(5.5), Ewgs(), Cosine(1.0))]
    (covered, uncovered, refused) = ([*text[0], text[1][0]] for text in texts)
    assert covered == ["theorem", "covers this estimator", "amounts to"]
    assert uncovered[1].startswith("does not cover this estimator: its g depends on the sign of the gradient")
    assert uncovered[2] == "compared with"
    assert refused[1].startswith("does not apply: Cosine(a=1.0) is not positive")
    exact = card_numbers(card_of(Ewgs(), grid, optim.Rprop, 3e-3))
    assert exact[:2] == [
        ("theorem", "covers this estimator"),
        ("amounts to", "the STE, nothing adjusted: the runs are identical"),
    ]


def test_a_file_is_small():
    assert len(card_png(card_of(Power(), make_quantizer(1.0, levels="nf4"), SGD, 3e-3))) < 60_000
