"""Whether a saved state fits the run that is to go on from it: all of it is looked at before anything is restored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qat_ste.cohort import Cohort
from qat_ste.execution import MODES
from qat_ste.member import Member
from qat_ste.messages import of_value
from qat_ste.monitor import DivergenceMonitor

ANY_NUMBERS: dict[str, float] = {}  # in an example: numbers or None, whatever they are called


def unfit(
    state: Mapping[str, Any], cohort: Cohort, monitor: DivergenceMonitor, losses: Tensor, initial: list[Any]
) -> str | None:
    """What does not fit, in words; None where all does. The members of ``cohort`` are to be restored afterwards.

    Args:
        state: as ``training`` saves it; whatever may be in it was not made by us.
        losses, initial: of the record that goes on.
    """
    members, ranks = len(cohort.recipes), cohort.layout.ranks
    if not 1 <= state["step"] <= losses.shape[1]:
        return f"it was made after step {of_value(state['step'])} of {losses.shape[1]}"
    if state.get("names") != cohort.names or not _is_list(state.get("ranks"), ranks.size):
        return "it is of a run with other counterparts or another number of ranks"
    if state.get("mode") not in (MODES if cohort.mode == "auto" else (cohort.mode,)):
        return f"mode {of_value(state.get('mode'))} where {cohort.mode} is wanted"
    divergence = monitor.state_dict()
    for trajectory in divergence["trajectories"]:
        trajectory["sequences"] = {name: values.dtype for name, values in trajectory["sequences"].items()}
    member = next(iter(cohort.local.values()))
    of_member = {"model": member.model.state_dict(), "optimizer": ...}
    return (
        misfit(state.get("members"), dict.fromkeys(range(members), of_member), "members")
        or _unfit_optimizers(state["members"], member)
        or misfit(state["ranks"][ranks.rank], {"divergence": divergence, "losses": losses}, "ranks")
        or _unfit_record(json.loads(state["record"]), members, initial)
    )


def misfit(saved: Any, now: Any, where: str) -> str | None:
    """Where types, keys, shapes or dtypes are others than in an example, in words; None: nowhere.

    In the example a number stands for any number or None, a dtype for a vector of any length, ... for anything.
    """
    if isinstance(now, Tensor):
        return None if _like(saved, now.dtype) and saved.shape == now.shape else f"{where} is no {_form(now)}"
    if isinstance(now, torch.dtype):
        fits = _like(saved, now) and saved.ndim == 1 and saved.is_contiguous()
        return None if fits else f"{where} is no vector of {now}"
    if now is ANY_NUMBERS:
        fits = isinstance(saved, dict) and all(_is_number(value) for value in saved.values())
        return None if fits else f"{where} holds no numbers"
    if isinstance(now, dict):
        if not isinstance(saved, dict) or saved.keys() != now.keys():
            return f"{where} has other keys"
        return next(filter(None, (misfit(saved[key], now[key], f"{where}.{key}") for key in now)), None)
    if isinstance(now, list | tuple):
        if not _is_list(saved, len(now)):
            return f"{where} is no list of {len(now)}"
        return next(filter(None, (misfit(saved[n], now[n], f"{where}.{n}") for n in range(len(now)))), None)
    if now is None:  # what an optimizer has not begun to keep, or a number that is not there
        return None if _is_number(saved) or isinstance(saved, bool | Tensor) else f"{where} is no number"
    if _is_number(now):
        return None if _is_number(saved) else f"{where} is no number"
    return None if now is ... or type(saved) is type(now) else f"{where} is no {type(now).__name__}"


def _unfit_optimizers(members: Mapping[int, Any], like: Member) -> str | None:
    """Held against what the optimizer keeps after a step of ``like``, which is restored afterwards."""
    optimizer = like.optimizer
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    now = optimizer.state_dict()
    for number, member in members.items():
        where, saved = f"members.{number}.optimizer", member["optimizer"]
        if not isinstance(saved, dict) or not saved.keys() >= {"state", "param_groups"}:
            return f"{where} has other keys"
        groups = saved["param_groups"]
        if not _is_list(groups, len(now["param_groups"])) or not isinstance(saved["state"], dict):
            return f"{where} has other groups"
        for group, own in zip(groups, now["param_groups"], strict=True):
            if not isinstance(group, dict) or group.get("params") != own["params"]:
                return f"{where} has other parameters"
            for key in own:  # one that it lacks, of an earlier version, is taken from what is there now
                if found := misfit(group.setdefault(key, own[key]), own[key], f"{where}.{key}"):
                    return found
        for place, of_parameter in saved["state"].items():  # parameters without a gradient have none
            own = now["state"].get(place)
            if own is None or not isinstance(of_parameter, dict) or not of_parameter.keys() >= own.keys():
                return f"{where} has other parameters"
            for key, kept in own.items():
                example = ... if isinstance(kept, dict | list | tuple) else kept  # which may grow
                if found := misfit(of_parameter[key], example, f"{where}.{place}.{key}"):
                    return found
    return None


def _unfit_record(saved: Mapping[str, Any], members: int, initial: list[Any]) -> str | None:
    numbers, evaluations, validation = [0.0] * members, saved.get("evaluations"), saved.get("validation")
    if not isinstance(evaluations, list) or not isinstance(validation, list):
        return "record has other keys"
    evaluation = {"loss": 0.0, "accuracy": 0.0, "against_reference": ANY_NUMBERS}
    return (
        misfit(saved.get("initial"), initial, "record.initial")
        or misfit(evaluations, [evaluation] * (members if evaluations else 0), "record.evaluations")
        or misfit(validation, [(0, numbers, numbers)] * len(validation), "record.validation")
        or _gaps(evaluations, validation)
    )


def _gaps(evaluations: list[Any], validation: list[Any]) -> str | None:
    """Targets are classes, or they are not: accuracies are there throughout, or never; losses always are."""
    accuracies = {evaluation["accuracy"] is None for evaluation in evaluations}
    accuracies |= {accuracy is None for _, _, of_members in validation for accuracy in of_members}
    gaps = len(accuracies) > 1 or any(None in losses for _, losses, _ in validation)
    return "record has gaps" if gaps else None


def _like(saved: Any, dtype: torch.dtype) -> bool:
    """Whether it is a tensor as the run itself saves it: of no other class or layout, each number in its own place."""
    plain = type(saved) is Tensor and saved.layout == torch.strided and saved.device.type == "cpu"
    if not plain or saved.dtype != dtype or saved.requires_grad or saved.is_neg() or saved.is_conj():
        return False
    return saved.untyped_storage().nbytes() >= saved.nbytes


def _form(now: Tensor) -> str:
    return f"tensor of shape {tuple(now.shape)} and {now.dtype}"


def _is_list(saved: Any, length: int) -> bool:
    return isinstance(saved, list | tuple) and len(saved) == length


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 63  # one of thousands of digits is no float either
    return value is None or isinstance(value, float)
