"""The page on reliability is its record's, whatever faults that has; long runs are judged by what they hold."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from qat_ste.report.columns import Columns
from scripts.campaign.endurance import ROOM, ROW_BYTES, SETTLED, LongRun, Sample, judged
from scripts.campaign.fault import Line, Outcome
from scripts.campaign.long_files import MOST_BYTES
from scripts.reliability_docs import DOCS, drawings, page, series_of

MIB = 2**20
RECORD = DOCS / "reliability" / "record.json"


def samples(memory=lambda step: 0.0, handles=lambda step: 8, threads=lambda step: 3) -> list[Sample]:
    steps = range(0, 100_001, 500)
    return [Sample(step, int(300 * MIB + memory(step)), handles(step), threads(step)) for step in steps]


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (samples(), None),
        (samples(memory=lambda step: 60 * MIB * min(1, step / 1000)), None),
        (samples(memory=lambda step: 1000 * step), "memory grew by 93 MiB"),
        (samples(handles=lambda step: 8 + step // 10_000), "8 to 18 file handles"),
        (samples(threads=lambda step: 3 + step // 90_000), "3 to 4 threads"),
        (samples()[:3], "only 1 samples"),
    ],
)
def test_what_grows_is_found(found, word):
    outcome = judged(found, rows_a_step=1 / 500)
    assert [breach for breach in outcome.broken if word and word in breach] == outcome.broken
    assert bool(outcome.broken) == bool(word)


def test_series_are_those_sampled():
    found = samples(memory=lambda step: step)
    line = Line.of(LongRun("long"), [judged(found, 0.0)]).record()
    series = series_of(line)
    assert set(series) == {"memory", "handles", "threads"}
    assert series["memory"][0] == (0, 300 * MIB)
    assert [x for x, _ in series["memory"]] == sorted(x for x, _ in series["memory"])
    assert all(y == 300 * MIB + x for x, y in series["memory"])


def record() -> dict:
    outcomes = {
        ("processes", "kill -9"): Outcome(counts={"training": 12, "figures": 10}, delay=1.5),
        ("processes", "SIGTERM"): Outcome("a line | with <b>", counts={"training": 3}),
        ("novel", "unheard of"): Outcome(broken=["first\nlast: *it* broke"], lost_rows=2),
        ("endurance", "long"): judged(samples(), 0.0),
    }
    lines = {}
    for (group, name), outcome in outcomes.items():
        line = Line.of(LongRun(name, group=group), [outcome, outcome])
        lines[f"{group}: {name}"] = line.record()
    return json.loads(json.dumps(lines))


def test_the_page_works_with_whatever_faults_there_are():
    text = page(record())
    assert text.index("## Processes") < text.index("## Endurance") < text.index("## Novel")
    assert "| all | 30 | 20 |" in text
    assert r"did not hold: last: \*it\* broke" in text and "1 fault after which something did not hold" in text
    assert r"a line \| with &lt;b>" in text and "<b>" not in text
    assert "memory at" not in text and "reliability/endurance.png" in text
    assert [name for name, _ in drawings(record())] == ["endurance"]
    bounds = f"{SETTLED:,} steps", f"{ROOM // MIB} MiB", f"{ROW_BYTES // 1000} kB a row", f"{MOST_BYTES // MIB} MiB"
    assert all(bound in text for bound in bounds)
    assert "## Numbers" not in page({}) and "In all: 0 faults" in page({})


@pytest.mark.skipif(not RECORD.exists(), reason="the campaign has not been recorded")
def test_the_page_is_what_the_record_gives():
    found = json.loads(RECORD.read_text())
    assert (DOCS / "reliability.md").read_text() == page(found)
    assert all((RECORD.parent / f"{name}.png").is_file() for name, _ in drawings(found))


def test_extremes_of_a_long_file_are_kept(tmp_path):
    """Of 10^5 rows read in batches, the planted highest and lowest one at random places."""
    path, draw = tmp_path / "metrics.jsonl", random.Random(3)
    high, low = sorted(draw.sample(range(100_000), 2))
    values = np.sin(np.arange(100_000))
    values[[high, low]] = 5.0, -7.0
    path.write_text("".join(f'{{"step":{step},"x":{value!r}}}\n' for step, value in enumerate(values.tolist())))
    points = Columns(path, ["x"]).series("x").tolist()
    assert [high, 5.0] in points and [low, -7.0] in points
    assert len(points) <= 1000


@pytest.mark.slow
@pytest.mark.parametrize("every", [None, 1])
def test_a_long_run_holds_no_more_than_a_short_one(tmp_path, every):
    outcome = LongRun("long", steps=10_000, every=every).happen(tmp_path, random.Random(0))
    assert not outcome.broken
    assert outcome.figures["highest memory (MiB)"] >= outcome.figures["memory after 1,000 steps (MiB)"] > 100
