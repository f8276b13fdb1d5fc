"""The numbers of a card as text, for the terminal and the catalogue."""

from __future__ import annotations

from qat_ste.base.estimator_card import Card

HOLDS = {True: "yes", False: "no", None: "–"}


def card_numbers(card: Card) -> list[tuple[str, str]]:
    """Title and value of each number; the first says whether the theorem covers the estimator."""
    if card.refusal:
        theorem = f"does not apply: {card.refusal}"
    elif card.not_covered:
        theorem = f"does not cover this estimator: {card.not_covered}"
    else:
        theorem = "covers this estimator"
    adjustment = card.equivalence if card.refusal or card.not_covered else f"{card.equivalence}: {card.reason}"
    numbers = [
        ("theorem", theorem),
        ("compared with" if card.not_covered else "amounts to", card.ste_run),
        ("adjustment", adjustment),
    ]
    if card.lr_factor is not None and card.largest_shift is not None:
        numbers.append(("α", significant(card.lr_factor)))
        numbers.append(("largest |M(w) - w|", f"{significant(card.largest_shift)} steps"))
    return [*numbers, ("mean of g", significant(card.mean))]


def significant(value: float) -> str:
    """Four significant digits."""
    return f"{round(value, 9):.4g}"
