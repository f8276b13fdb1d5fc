"""Checkpoints of a run: written atomically, the last few kept, checked before a run resumes from them."""

from __future__ import annotations

import json
import logging
import time
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qat_ste.base.files import home_path, remove_unfinished, replacing
from qat_ste.base.run_config import CheckpointMismatch, completed, differences, digest
from qat_ste.base.sections import EXECUTIONS, CheckpointSchedule
from qat_ste.base.text import of_value, one_line
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.member import Member
from qat_ste.experiment.monitor import DivergenceMonitor
from qat_ste.experiment.segments import Segments
from qat_ste.fake_quant.fake_quantize import packed_state

log = logging.getLogger(__name__)


class Checkpoints:
    """Reads and writes ``checkpoint.pt`` in ``folder``; ``checkpoint.1.pt`` and so on are older ones.

    Args:
        config: nested plain values that a checkpoint must agree with to be resumed.
        schedule: when a checkpoint is due, and how many files stay.

    Raises:
        CheckpointMismatch: the newest readable checkpoint has another ``config``.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any] | None = None,
        schedule: CheckpointSchedule = CheckpointSchedule(),
    ) -> None:
        folder = home_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = ["checkpoint.pt", *(f"checkpoint.{age}.pt" for age in range(1, schedule.keep))]
        self.paths = [folder / name for name in names]
        self.config = json.loads(json.dumps(config or {}))
        self.schedule = schedule
        self._saved_at = time.monotonic()
        self._failed = False
        self._state = self._load()

    def take(self) -> dict[str, Any] | None:
        """The state to resume from, once; None if there is none."""
        state, self._state = self._state, None
        return state

    @property
    def step(self) -> int:
        """Steps done in the state to resume from; 0 if there is none."""
        return self._state["step"] if self._state else 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows logged in the state to resume from."""
        return json.loads(self._state["record"])["rows"] if self._state else []

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written after this step."""
        steps, seconds = self.schedule.every_steps, self.schedule.every_seconds
        by_steps = steps is not None and step % steps == 0
        return by_steps or (seconds is not None and time.monotonic() - self._saved_at >= seconds)

    def save(self, state: dict[str, Any] | None) -> None:
        """Writes a checkpoint and then replaces the last. A failure costs one warning, not the run.

        ``state`` is None where another rank writes it.
        """
        self._saved_at = time.monotonic()
        if state is None:
            return
        try:
            remove_unfinished(self.paths[0])
            with replacing(self.paths[0], durable=True) as file:
                torch.save(state | {"config": json.dumps(self.config), "config_hash": digest(self.config)}, file)
                file.flush()  # fails before an older file is lost
                for younger, older in reversed(list(zip(self.paths, self.paths[1:], strict=False))):
                    if younger.exists():
                        younger.replace(older)
            self._failed = False
        except (OSError, RuntimeError) as error:  # torch wraps the system's error
            fault = error.__context__ or error
            reason = fault.strerror if isinstance(fault, OSError) else "torch could not write it"
            level = logging.INFO if self._failed else logging.WARNING  # on a full disk each one fails
            log.log(level, "no checkpoint at step %s: %s; the previous one stays", state["step"], reason)
            self._failed = True

    def _load(self) -> dict[str, Any] | None:
        for path in self.paths:
            if not path.exists():
                continue
            try:
                state = _read(path)
                saved = json.loads(state["config"])
            except Exception as error:  # a damaged file may raise anything
                reason = one_line((str(error) or type(error).__name__).splitlines()[0], 200)
                log.warning("%s cannot be read (%s): looking for an older one", path, reason)
                continue
            if mismatches := differences(completed(saved), completed(self.config)):
                raise CheckpointMismatch(path, mismatches)
            return state
        return None


def _read(path: Path) -> dict[str, Any]:
    """The content of the file, loaded without executing any of it.

    Raises:
        Exception: of any kind; the file is not a whole checkpoint.
    """
    if not path.is_file():
        raise ValueError("it is not a file")
    with zipfile.ZipFile(path) as file:
        names, sizes = file.namelist(), [info.file_size for info in file.infolist()]
        stored = all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())
        if not stored or len({*names}) < len(names) or sum(sizes) > path.stat().st_size:
            raise ValueError("its entries are not as torch writes them")
        if file.testzip() is not None:  # torch itself does not check them
            raise ValueError("its checksum is wrong")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    step, rows = state["step"], json.loads(state["record"])["rows"]
    if type(step) is not int or not all(type(row["step"]) is int and 0 < row["step"] <= step for row in rows):
        raise ValueError("its step is missing or wrong")
    return state


ANY_NUMBERS: dict[str, float] = {}  # in an example: any keys whose values are numbers or None


def unfit(
    state: Mapping[str, Any],
    cohort: Cohort,
    monitor: DivergenceMonitor,
    losses: Tensor,
    initial: list[Any],
    segments: Segments | None,
) -> str | None:
    """Why the state does not fit this run, in words; None if it fits. Restore the members of ``cohort`` afterwards.

    Args:
        state: as saved by the lockstep loop, but not trusted.
        losses, initial: of the record that is resumed.
    """
    members, ranks = len(cohort.specs), cohort.layout.ranks
    if not 1 <= state["step"] <= losses.shape[1]:
        return f"it was made after step {of_value(state['step'])} of {losses.shape[1]}"
    if state.get("names") != cohort.names or not _is_list(state.get("ranks"), ranks.size):
        return "its run has other counterparts or another number of ranks"
    if state.get("mode") not in (EXECUTIONS if cohort.mode == "auto" else (cohort.mode,)):
        return f"its mode is {of_value(state.get('mode'))}, not {cohort.mode}"
    divergence = monitor.state_dict()
    for trajectory in divergence["trajectories"]:
        trajectory["sequences"] = {name: values.dtype for name, values in trajectory["sequences"].items()}
    member = next(iter(cohort.local.values()))
    model = {name: values for name, values in member.model.state_dict().items() if name not in cohort.needs.resized}
    if cohort.scales_move:  # the text of a scale can have any length
        model |= {name: values.dtype for name, values in model.items() if name.endswith("_extra_state")}
    of_member = {"model": model, "optimizer": ...}
    of_rank: dict[str, Any] = {"divergence": divergence, "losses": losses}
    trained = members
    if segments is not None:
        of_rank["segments"] = segments.example(state["step"])
        trained += len(segments.parts)
    saved = _comparable(state.get("members"), cohort.needs.resized)
    return (
        misfit(saved, dict.fromkeys(range(trained), of_member), "members")
        or _unfit_optimizers(state["members"], member)
        or misfit(state["ranks"][ranks.rank], of_rank, "ranks")
        or _unfit_record(json.loads(state["record"]), members, initial)
    )


def _comparable(members: Any, resized: Collection[str]) -> Any:
    """Saved members without buffers that a step resizes, and with the states of quantizers as the present version."""

    def tensors(model: dict[str, Any]) -> dict[str, Any]:
        kept = {name: values for name, values in model.items() if name not in resized or type(values) is not Tensor}
        states = {name: packed_state(values) for name, values in kept.items() if isinstance(values, dict)}
        return kept | states

    if not isinstance(members, dict):
        return members
    models = {number: member.get("model") for number, member in members.items() if isinstance(member, dict)}
    fitting = {number: tensors(model) for number, model in models.items() if isinstance(model, dict)}
    return members | {number: members[number] | {"model": model} for number, model in fitting.items()}


def misfit(saved: Any, now: Any, where: str) -> str | None:
    """The first place where types, keys, shapes or dtypes differ from an example, in words; None if all agree.

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
    if now is None:  # state that an optimizer has not created yet, or a missing number
        return None if _is_number(saved) or isinstance(saved, bool | Tensor) else f"{where} is no number"
    if _is_number(now):
        return None if _is_number(saved) else f"{where} is no number"
    return None if now is ... or type(saved) is type(now) else f"{where} is no {type(now).__name__}"


