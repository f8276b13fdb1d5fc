"""The page on reliability shows its record, with any set of faults."""

from __future__ import annotations

import json
import random

import numpy as np

from qat_ste.report.columns import Columns
from scripts.reliability_docs import DOCS, page


def line(group: str, name: str, **values) -> dict:
    nothing = {"lost_rows": 0, "differing": 0, "delay": 0.0, "ended": [], "counts": {}, "broken": []}
    return {"name": name, "group": group, "rounds": 2, "survived": 2} | nothing | values


def record() -> dict:
    lines = [
        line("processes", "kill -9", counts={"training": 24, "figures": 20}, delay=1.5),
        line("processes", "SIGTERM", ended=["a line | with <b>"], counts={"training": 6}),
        line("novel", "unheard of", broken=["first\nlast: *it* broke"], lost_rows=4),
        line("endurance", "long", figures={"memory at 1000": 3e8, "highest memory (MiB)": 286.1}),
    ]
    return {f"{line['group']}: {line['name']}": line for line in lines}


def test_the_page_shows_any_set_of_faults():
    text = page(record())
    assert text.index("## Processes") < text.index("## Endurance") < text.index("## Novel")
    assert "| all | 30 | 20 |" in text
    assert r"did not hold: last: \*it\* broke" in text and "1 fault after which something did not hold." in text
    assert r"a line \| with &lt;b>" in text and "<b>" not in text
    assert "memory at" not in text and "reliability/endurance.png" in text
    assert "| long | highest memory (MiB) | 286 |" in text
    assert "## Numbers" not in page(
        {}
    ) and "In total: 0 faults, 0 rounds, 0 lost rows, 0 differing numbers, 0 faults after which" in page({})


def test_the_page_is_what_the_record_gives():
    stored = json.loads((DOCS / "reliability" / "record.json").read_text())
    assert (DOCS / "reliability.md").read_text() == page(stored)
    assert (DOCS / "reliability" / "endurance.png").is_file()


def test_extremes_of_a_long_file_are_kept(tmp_path):
    """The highest and lowest of 10^5 rows, planted at random places, are kept when rows are read in batches."""
    path, draw = tmp_path / "metrics.jsonl", random.Random(3)
    high, low = sorted(draw.sample(range(100_000), 2))
    values = np.sin(np.arange(100_000))
    values[[high, low]] = 5.0, -7.0
    path.write_text("".join(f'{{"step":{step},"x":{value!r}}}\n' for step, value in enumerate(values.tolist())))
    points = Columns(path, ["x"]).series("x").tolist()
    assert [high, 5.0] in points and [low, -7.0] in points
    assert len(points) <= 1000
