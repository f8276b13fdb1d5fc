"""Checkpoints of a run: written whole, the last few kept, checked before a run continues from them."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qat_ste.base.files import remove_unfinished, replacing
from qat_ste.base.run_config import CheckpointMismatch, completed, differences
from qat_ste.base.text import of_value, one_line
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.execution import MODES
from qat_ste.experiment.member import Member
from qat_ste.experiment.monitor import DivergenceMonitor

log = logging.getLogger(__name__)


class Checkpoints:
    """Reads and writes ``checkpoint.pt`` in ``folder``; ``checkpoint.1.pt`` and so on are the ones before.

    Args:
        config: what a checkpoint has to agree with to be continued; nested, of plain values.
        every_steps, every_seconds: when one is due; None: never for this reason.
        keep: how many files stay.

    Raises:
        CheckpointMismatch: the newest readable checkpoint has another ``config``.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        every_steps: int | None = None,
        every_seconds: float | None = 600,
        keep: int = 2,
    ) -> None:
        self.paths = [folder / ("checkpoint.pt" if not age else f"checkpoint.{age}.pt") for age in range(keep)]
        self.config = json.loads(json.dumps(config))
        self.every_steps, self.every_seconds = every_steps, every_seconds
        self._saved_at = time.monotonic()
        self._failed = False
        self._state = self._load()

    def take(self) -> dict[str, Any] | None:
        """The state to go on from, once; None where there is none."""
        state, self._state = self._state, None
        return state

    @property
    def step(self) -> int:
        """Steps done in the state to go on from; 0 where there is none."""
        return self._state["step"] if self._state else 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows logged in the state to go on from."""
        return json.loads(self._state["record"])["rows"] if self._state else []

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written after this step."""
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        return by_steps or (self.every_seconds is not None and time.monotonic() - self._saved_at >= self.every_seconds)

    def save(self, state: dict[str, Any] | None) -> None:
        """Writes a checkpoint beside the last, then takes its place. What fails costs one warning, not the run.

        None where another rank writes it.
        """
        self._saved_at = time.monotonic()
        if state is None:
            return
        try:
            remove_unfinished(self.paths[0])
            with replacing(self.paths[0], durable=True) as file:
                torch.save(state | {"config": json.dumps(self.config), "config_hash": _hash(self.config)}, file)
                file.flush()  # what there is no room for costs no older one
                for younger, older in reversed(list(zip(self.paths, self.paths[1:], strict=False))):
                    if younger.exists():
                        younger.replace(older)
            self._failed = False
        except (OSError, RuntimeError) as error:  # torch raises a RuntimeError of its own on top of the system's
            fault = error.__context__ or error
            reason = fault.strerror if isinstance(fault, OSError) else "torch could not write it"
            level = logging.INFO if self._failed else logging.WARNING  # of a full disk each one fails
            log.log(level, "no checkpoint at step %s: %s; the one before stays", state["step"], reason)
            self._failed = True

    def _load(self) -> dict[str, Any] | None:
        for path in self.paths:
            if not path.exists():
                continue
            try:
                state = _read(path)
                saved = json.loads(state["config"])
            except Exception as error:  # whatever a damaged file leads to
                reason = one_line((str(error) or type(error).__name__).splitlines()[0], 200)
                log.warning("%s cannot be read (%s): looking for an older one", path, reason)
                continue
            if found := differences(completed(saved), completed(self.config)):
                raise CheckpointMismatch(path, found)
            return state
        return None


def _read(path: Path) -> dict[str, Any]:
    """What is in the file, without executing any of it.

    Raises:
        Exception: of whatever kind; it is no whole checkpoint.
    """
    if not path.is_file():
        raise ValueError("it is no file")
    with zipfile.ZipFile(path) as file:
        names, sizes = file.namelist(), [info.file_size for info in file.infolist()]
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())
        if not stored or len({*names}) < len(names) or sum(sizes) > path.stat().st_size:
            raise ValueError("its parts are not as torch writes them")
        if file.testzip() is not None:  # torch itself does not look at checksums
            raise ValueError("its checksum is wrong")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    step, rows = state["step"], json.loads(state["record"])["rows"]
    if type(step) is not int or not all(type(row["step"]) is int and 0 < row["step"] <= step for row in rows):
        raise ValueError("it does not say after which step it was made")
    return state


def _hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


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
        if not isinstance(saved, dict) or _filled(saved) != _filled(now):
            return f"{where} has other keys"
        return next(filter(None, (misfit(saved[key], now[key], f"{where}.{key}") for key in now if key in saved)), None)
    if isinstance(now, list | tuple):
        if not _is_list(saved, len(now)):
            return f"{where} is no list of {len(now)}"
        return next(filter(None, (misfit(saved[n], now[n], f"{where}.{n}") for n in range(len(now)))), None)
    if now is None:  # what an optimizer has not begun to keep, or a number that is not there
        return None if _is_number(saved) or isinstance(saved, bool | Tensor) else f"{where} is no number"
    if _is_number(now):
        return None if _is_number(saved) else f"{where} is no number"
    return None if now is ... or type(saved) is type(now) else f"{where} is no {type(now).__name__}"


def _filled(values: dict[Any, Any]) -> set[Any]:
    """Keys but for those of empty dictionaries: a metric that gathers nothing may have come since."""
    return {key for key, value in values.items() if value is ANY_NUMBERS or not (isinstance(value, dict) and not value)}


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
