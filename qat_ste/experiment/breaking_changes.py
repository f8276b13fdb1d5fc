"""The changes of gradients and weights that break the equivalence; see docs/equivalence.md."""

from __future__ import annotations

from qat_ste.experiment.cohort import Cohort
from qat_ste.optimizers import Equivalence

DECOUPLED = ("AdamW", "Lion", "Muon")  # weight decay beside the gradient, as far as no key of a group says so


def breaking_changes(cohort: Cohort) -> list[str]:
    """In words, with the values that cause them; empty where ``ste`` should follow the reference."""
    training, equivalence = cohort.training, cohort.adjustment.equivalence
    if equivalence not in (Equivalence.REMAP, Equivalence.KEEP):
        return []
    changes = []
    optimizer = next(iter(cohort.local.values())).optimizer
    for group in optimizer.param_groups[:1]:
        decoupled = group.get("decoupled_weight_decay", type(optimizer).__name__ in DECOUPLED)
        if group.get("weight_decay") and (equivalence is Equivalence.REMAP or not decoupled):
            changes.append(f"weight decay (optimizer.weight_decay={group['weight_decay']:g})")
    if training.weight_decay and equivalence is Equivalence.REMAP:
        changes.append(f"weight decay (train.weight_decay={training.weight_decay:g})")
    if training.l2:
        changes.append(f"the L2 penalty (train.l2={training.l2:g})")
    if training.clip_norm is not None and training.clip_at == "latent":
        changes.append(f"gradient clipping (train.clip_norm={training.clip_norm:g})")
    return changes