def _filled(values: dict[Any, Any]) -> set[Any]:
    """Keys without those of empty dictionaries: a newer version may have metrics that gather nothing."""
    return {key for key, value in values.items() if value is ANY_NUMBERS or not (isinstance(value, dict) and not value)}


def _unfit_optimizers(members: Mapping[int, Any], like: Member) -> str | None:
    """Compares with the optimizer state after a step of ``like``, which is restored afterwards."""
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
        for group, expected in zip(groups, now["param_groups"], strict=True):
            if not isinstance(group, dict) or group.get("params") != expected["params"]:
                return f"{where} has other parameters"
            for key in expected:  # a key that an older version lacks is taken from the present group
                if problem := misfit(group.setdefault(key, expected[key]), expected[key], f"{where}.{key}"):
                    return problem
        for place, of_parameter in saved["state"].items():  # parameters without a gradient have none
            expected = now["state"].get(place)
            if expected is None or not isinstance(of_parameter, dict) or not of_parameter.keys() >= expected.keys():
                return f"{where} has other parameters"
            for key, kept in expected.items():
                example = ... if isinstance(kept, dict | list | tuple) else kept  # containers may grow
                if problem := misfit(of_parameter[key], example, f"{where}.{place}.{key}"):
                    return problem
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
    """Accuracies must be there always or never (targets are classes or not); losses always."""
    accuracies = {evaluation["accuracy"] is None for evaluation in evaluations}
    accuracies |= {accuracy is None for _, _, of_members in validation for accuracy in of_members}
    gaps = len(accuracies) > 1 or any(None in losses for _, losses, _ in validation)
    return "record has gaps" if gaps else None


def _like(saved: Any, dtype: torch.dtype) -> bool:
    """Whether this is a tensor as the run saves it: plain class and layout, each number stored once."""
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
        return abs(value) < 1 << 63  # a float cannot hold thousands of digits
    return value is None or isinstance(value, float)
