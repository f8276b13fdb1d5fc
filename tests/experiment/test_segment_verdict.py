"""What segments of one length say, from intervals of ratios."""

from __future__ import annotations

import pytest

from qat_ste.experiment.segment_results import SegmentResult, _outcome
from qat_ste.experiment.segment_statistics import Interval

LITTLE, LARGE = Interval(0.5, 0.4, 0.6), Interval(10, 8, 12)


def result(decidable: bool = True) -> SegmentResult:
    return SegmentResult(Interval(0.1, 0.09, 0.11), 40, 0.1, 1e-6, decidable, 1.0, 0.0, {})


@pytest.mark.parametrize(
    ("ste", "naive", "share", "outcome"),
    [
        (LITTLE, LARGE, Interval(0.05, 0.04, 0.06), "did not matter"),
        (Interval(3, 2.5, 4), LARGE, Interval(0.3, 0.25, 0.4), "hardly mattered"),
        (Interval(8, 6, 10), Interval(99, 90, 110), Interval(0.08, 0.06, 0.09), "hardly mattered"),
        (Interval(8, 6, 10), Interval(20, 18, 22), Interval(0.4, 0.3, 0.45), "mattered"),
        (Interval(8, 6, 10), LARGE, Interval(0.8, 0.6, 1.1), "claim fails"),
        (LITTLE, Interval(1.5, 1.3, 1.8), Interval(0.33, 0.2, 0.5), "did not matter"),
        (Interval(1.2, 0.9, 1.6), Interval(1.5, 1.3, 1.8), Interval(0.8, 0.4, 1.2), "too sensitive"),
        (Interval(4, 1, 16), LARGE, Interval(0.4, 0.1, 1.6), "undecided"),
        (Interval(0.5), LARGE, Interval(0.05), "undecided"),
        (None, None, None, "undecided"),
        (LITTLE, None, None, "did not matter"),
        (LARGE, None, None, "mattered"),
    ],
)
def test_outcome(ste, naive, share, outcome):
    assert _outcome(result(), ste, naive, share, covered=True) == outcome


def test_below_the_floor_nothing_is_decided_and_uncovered_estimators_make_no_claim():
    assert _outcome(result(decidable=False), LITTLE, LARGE, None, covered=True) == "below the floor"
    failing = Interval(8, 6, 10), LARGE, Interval(0.8, 0.6, 1.1)
    assert _outcome(result(), *failing, covered=False) == "mattered"
