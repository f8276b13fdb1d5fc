from __future__ import annotations

import csv
import shutil
import subprocess
from dataclasses import replace
from html import unescape

import pytest
from markdown_it import MarkdownIt

from qat_ste.report.seeds import Summary
from qat_ste.report.sweep.page import render
from qat_ste.report.sweep.paper_table import PAPER_ROWS, Column, PaperTable, blocks, paper_tables, shown_summary
from qat_ste.report.writers import CSV_HEADER, csv_text, latex_text, markdown_text, to_csv, to_latex, to_markdown

HOSTILE = [
    "\\ { } $ & # _ ^ ~ %", "a|b", "=1+1", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "[x](http://a)",
    "# head", "`code` *b* __c__", "[[a", "é η 漢", "two\nlines\ttab", "\x1b[31mred", "@SUM(A1)", "+1", "-1", "\\input{x}",
    "{{ 7*7 }}", "{% raw %}", "%5C", "--", "'quoted'", "a,b;c", "<!--", "&lt;", "$x^2$", "~~gone~~", "http://a.b",
]  # fmt: skip


def hostile_tables() -> list[PaperTable]:
    cells = tuple(Summary(0.1 * place, 0.01, 3) for place in range(len(PAPER_ROWS)))
    return [PaperTable(name, (Column(name, name, name, cells),), PAPER_ROWS) for name in HOSTILE]


def pdf(tables: str, folder) -> str:
    """Compiles a minimal article; returns the log."""
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex on the PATH")
    (folder / "tables.tex").write_text(tables)
    (folder / "article.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n\\input{tables}\n\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "article"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_columns_of_the_matrix_are_the_papers_with_their_controls(matrix):
    sgd, adam = paper_tables(matrix.findings.measured, {})
    assert [column.title for column in sgd.columns] == [
        "ste", "jitter", "naive", "scaledown, ste", "scaledown (matched), ste",
        "1 bit, ste", "1 bit, jitter", "1 bit, naive", "4 bits, ste", "4 bits, jitter", "4 bits, naive",
    ]  # fmt: skip
    assert [column.title for column in adam.columns] == ["ste", "jitter", "scaledown, ste", "scaledown (matched), ste"]
    assert [[c.title for c in block] for block in blocks(sgd.columns, 5)] == [
        ["ste", "jitter", "naive", "scaledown, ste", "scaledown (matched), ste"],
        ["1 bit, ste", "1 bit, jitter", "1 bit, naive"],
        ["4 bits, ste", "4 bits, jitter", "4 bits, naive"],
    ]
    place = list(PAPER_ROWS).index("weight_alignment_error")
    errors = [
        group.values("ste", "weight_alignment_error") for group in matrix.findings.groups if group.row == "bits_1"
    ]
    assert sgd.columns[5].cells[place].mean == pytest.approx(sum(errors[0].values()) / 3)


def test_csv_reads_back_equal(matrix, report):
    text = (report.page.parent / "tables.csv").read_text()
    lines = list(csv.DictReader(text.splitlines()))
    assert tuple(lines[0]) == CSV_HEADER
    read = {
        (line["experiment"], line["row"], line["counterpart"], line["metric"]): Summary(
            float(line["mean"]), float(line["sd"]), int(line["n"])
        )
        for line in lines
        if line["n"] != "0"
    }
    kept = {
        (setup, row, name, metric): cell
        for setup, rows in matrix.findings.measured.items()
        for row, counterparts in rows.items()
        for name, metrics in counterparts.items()
        for metric, cell in metrics.items()
        if cell is not None
    }
    assert read == kept
    assert len(kept) > 100
    empty = [line for line in lines if line["n"] == "0"]
    assert all(line["mean"] == line["sd"] == "" for line in empty)
    assert len(lines) == 15 * len(PAPER_ROWS)


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark").enable("table").enable("strikethrough").render(markdown)


def test_markdown_renders_as_tables(report):
    html = rendered((report.page.parent / "tables.md").read_text())
    assert html.count("<table>") == 4
    assert html.count("<h3>") == 2
    assert html.count("<tbody>") == 4
    assert html.count("<td") == sum((columns + 1) * len(PAPER_ROWS) for columns in (5, 3, 3, 4))
    assert "<td>weight alignment error</td>" in html
    assert "|" not in html


def test_latex_compiles_and_fits_the_page(report, tmp_path):
    log = pdf((report.page.parent / "tables.tex").read_text(), tmp_path)
    assert "Overfull" not in log
    assert "Output written" in log


def test_hostile_names_in_latex(tmp_path):
    assert "Overfull" not in pdf(to_latex(hostile_tables()), tmp_path)
    assert latex_text("\\ { } $ & # _ ^ ~ %") == (
        r"\textbackslash{} \{ \} \$ \& \# \_ \textasciicircum{} \textasciitilde{} \%"
    )


def test_hostile_names_in_markdown():
    for name, table in zip(HOSTILE, hostile_tables(), strict=True):
        html = rendered(to_markdown([table]))
        assert html.count("<table>") == html.count("<h3>") == 1, name
        assert html.count("<td") == 2 * len(PAPER_ROWS), name
        for markup in ("<script", "<img", "<a ", "<em>", "<strong>", "<code>", "<s>"):
            assert markup not in html, name
        shown = unescape(html.split("<h3>")[1].split("</h3>")[0])
        assert " ".join(shown.split()) == " ".join("".join(c if c.isprintable() else " " for c in name).split()), name
    assert markdown_text("mnist_sgd") == "mnist_sgd"


def test_hostile_names_in_csv():
    lines = list(csv.reader(to_csv(hostile_tables()).split("\n")[:-1], strict=False))
    rows = list(csv.DictReader(to_csv(hostile_tables()).splitlines(keepends=True)))
    assert [row["experiment"] for row in rows[:: len(PAPER_ROWS)]] == [csv_text(name) for name in HOSTILE]
    assert not any(cell.startswith(("=", "+", "-", "@")) for line in lines for cell in line)
    assert csv_text("=1+1") == "'=1+1"


def test_hostile_names_in_the_page(matrix, tmp_path):
    groups = [replace(matrix.findings.groups[0], experiment=name) for name in HOSTILE]
    claims = [replace(matrix.findings.claims[0], setup=name, note=name) for name in HOSTILE]
    findings = replace(matrix.findings, groups=tuple(groups), claims=tuple(claims))
    html = render(findings, hostile_tables(), [], {name: name for name in HOSTILE}, tmp_path)
    assert html.count("<script>") == 1, "the page has one script"
    assert "<img" not in html
    assert "{{ 7*7 }}" in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_mean_and_deviation_to_the_same_place():
    assert shown_summary(None) == "–"
    assert shown_summary(Summary(0.05071, 0.00209, 3)) == "0.0507 ± 0.0021"
    assert shown_summary(Summary(28.19, 1.26, 3), 3) == "28.2 ± 1.3"
    assert shown_summary(Summary(28.19, 1.26, 2), 3) == "28.2 ± 1.3 (n = 2)"
    assert shown_summary(Summary(0.5, None, 1), 1) == "0.5000"
    assert shown_summary(Summary(1.2e-5, 3e-6, 3)) == "1.20e-05 ± 3.00e-06"
