"""The command line of a script that makes tables, part by part."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping


def run_parts(description: str | None, parts: Mapping[str, Callable[[], None]]) -> None:
    """Calls the parts that the command line names."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("parts", nargs="+", choices=parts)
    for part in parser.parse_args().parts:
        parts[part]()
