"""Figures that are made but not drawn, where a test looks at something else: most of the time goes into drawing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from unittest.mock import patch

from PIL import Image


@contextmanager
def undrawn() -> Iterator[None]:
    """PNG files of pages are one white pixel, PDF files empty; what makes the figures is called as ever."""
    pixel = BytesIO()
    Image.new("RGB", (1, 1), "white").save(pixel, "PNG")
    with (
        patch("qat_ste.report.pages.png", return_value=pixel.getvalue()),
        patch("matplotlib.figure.Figure.savefig"),
    ):
        yield
