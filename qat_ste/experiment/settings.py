"""The arguments of a run as plain values, for its files."""

from __future__ import annotations

from typing import Any

from qat_ste.optimizers import MakeOptimizer


def plain(value: Any) -> Any:
    """The value as JSON can hold it; types and functions by name."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return (
        value
        if value is None or isinstance(value, bool | int | float | str)
        else getattr(value, "__name__", str(value))
    )


def optimizer_name(optimizer: MakeOptimizer) -> str:
    """The name of the class behind a partial."""
    made = getattr(optimizer, "func", optimizer)
    return str(getattr(made, "__name__", made))
