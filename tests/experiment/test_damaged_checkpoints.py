"""Checkpoints of strangers: pickles that would execute, damaged files, states that load but do not fit."""

from __future__ import annotations

import builtins
import copy
import io
import json
import logging
import os
import pickle
import random
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from qat_ste import Checkpoints, CheckpointSchedule, Metrics, Training, compare, estimators
from qat_ste.experiment.lockstep import Stopped
from tests.arguments import WEIGHTS
from tests.strangers import VALUES, altered, damaged
from tests.watching import each

STEPS = 6


@pytest.fixture(autouse=True)
def _quiet_and_on_one_thread():
    """No warning of each damaged file; several threads wait for each other in processor time, which is bounded."""
    log = logging.getLogger("qat_ste")
    level, threads = log.level, torch.get_num_threads()
    log.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    yield
    log.setLevel(level)
    torch.set_num_threads(threads)


class Gadget:
    """Calls this where a pickle is read without care."""

    def __init__(self, called: Any, *arguments: Any) -> None:
        self.called, self.arguments = called, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called, self.arguments


def gadgets(hit: Path) -> list[bytes]:
    """Pickles each of which would leave ``hit`` behind, or drive torch's own rebuilding functions into a wall."""
    touch = f"touch {hit}"
    rebuild: Any = torch._utils
    calls: list[tuple[Any, ...]] = [
        (os.system, touch), (subprocess.Popen, touch.split()), (subprocess.call, touch.split()), (os.popen, touch),
        (builtins.eval, f"open({str(hit)!r}, 'w')"), (builtins.exec, f"open({str(hit)!r}, 'w')"), (open, str(hit), "w"),
        (builtins.getattr, "os", "system"), (builtins.__import__, "os"), (Path.touch, hit), (shutil.rmtree, str(hit)),
        (torch.load, str(hit)), (torch.hub.load, "a/b", "c"), (torch.jit.load, str(hit)), (torch.ones, 10**12),
        (bytearray, 10**13),
        (bytearray, -1), (torch.Size, "x"), (torch.device, "cuda:99"), (set, 3), (dict, 3),
        (rebuild._rebuild_tensor_v2, 1, 2, 3, 4, 5, 6), (rebuild._rebuild_tensor_v2, None, 0, (10**9,), (1,), False,
        {}),
        (rebuild._rebuild_parameter, "x", 1, 2), (rebuild._rebuild_sparse_tensor, torch.sparse_coo, (1, 2, 3, 4)),
        (rebuild._rebuild_meta_tensor_no_storage, torch.float32, (10**12,), (1,), False),
        (rebuild._rebuild_qtensor, None, 0, (3,), (1,), (torch.per_tensor_affine, 0.1, 0), False, {}),
        (rebuild._rebuild_wrapper_subclass, Path, torch.float32, (3,), (1,), 0, None, "cpu", False),
        (rebuild._rebuild_device_tensor_from_numpy, None, torch.float32, "cpu", False),
    ]  # fmt: skip
    found = [pickle.dumps({"step": 1, "config": "{}", "record": Gadget(*call)}, protocol=2) for call in calls]
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    laughs = b"\x80\x02]q\x00" + b"".join(b"](" + b"h%c" % n * 9 + b"eq%c" % (n + 1) for n in range(100)) + b"."
    return [
        *found,
        deep,
        laughs,
        b"",
        b".",
        b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR.",
        b"\x80\xff.",
        b"\x80\x02X\xff\xff\xff\x7fa.",
    ]


def repacked(content: bytes, change: Callable[[str, bytes], bytes], trick: str = "") -> bytes:
    """The zip file with other parts and right checksums."""
    out = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if trick == "bomb" else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", kind) as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            new.writestr(info.filename, data)
            if trick == "twice":
                new.writestr(info.filename, data[::-1])
        if trick == "bomb":
            new.writestr("archive/data/bomb", bytes(200 << 20))
        elif trick == "path":
            new.writestr("../../../../tmp/escaped", b"x")
    found = bytearray(out.getvalue())
    if trick == "declared":  # the first part's size in the list at the end
        place = found.rindex(b"PK\x01\x02") if found.count(b"PK\x01\x02") else 0
        found[place + 20 : place + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)
    return bytes(found)


