from __future__ import annotations

import pytest

from tests.report.browser import CHROMIUM, run_in_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on the PATH")

SORT_AND_FILTER = """
  const shown = () => Array.from(document.querySelectorAll("#runs tbody tr")).filter(row => !row.hidden);
  const column = title => headers.findIndex(header => header.textContent === title);
  const cells = title => shown().map(row => row.cells[column(title)].dataset.value);
  const click = title => headers[column(title)].firstElementChild.click();
  const sorts = () => headers.map(header => header.getAttribute("aria-sort")).filter(Boolean);
  const type = (id, text) => {
    const box = document.getElementById(id);
    box.value = text;
    box.dispatchEvent(new Event(id === "status" ? "change" : "input"));
  };
  const seen = { before: shown().length };
  click("ste error"); seen.up = cells("ste error"); seen.sortsUp = sorts();
  click("ste error"); seen.down = cells("ste error"); seen.sortsDown = sorts();
  click("jitter error"); seen.jitter = cells("jitter error");
  type("filter", "SGD bits_1"); seen.filtered = shown().map(row => row.textContent);
  seen.count = document.getElementById("count").textContent;
  click("seed"); seen.seeds = cells("seed");
  type("filter", "no such words"); seen.none = shown().length;
  type("filter", ""); type("status", "broken"); seen.broken = shown().map(row => row.textContent);
  type("status", ""); seen.after = shown().length;
  seen.focusable = headers.every(header => header.firstElementChild.tabIndex === 0);
  seen.images = Array.from(document.images).every(image => image.complete && image.naturalWidth > 100);
  seen.wide = boxes.filter(box => box.scrollWidth > box.clientWidth + 1).every(box => box.classList.contains("wide"));
  seen.page = document.documentElement.scrollWidth <= window.innerWidth;
  seen.links = Array.from(document.querySelectorAll("#runs a")).map(link => link.getAttribute("href"));
  return seen;
"""


def test_page_sorts_and_filters_without_fault_or_request(report, tmp_path):
    found = run_in_page(report.page, SORT_AND_FILTER, tmp_path)
    seen = found.outcome
    assert found.faults == []
    assert found.asked == []
    assert seen["before"] == seen["after"] == 27
    errors = [value for value in seen["up"] if value]
    assert len(errors) == 24
    assert [*map(float, errors)] == sorted(map(float, errors))
    assert seen["up"][24:] == ["", "", ""], "runs without a number come last"
    assert seen["down"] == [*errors[::-1], "", "", ""]
    assert (seen["sortsUp"], seen["sortsDown"]) == (["ascending"], ["descending"])
    assert seen["jitter"] == [*sorted(filter(None, seen["jitter"]), key=float), *[""] * seen["jitter"].count("")]
    assert len(seen["filtered"]) == 3
    assert all("mnist_sgd" in text and "bits_1" in text for text in seen["filtered"])
    assert seen["count"] == "3 of 27"
    assert seen["seeds"] == ["42", "43", "44"]
    assert seen["none"] == 0
    assert sorted(text.strip().split("broken")[0] for text in seen["broken"]) == ["empty", "foreign", "truncated"]
    assert seen["focusable"]
    assert seen["images"]
    assert seen["wide"], "each box that scrolls has the hint"
    assert seen["page"], "nothing is wider than the window"
    assert len(seen["links"]) == 6
    assert all((report.page.parent / link.replace("%2C", ",")).is_file() for link in seen["links"])


def test_a_fault_and_a_request_would_be_seen(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<html><head></head><body><img src="http://page.invalid/x.png"><script>nothing.there</script></body>'
    )
    found = run_in_page(page, "return document.images.length", tmp_path)
    assert found.outcome == 1
    assert any("nothing is not defined" in fault for fault in found.faults)
    assert any("page.invalid" in asked for asked in found.asked)
