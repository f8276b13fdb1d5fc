"""Write a generated page of the documentation, or check that it is current."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template

DOCS = Path(__file__).resolve().parents[1] / "docs"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of a generator's command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is stale")
    return parser


def filled(name: str, **values: str) -> str:
    """Fills the ``$names`` of a page's template with these values."""
    return Template((DOCS / "templates" / f"{name}.md").read_text(encoding="utf-8")).substitute(values)


def publish(path: Path, text: str, check: bool, figures: Mapping[str, Callable[[Path], object]] = {}) -> int:
    """Writes a page and its figures, or checks that they are current; returns the exit code.

    Args:
        figures: functions that draw to a path, by file name. The files lie in the folder named like the page, from
            which other figures are removed. Without figures the folder is not touched.
    """
    folder = path.with_suffix("")
    existing = {file.name for file in folder.glob("*.png")} if figures else set()
    if check:
        if not path.is_file() or path.read_text(encoding="utf-8") != text or existing != figures.keys():
            print(f"{path} is stale: run python scripts/{path.stem}_docs.py", file=sys.stderr)
            return 1
        return 0
    (folder if figures else path.parent).mkdir(parents=True, exist_ok=True)
    for name in existing - figures.keys():
        (folder / name).unlink()
    for name, draw in figures.items():
        draw(folder / name)
    path.write_text(text, encoding="utf-8")
    print(path)
    return 0
