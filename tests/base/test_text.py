"""Errors and values in messages: one line that steers no terminal."""

from __future__ import annotations

import pytest

from qat_ste.base.text import of_error, of_value


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "a\x1b[31m\nb"), "a [31m b: No space left on device"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("two\n  lines\x1b"), "ValueError: two lines "),
    ],
)
def test_errors(error, told):
    assert of_error(error) == told


def test_values_are_cut():
    assert of_value("x" * 10_000) == "'" + "x" * 198 + "…"
