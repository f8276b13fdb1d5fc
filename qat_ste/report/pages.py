"""Draws figures and fills the templates of all pages."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from qat_ste.base.files import write
from qat_ste.report.style import DOTS_PER_INCH, STYLE

CSS_PIXELS_PER_INCH = 115  # 96 is the size in print; the page's text is a fifth larger, too
Plan = tuple[str, str, str, Callable[[], Figure]]  # name, heading, caption, function that draws it


@dataclass(frozen=True)
class Picture:
    """A figure with its heading and caption; ``png`` is the content of the file ``name``.png."""

    name: str
    heading: str
    caption: str
    png: bytes

    @property
    def width(self) -> int:
        """CSS pixels in the page; the PNG header holds the width in pixels of the file."""
        return int.from_bytes(self.png[16:20], "big") * CSS_PIXELS_PER_INCH // DOTS_PER_INCH

    @property
    def data(self) -> str:
        """The PNG in base64, for the page."""
        return base64.b64encode(self.png).decode()


def draw_all(plans: Iterable[Plan], folder: Path) -> tuple[list[Picture], dict[str, str]]:
    """Draws figures into ``folder``; returns those drawn, in order, and the error of each other one by name."""
    pictures, failures = [], {}
    for name, heading, caption, draw in plans:
        try:
            with mpl.rc_context(STYLE):
                picture = Picture(name, heading, caption, png(draw()))
            write(folder / f"{name}.png", picture.png)
            pictures.append(picture)
        except Exception as error:  # a figure that fails must not cost the others
            failures[name] = f"{type(error).__name__}: {error}"
    return pictures, failures


def png(figure: Figure, colors: int = 256) -> bytes:
    """Draws a figure as a PNG file; a palette makes it at most a third of the size.

    The canvas is Agg's: the backend that a user selected is neither used nor changed.
    """
    figure.set_dpi(DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    content = BytesIO()
    drawn.quantize(colors, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(content, "PNG")
    return content.getvalue()


def with_pdf(draw: Callable[[], Figure], path: Path) -> Figure:
    """Draws a figure and also writes it as a PDF file."""
    figure, content = draw(), BytesIO()
    with mpl.rc_context({"pdf.fonttype": 42}):  # fonts as text, which journals ask for
        figure.savefig(content, format="pdf", metadata={"CreationDate": None})
    write(path, content.getvalue())
    return figure


def fill(template: str, **values: Any) -> str:
    """Fills a template of this package; returns HTML in which every value is escaped."""
    loader = PackageLoader("qat_ste.report", ".")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(values)