def strange(state: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The state, with some of its places altered: it loads, and does not fit."""

    def other(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            flat = value.flatten().clone()
            return draw.choice((
                value.double() if value.is_floating_point() else value.float(), flat[:-1], flat[:0],
                value.unsqueeze(0), value.int(),
                value.clone().fill_(draw.choice((0, -1, 10**6))), torch.full_like(value,
                float("nan")) if value.is_floating_point() else -value,
                torch.zeros((), dtype=value.dtype), torch.zeros((), dtype=value.dtype).expand(value.shape),
                value.to_sparse() if value.ndim else value, value.to(torch.complex64), value.to("meta"),
                torch.nn.Parameter(value.float()),
                value.bool(), value.numpy().tolist(), torch.randint(-9, 9, value.shape).to(value.dtype),
                flat.flip(0).reshape(value.shape),
            ))  # fmt: skip
        if isinstance(value, str) and value.startswith("{"):
            return altered(json.loads(value), draw)
        return copy.deepcopy(draw.choice((*VALUES, torch.zeros(3), {0: 1}, (1, 2))))

    for _ in range(draw.randrange(1, 3)):
        holder: Any = state
        while True:
            key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            inner = holder[key]
            if not isinstance(inner, dict | list) or not inner or draw.random() < 0.1:
                break
            holder = inner
        kind = draw.randrange(6)
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice((0, 1, 7, -1, "x", "ste", None))] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder.append(inner)
        else:
            holder[key] = other(inner)
    return state


def train(checkpoints: Checkpoints | None, stop: Callable[[], bool] = lambda: False) -> list[dict[str, Any]]:
    """The rows of a tiny comparison."""
    generator = torch.Generator().manual_seed(7)
    batches = [(torch.rand(4, 6, generator=generator), torch.arange(4) % 3) for _ in range(3)]

    def network() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))

    return compare(
        network, batches, loss=F.cross_entropy, estimator=estimators.Tanh(5.5),
        optimizer=partial(torch.optim.Adam, betas=(0.9, 0.95)), lr=0.05, quantization=WEIGHTS,
        training=Training(steps=STEPS, seed=0), metrics=Metrics(every=1),
        validation=batches[:1], counterparts=["ste", "jitter"], checkpoints=checkpoints, stop=stop,
    ).rows  # fmt: skip


@pytest.fixture
def newest(tmp_path) -> bytes:
    """A checkpoint after step 3; the folder has one after step 2, also as ``kept.pt``."""
    seen: list[int] = []
    with pytest.raises(Stopped):
        train(
            Checkpoints(tmp_path, {}, CheckpointSchedule(every_steps=1, keep=2)),
            lambda: bool(seen.append(1)) or len(seen) == 3,
        )
    shutil.copy(tmp_path / "checkpoint.1.pt", tmp_path / "kept.pt")
    return (tmp_path / "checkpoint.pt").read_bytes()


@pytest.mark.filterwarnings("ignore:Duplicate name", "ignore:Detected pickle protocol")
@pytest.mark.slow
def test_files_that_are_no_checkpoints_leave_the_older_one(newest, tmp_path):
    inputs = 300
    undisturbed, hit, draw = train(None), tmp_path / "hit", random.Random(0)
    pickles = gadgets(hit)

    def in_pickle(change: Callable[[bytes], bytes]) -> bytes:
        return repacked(newest, lambda name, data: change(data) if name.endswith("data.pkl") else data)

    def content(number: int) -> tuple[bool, bytes]:
        """Whether the checksums are right although something else is in it; the content."""
        kind = draw.randrange(6)
        gadget = pickles[(number if number < len(pickles) else draw.randrange(10**6)) % len(pickles)]
        if number < len(pickles) or kind == 0:
            return True, in_pickle(lambda data: gadget)
        if kind == 1:
            return True, in_pickle(lambda data: damaged(data, draw))
        if kind == 2:
            trick = draw.choice(("twice", "path", "declared", *(("bomb",) if draw.random() < 0.03 else ())))
            return True, repacked(newest, lambda name, data: data, trick)
        if kind == 3:
            return False, newest[: draw.randrange(len(newest))]
        return False, draw.choice((gadget, damaged(newest, draw), damaged(newest, draw)))

    def read(given: tuple[bool, bytes]) -> str:
        forged, content = given
        (tmp_path / "checkpoint.pt").write_bytes(content)
        step = Checkpoints(tmp_path, {}).step
        if hit.exists():
            hit.unlink()
            raise AssertionError("executed")
        if step not in (2, 3) and not forged:
            raise AssertionError(f"goes on after step {step}")
        if not forged and draw.randrange(20) == 0:
            went_on = train(Checkpoints(tmp_path, {}))
            shutil.copy(tmp_path / "kept.pt", tmp_path / "checkpoint.1.pt")
            assert went_on == undisturbed
            return "trained on"
        return {3: "taken", 2: "the older one taken"}.get(step, "another state")

    counts, broken = each(map(content, range(inputs)), read, lambda error: False)
    assert broken == []
    assert sum(counts.values()) == inputs


@pytest.mark.slow
def test_states_that_do_not_fit_are_refused_in_one_line_or_made_no_difference(newest, tmp_path):
    inputs = 60
    draw = random.Random(0)

    def read(state: dict[str, Any]) -> str:
        for old in tmp_path.glob("checkpoint*"):
            old.unlink()
        torch.save(state, tmp_path / "checkpoint.pt")
        train(Checkpoints(tmp_path, {}))
        return "went on, or from the start"

    def documented(error: Exception) -> bool:
        kind = type(error).__name__ in ("ValueError", "CheckpointMismatch", "FloatingPointError")
        return kind and str(error).isprintable() and len(str(error)) < 1000

    states = (strange(torch.load(io.BytesIO(newest), weights_only=True), draw) for _ in range(inputs))
    counts, broken = each(states, read, documented)
    assert broken == []
    assert sum(counts.values()) == inputs
