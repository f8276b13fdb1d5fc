"""Writes the paper's table as Markdown, LaTeX and CSV; escapes all names, which come from files of runs."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from qat_ste.base.text import one_line
from qat_ste.report.sweep.claims import Claim
from qat_ste.report.sweep.paper_table import Column, PaperTable, blocks

MARKUP = re.compile(r"[\\`*\[\]|#~$]|(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word is not markup
CSV_HEADER = ("experiment", "row", "counterpart", "metric", "mean", "sd", "n")
MARKDOWN_COLUMNS = 5  # beside the titles, that fit the width of a page
LATEX_COLUMNS = 4  # likewise, the width of an article's text
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "…": r"\dots{}", "–": "--", "×": r"$\times$", "≈": r"$\approx$",
    "α": r"$\alpha$", "η": r"$\eta$", "β": r"$\beta$", "−": "$-$",
}  # fmt: skip


def to_markdown(tables: Sequence[PaperTable]) -> str:
    """Writes a heading and a table for each set-up."""
    return "\n\n".join(f"### {markdown_text(table.setup)}\n\n{markdown_table(table)}" for table in tables) + "\n"


def markdown_table(table: PaperTable) -> str:
    """Writes the table of one set-up, without a heading, as tables that fit the width of a page."""
    tables = []
    for columns in blocks(table.columns, MARKDOWN_COLUMNS):
        header = ["", *(f"{column.title} (n = {column.n})" for column in columns)]
        cells = zip(table.rows.values(), *(column.shown for column in columns), strict=True)
        tables.append(markdown_lines([header, *cells], left=1))
    return "\n\n".join(tables)


def markdown_claims(claims: Sequence[Claim]) -> str:
    """Writes a table of claims and their numbers."""
    header = ["set-up", "claim", "ratio", "bound", "measured", "95 % interval", "n", "the claim"]
    lines = [
        [c.setup, c.published, c.ratio, c.bound, shown_ratio(c.value), shown_interval(c), str(c.n), c.word]
        for c in claims
    ]
    return markdown_lines([header, *lines], left=3)


def markdown_lines(lines: Sequence[Sequence[str]], left: int) -> str:
    """Writes a table; the first line is its header.

    Args:
        lines: of cells.
        left: number of columns, from the first, that are aligned to the left.
    """
    rows = ["| " + " | ".join(markdown_text(cell) for cell in line) + " |" for line in lines]
    rule = "|" + "---|" * left + "---:|" * (len(lines[0]) - left)
    return "\n".join([rows[0], rule, *rows[1:]])


def shown_ratio(value: float | None) -> str:
    """Formats a ratio with three significant digits."""
    return "–" if value is None else f"{value:#.3g}".removesuffix(".") if value < 1000 else f"{value:.2e}"


def shown_interval(claim: Claim) -> str:
    """Formats both ends of the confidence interval."""
    return "–" if claim.low is None else f"{shown_ratio(claim.low)} to {shown_ratio(claim.high)}"


def to_latex(tables: Sequence[PaperTable]) -> str:
    r"""Writes tables for ``\input`` in an article that uses booktabs; each fits the width of its text."""
    tabulars = ["% \\usepackage{booktabs}"]
    for table in tables:
        for block in blocks(table.columns, LATEX_COLUMNS):
            tabulars.append(_tabular(table, block))
    return "\n\n".join(tabulars) + "\n"


def _tabular(table: PaperTable, columns: Sequence[Column]) -> str:
    titles = [column.title.replace(" (", ", (").partition(", ") for column in columns]  # over two lines
    header = [
        [column.title if column.row == "default" else first, rest, str(column.n)]
        for column, (first, _, rest) in zip(columns, titles, strict=True)
    ]
    above, below, counts = ([latex_text(cell) for cell in line] for line in zip(*header, strict=True))
    cells = zip(table.rows.values(), *(column.shown for column in columns), strict=True)
    lines = [[rf"\raggedright {latex_text(title)}", *map(_latex_number, numbers)] for title, *numbers in cells]
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering\scriptsize\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{latex_text(table.setup)}: mean $\pm$ standard deviation over seeds}}",
            rf"\begin{{tabular}}{{@{{}}p{{2.7cm}}{'r' * len(columns)}@{{}}}}",
            r"\toprule",
            *(_latex_line(line) for line in (["", *above], ["", *below], ["seeds", *counts])),
            r"\midrule",
            *(_latex_line(line) for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def latex_table(lines: Sequence[Sequence[str]], left: int, caption: str) -> str:
    r"""Writes a table for ``\input`` in an article that uses booktabs; the first line is its header.

    Args:
        lines: of cells.
        left: number of columns, from the first, that are aligned to the left.
        caption: above the table.
    """
    header, *rows = (_latex_line([latex_text(cell) for cell in line]) for line in lines)
    return "\n".join(
        [
            "% \\usepackage{booktabs}",
            r"\begin{table}[htbp]",
            r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{latex_text(caption)}}}",
            rf"\begin{{tabular}}{{@{{}}{'l' * left}{'r' * (len(lines[0]) - left)}@{{}}}}",
            r"\toprule",
            header,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_number(text: str) -> str:
    mean, sign, rest = text.partition(" ± ")
    return rf"{latex_text(mean)} {{\tiny $\pm$ {latex_text(rest)}}}" if sign else latex_text(text)


def to_csv(tables: Sequence[PaperTable]) -> str:
    """Writes one line per number, in long form; floats read back equal, a cell without a number is empty."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for table in tables:
        for column in table.columns:
            names = [csv_text(name) for name in (table.setup, column.row, column.counterpart)]
            for metric, cell in zip(table.rows, column.cells, strict=True):
                numbers = ["", "", 0] if cell is None else [repr(cell.mean), _deviation(cell.sd), cell.n]
                writer.writerow([*names, csv_text(metric), *numbers])
    return text.getvalue()


def csv_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes one line per row; the keys of the first row are the header.

    Floats are written as Python writes them; None is an empty field.
    """
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: csv_text(value) if isinstance(value, str) else value for key, value in row.items()})
    return text.getvalue()


def markdown_text(text: str) -> str:
    """Escapes a text for Markdown, as one line."""
    return MARKUP.sub(r"\\\g<0>", one_line(text)).replace("&", "&amp;").replace("<", "&lt;")


def latex_text(text: str) -> str:
    """Escapes a text for LaTeX, as one line; writes the code point of characters that its fonts lack."""
    return "".join(_latex_char(char) for char in one_line(text))


def _latex_char(char: str) -> str:
    return LATEX.get(char) or (char if char.isascii() else f"(U+{ord(char):04X})")


def csv_text(text: str) -> str:
    """Formats a text as one line; an apostrophe keeps spreadsheets from reading it as a formula."""
    line = one_line(text)
    return f"'{line}" if line.lstrip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")) else line


def _deviation(value: float | None) -> str:
    return "" if value is None else repr(value)
