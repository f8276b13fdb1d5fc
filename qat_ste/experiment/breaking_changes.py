"""The settings of a run that break the equivalence, and what mends each; see docs/equivalence.md."""

from __future__ import annotations

from qat_ste.experiment.cohort import Cohort
from qat_ste.optimizers import Equivalence

DECOUPLED = ("AdamW", "Lion", "Muon")  # weight decay beside the gradient, as far as no key of a group says so
MIRRORED = "the counterpart 'mirrored' decays as the reference does"


def breaking_changes(cohort: Cohort) -> dict[str, str]:
    """Remedies in words, by the setting and value that each mends; empty where ``ste`` should follow the reference."""
    training, equivalence = cohort.training, cohort.adjustment.equivalence
    optimizer = next(iter(cohort.local.values())).optimizer
    if equivalence is Equivalence.NONE:
        if cohort.equivalent is None:  # it is the estimator that has no counterpart
            return {}
        return {f"an optimizer without a known adjustment ({type(optimizer).__name__})": "SGD and Adam have one."}
    remap, exact = equivalence is Equivalence.REMAP, equivalence is Equivalence.EXACT
    changes = {}
    for group in optimizer.param_groups[:1]:
        decay = group.get("weight_decay")
        decoupled = group.get("decoupled_weight_decay", type(optimizer).__name__ in DECOUPLED)
        if decay and (remap or not decoupled):
            instead = f"train.weight_decay={decay:g}" if decoupled else f"train.l2={decay / 2:g}"
            remedy = f"Use {instead} in its place; then {MIRRORED}."
            changes[f"weight decay (optimizer.weight_decay={decay:g})"] = remedy
    moving = next((tensor.scale for tensor in cohort.tensors if tensor.scale is not None), None)
    if moving is not None and (remap or (moving.has_gradient and equivalence is Equivalence.KEEP)):
        remedy = "Use a fixed scale; or the counterpart 'mirrored', whose scale moves as the reference's does."
        changes[f"a scale that moves (quantizer.scale={moving.name})"] = remedy
    mirrored = f"{MIRRORED[0].upper()}{MIRRORED[1:]}."
    if training.weight_decay and remap:
        changes[f"weight decay (train.weight_decay={training.weight_decay:g})"] = mirrored
    if training.l2:
        changes[f"the L2 penalty (train.l2={training.l2:g})"] = mirrored
    if training.clip_norm is not None and training.clip_at == "latent" and not exact:
        remedy = "Use train.clip_at=quantized; or the counterpart 'mirrored', which is clipped as the reference is."
        changes[f"gradient clipping (train.clip_norm={training.clip_norm:g})"] = remedy
    return changes
