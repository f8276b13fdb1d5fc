"""A generated page of the documentation: written, or checked to be current."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template

DOCS = Path(__file__).resolve().parents[1] / "docs"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Of a generator's command line."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--check", action="store_true", help="write nothing, say whether the page is up to date")
    return made


def filled(name: str, **parts: str) -> str:
    """The template of a page with these parts in the place of its ``$names``."""
    return Template((DOCS / "templates" / f"{name}.md").read_text(encoding="utf-8")).substitute(parts)


def publish(path: Path, text: str, check: bool, figures: Mapping[str, Callable[[Path], object]] = {}) -> int:
    """Writes a page and its figures, or checks that they are as they would be written; returns the exit code.

    Args:
        figures: draws each, by its name, to a file in the folder of the page's name, which holds no other figures;
            without any the folder stays as it is.
    """
    folder = path.with_suffix("")
    there = {file.name for file in folder.glob("*.png")} if figures else set()
    if check:
        if not path.is_file() or path.read_text(encoding="utf-8") != text or there != figures.keys():
            print(f"{path} is stale: run python scripts/{path.stem}_docs.py", file=sys.stderr)
            return 1
        return 0
    (folder if figures else path.parent).mkdir(parents=True, exist_ok=True)
    for name in there - figures.keys():
        (folder / name).unlink()
    for name, draw in figures.items():
        draw(folder / name)
    path.write_text(text, encoding="utf-8")
    print(path)
    return 0
