"""Loads the ``state_dict`` of a float network from a file, without executing any of it."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from qat_ste.base.errors import ArgumentError
from qat_ste.base.files import home_path
from qat_ste.base.text import of_error, one_line
from qat_ste.fake_quant.fake_quantize import quantized_tensors

NESTED = ("state_dict", "model", "model_state_dict")  # keys under which training scripts save a state_dict
MOST_NAMES, LONGEST = 3, 80  # names in a message, and characters of each
ZIP, LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save start


def load_checkpoint(
    model: nn.Module, path: str | os.PathLike[str], rename: Mapping[str, str] | None = None
) -> nn.Module:
    """Loads the ``state_dict`` in a file into a plain float model, strictly and in place; returns the model.

    Floating-point tensors of at most as many bits are converted to the model's type. An error leaves the model
    unchanged.

    Args:
        path: a file of ``torch.save`` that holds a ``state_dict``, or a dictionary with it under exactly one of the
            keys ``state_dict``, ``model``, ``model_state_dict``; or a ``.safetensors`` file. A leading ``~`` is
            expanded.
        rename: new prefixes of the names in the file, by old prefix: ``{"module.": ""}``. The longest prefix that
            matches a name is replaced; ``""`` matches every name.

    Raises:
        ArgumentError: the file cannot be read, or its tensors do not fit the model or are not finite.
    """
    return CheckpointFile(path, rename).load_into(model)


class CheckpointFile:
    """The ``state_dict`` of a file, in memory; arguments and errors as for ``load_checkpoint``.

    Attributes:
        sha256: of the file, in hexadecimal.
    """

    def __init__(self, path: str | os.PathLike[str], rename: Mapping[str, str] | None = None) -> None:
        self._path = path
        self._rename = _checked_rename(rename)
        if not isinstance(path, str | os.PathLike):
            raise self._error("the path of a file")
        self._path = os.fspath(path)
        try:
            file_path = home_path(path)
            if not file_path.exists():
                raise self._error("an existing file")
            if not file_path.is_file():
                raise self._error("a file, not a folder" if file_path.is_dir() else "a regular file")
            with file_path.open("rb") as file:
                self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
                self._state = self._state_of(self._content(file))
        except OSError as error:
            raise self._error(f"a readable file ({error.strerror or of_error(error)})") from None

    def load_into(self, model: nn.Module) -> nn.Module:
        """Loads the tensors into the model; returns it."""
        if any(True for _ in quantized_tensors(model)):
            raise self._error("loaded into a float network, before quantize_weights")
        state, target = self._renamed(self._rename), model.state_dict()
        common = [name for name in state if isinstance(target.get(name), Tensor)]
        reshaped = [name for name in common if _shape(state[name]) != _shape(target[name])]
        missing, extra = _unmatched(model, state, {name: target[name] for name in reshaped})
        faults = []
        if missing:
            faults.append(f"the file lacks {_listed(f'{name} ({_shape(target.get(name))})' for name in missing)}")
        if extra:
            faults.append(f"the network lacks {_listed(f'{name} ({_shape(state[name])})' for name in extra)}")
        if reshaped:
            shapes = (f"{name} is {_shape(state[name])}, not {_shape(target[name])}" for name in reshaped)
            faults.append(f"in the file {_listed(shapes)}")
        if faults:
            remedy = self._remedy(target) or "build the network as it was when the file was saved"
            raise self._error(f"a checkpoint of this network: {'; '.join(faults)}; {remedy}")
        tied: dict[Any, str] = {}
        for name in common:
            self._check_values(name, state[name], target[name])
            first = tied.setdefault((target[name].data_ptr() or name, target[name].shape), name)
            if first != name and not torch.equal(state[first].to(state[name].dtype), state[name]):
                raise self._error(f"a checkpoint of this network: {first} and {name} differ, but are one tensor there")
        model.load_state_dict(state)
        return model

    def _error(self, allowed: str) -> ArgumentError:
        return ArgumentError("checkpoint", self._path, allowed)

    def _content(self, file: BinaryIO) -> Any:
        """What the file holds."""
        start = file.read(len(LEGACY))
        file.seek(0)
        if not start:
            raise self._error("a file with a state_dict: this file is empty")
        if str(self._path).lower().endswith(".safetensors"):
            return self._safetensors(file.read())
        damaged = "a complete file: this one is truncated or damaged; copy it again"
        try:
            if zipfile.is_zipfile(file) and zipfile.ZipFile(file).testzip() is not None:  # torch checks no checksums
                raise self._error(damaged)
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(file, map_location="cpu", weights_only=True)
        except ArgumentError:
            raise
        except Exception as error:  # a damaged file may raise anything
            text = str(error)
            if "TorchScript" in text:
                raise self._error(
                    "a state_dict: this file holds a TorchScript network; save its state_dict()"
                ) from None
            if refused := re.search(r"GLOBAL ([\w.]+)", text):
                raise self._error(_executable(refused[1])) from None
            if start.startswith((ZIP, LEGACY)) and not zipfile.is_zipfile(file):
                raise self._error(damaged) from None
            allowed = "a file of torch.save or a .safetensors file: this one is damaged or of another kind"
            raise self._error(allowed) from None

    def _safetensors(self, data: bytes) -> Any:
        try:
            from safetensors.torch import load
        except ImportError:
            raise self._error("a file of torch.save, since safetensors is missing: pip install 'qat-ste[hf]'") from None
        try:
            return load(data)
        except Exception as error:  # of its own class, or of torch
            reason = one_line(str(error), 200)
            raise self._error(f"a complete .safetensors file ({reason}); copy it again") from None

    def _state_of(self, content: Any) -> dict[str, Any]:
        """The ``state_dict`` in the content of a file."""
        if not isinstance(content, dict):
            raise self._error(f"a file with a state_dict: this file holds a {type(content).__name__}")
        nested = [key for key in NESTED if isinstance(content.get(key), dict)]
        if len(nested) > 1:
            raise self._error(f"a file with one state_dict: this file has {' and '.join(nested)}; save one of them")
        state: dict[str, Any] = content[nested[0]] if nested else content
        if not any(isinstance(value, Tensor) for value in state.values()):
            names = f"only {_listed(map(str, state))}" if state else "nothing"
            raise self._error(f"a file with a state_dict: this file holds no tensors, {names}; save model.state_dict()")
        if strange := [name for name in state if not isinstance(name, str)]:
            raise self._error(f"a file with a state_dict: the names of tensors are text, but one is {strange[0]!r}")
        return state

    def _renamed(self, rename: Mapping[str, str]) -> dict[str, Any]:
        if not rename:
            return self._state  # with the versions of the layers, which torch keeps in an attribute
        names = _new_names(self._state, rename)
        if len({*names.values()}) < len(names):
            first, *others = sorted(names, key=lambda name: [*names.values()].count(names[name]), reverse=True)
            second = next(name for name in others if names[name] == names[first])
            raise ArgumentError("rename", dict(rename), f"prefixes that keep names apart: {first}, {second} become one")
        return {new: self._state[old] for old, new in names.items()}

    def _remedy(self, target: Collection[str]) -> str | None:
        """How to rename the names in the file so that the network lacks none, by one prefix; None if impossible."""
        rename = _one_prefix(target, self._state)
        if rename is None:
            return None
        ((old, new),) = rename.items()
        what = f"strip the prefix {old!r}" if old else f"add the prefix {new!r}"
        python = f"rename={rename}"
        written = _writable(old, new, self._state)
        if not {*target} & {*_new_names(self._state, rename).values()} <= {*_new_names(self._state, written).values()}:
            return f"{what} with {python}"
        entries = ", ".join(f'{before}: "{after}"' for before, after in written.items())
        return f"{what} with 'model.rename={{{entries}}}', in Python {python}"

    def _check_values(self, name: str, value: Tensor, target: Tensor) -> None:
        """Raises ArgumentError if a value would lose bits or is not finite."""
        narrower = value.is_floating_point() and target.is_floating_point() and value.itemsize <= target.itemsize
        if value.dtype != target.dtype and not narrower:
            types = f"{_dtype(value)}, not {_dtype(target)}"
            raise self._error(f"a checkpoint of this network: in the file {name} is {types}; convert it there")
        if value.is_meta or value.layout is not torch.strided:
            raise self._error(f"a file of dense tensors: {name} is {'empty' if value.is_meta else value.layout}")
        converted = value.to(target.dtype)
        if not converted.isfinite().all() and not torch.equal(converted, target.cpu()):  # as a mask of -inf
            raise self._error(f"a file of finite numbers: {name} holds NaN or infinity as {_dtype(target)}")


def _executable(name: str) -> str:
    module, _, kind = name.rpartition(".")
    held: object = getattr(sys.modules.get(module), kind, None)
    network = isinstance(held, type) and issubclass(held, nn.Module)
    what = f"this file holds a whole network ({name})" if network else f"this file refers to {name}"
    return f"a state_dict alone: {what}, and loading that can run code; if you trust it, save its state_dict() instead"


def _checked_rename(rename: Mapping[str, str] | None) -> dict[str, str]:
    """``rename`` with text as prefixes; Hydra reads the prefix ``0`` as a number.

    Raises:
        ArgumentError: it is no mapping of text to text.
    """
    if rename is None:
        return {}
    number_or_text = isinstance(rename, Mapping) and all(type(old) in (str, int) for old in rename)
    if not number_or_text or not all(isinstance(new, str) for new in rename.values()):
        raise ArgumentError("rename", rename, 'a mapping of prefixes to prefixes in quotes, such as {module.: ""}')
    return {str(old): new for old, new in rename.items()}


def _new_names(names: Iterable[str], rename: Mapping[str, str]) -> dict[str, str]:
    """The new name by old name: the longest prefix that matches is replaced."""
    result = {}
    for name in names:
        old = max((prefix for prefix in rename if name.startswith(prefix)), key=len, default=None)
        result[name] = name if old is None else rename[old] + name[len(old) :]
    return result


def _unmatched(
    model: nn.Module, state: Mapping[str, Any], replaced: Mapping[str, Tensor]
) -> tuple[list[str], list[str]]:
    """The names that the state lacks, and those that the model lacks; ``replaced`` are tensors of other shapes."""
    target = model.state_dict()
    missing, extra = [name for name in target if name not in state], [name for name in state if name not in target]
    if missing or extra:  # some layers load the names of their older versions, batch norm without its counter
        with suppress(Exception):  # the model cannot be copied, or a shape differs
            trial: Any = copy.copy(state)  # with the attribute of the versions
            trial.update(replaced)
            return copy.deepcopy(model).load_state_dict(trial, strict=False)
    return missing, extra


def _one_prefix(target: Collection[str], names: Collection[str]) -> dict[str, str] | None:
    """The ``rename`` by which stripping or adding one prefix gives all names of the model; None if there is none."""
    needed = {name for name in target if not name.endswith("num_batches_tracked")}  # old files lack it
    missing = max(needed.difference(names), key=len, default=None)
    if missing is None:
        return None
    stripped = {name.removesuffix(missing): "" for name in names if name != missing and name.endswith(missing)}
    added = {missing.removesuffix(name) for name in names if name and missing.endswith(name)}
    candidates = [*({old: ""} for old in stripped), *({"": new} for new in added)]
    for rename in sorted(candidates, key=lambda rename: sum(map(len, (*rename, *rename.values())))):
        new_names = _new_names(names, rename).values()
        if needed <= {*new_names} and len({*new_names}) == len(names):
            return rename
    return None


def _writable(old: str, new: str, names: Iterable[str]) -> dict[str, str]:
    """The same renaming by prefixes that Hydra reads as text or as whole numbers: it has no ``""`` and no ``0.``."""
    if not re.fullmatch(r"[\w./-]*", new, re.ASCII):
        return {}
    if re.fullmatch(r"[\w./-]+", old, re.ASCII) and old.lower() not in ("true", "false", "null"):
        try:
            float(old)
        except ValueError:
            return {old: new}
        if old.isdecimal() and old == str(int(old)):
            return {old: new}
    longer = {name[: len(old) + 1] for name in names if name.startswith(old) and len(name) > len(old)}
    return {k: v for each in sorted(longer) for k, v in _writable(each, new + each[len(old) :], names).items()}


def _listed(texts: Iterable[str]) -> str:
    texts = list(texts)
    rest = f" and {len(texts) - MOST_NAMES} more" if len(texts) > MOST_NAMES else ""
    return ", ".join(one_line(text, LONGEST) for text in texts[:MOST_NAMES]) + rest


def _shape(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return "x".join(map(str, value.shape)) or "one number"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
