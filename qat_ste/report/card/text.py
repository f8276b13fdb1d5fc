"""The numbers of a card in words, for the terminal and the catalogue."""

from __future__ import annotations

from qat_ste.base.estimator_card import Card

HOLDS = {True: "yes", False: "no", None: "–"}


def card_numbers(card: Card) -> list[tuple[str, str]]:
    """Title and value of each, the STE run that it amounts to first."""
    numbers = [("amounts to", card.ste_run), ("adjustment", card.equivalence)]
    if not card.refusal:
        numbers[1] = ("adjustment", f"{card.equivalence}: {card.reason}")
    if card.lr_factor is not None and card.largest_shift is not None:
        numbers.append(("α", significant(card.lr_factor)))
        numbers.append(("largest |M(w) - w|", f"{significant(card.largest_shift)} steps"))
    return [*numbers, ("mean of g", significant(card.mean))]


def significant(value: float) -> str:
    """Four significant digits."""
    return f"{round(value, 9):.4g}"
