"""Strangers' checkpoints and caches: pickles that would execute, damaged files, states that load and are strange."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .fault import Fault, Outcome
from .strangers import VALUES, damaged
from .watching import NEVER, TRAINED, each

STEPS = 6


@contextmanager
def thousands() -> Iterator[None]:
    """No warning of each damaged file; one thread: several wait for each other in processor time, which is bounded."""
    import torch

    log = logging.getLogger("qat_ste")
    level, threads = log.level, torch.get_num_threads()
    log.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    try:
        yield
    finally:
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
    import builtins
    import os
    import subprocess

    import torch

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
    import torch

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
            import json

            from campaign.strangers import altered

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


@dataclass(frozen=True)
class CheckpointFiles:
    """Damaged, executable and tricky files beside a whole older one, which has to be taken."""

    name: str = "checkpoints of strangers"
    group: str = "readers"
    rounds: int = 10
    inputs: int = 1000

    @thousands()
    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        from qat_ste import Checkpoints

        undisturbed = train(workplace, stop_after=3)
        good, hit = (workplace / "checkpoint.pt").read_bytes(), workplace / "hit"
        pickles = gadgets(hit)

        def in_pickle(change: Callable[[bytes], bytes]) -> bytes:
            return repacked(good, lambda name, data: change(data) if name.endswith("data.pkl") else data)

        def contents() -> Iterator[tuple[bool, bytes]]:
            """Whether its checksums are right although something else is in it; the content."""
            for number in range(self.inputs):
                kind, some = (
                    draw.randrange(6),
                    pickles[(number if number < len(pickles) else draw.randrange(10**6)) % len(pickles)],
                )
                if number < len(pickles) or kind == 0:
                    yield True, in_pickle(lambda data, some=some: some)  # type: ignore[misc]
                elif kind == 1:
                    yield True, in_pickle(lambda data: damaged(data, draw))
                elif kind == 2:
                    trick = draw.choice(("twice", "path", "declared", *(("bomb",) if draw.random() < 0.03 else ())))
                    yield True, repacked(good, lambda name, data: data, trick)
                elif kind == 3:
                    yield False, good[: draw.randrange(len(good))]
                else:
                    yield False, draw.choice((some, damaged(good, draw), damaged(good, draw)))

        def read(given: tuple[bool, bytes]) -> str:
            forged, content = given
            (workplace / "checkpoint.pt").write_bytes(content)
            step = Checkpoints(workplace, {}).step
            if hit.exists():
                hit.unlink()
                raise AssertionError("executed")
            if step not in (2, 3) and not forged:
                raise AssertionError(f"goes on after step {step}")
            if not forged and draw.randrange(20) == 0:
                went_on = train(workplace, stop_after=None)
                write_older(workplace)
                if went_on != undisturbed:
                    raise AssertionError("other numbers")
                return TRAINED
            return {3: "taken", 2: "the older one taken"}.get(step, "another state")

        write_older(workplace)
        return each(contents(), read, lambda error: False, NEVER)


@dataclass(frozen=True)
class StrangeStates:
    """States that load and do not fit go into a run: it refuses them in one line, or they made no difference."""

    name: str = "states of strangers"
    group: str = "readers"
    rounds: int = 10
    inputs: int = 1000

    @thousands()
    def happen(self, workplace: Path, draw: random.Random) -> Outcome:
        import torch

        train(workplace, stop_after=3)
        path = workplace / "checkpoint.pt"
        good = path.read_bytes()

        def contents() -> Iterator[dict[str, Any]]:
            for _ in range(self.inputs):
                yield strange(torch.load(io.BytesIO(good), weights_only=True), draw)

        def read(state: dict[str, Any]) -> str:
            for old in workplace.glob("checkpoint*"):
                old.unlink()
            torch.save(state, path)
            train(workplace, stop_after=None)
            return "went on, or from the start"

        def stated(error: Exception) -> bool:
            kind = type(error).__name__ in ("ValueError", "CheckpointMismatch", "FloatingPointError")
            return kind and str(error).isprintable() and len(str(error)) < 1000

        return each(contents(), read, stated, NEVER)


def write_older(workplace: Path) -> None:
    shutil.copy(workplace / "kept.pt", workplace / "checkpoint.1.pt")


def train(workplace: Path, stop_after: int | None) -> list[dict[str, Any]]:
    """A tiny comparison from the checkpoint in the folder; with ``stop_after`` first alone and undisturbed."""
    import torch
    import torch.nn.functional as F

    from qat_ste import Checkpoints, compare, estimators

    generator = torch.Generator().manual_seed(7)
    batches = [(torch.rand(4, 6, generator=generator), torch.arange(4) % 3) for _ in range(3)]

    def network() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))

    def run(checkpoints: Checkpoints | None, stop: Callable[[], bool] = lambda: False) -> list[dict[str, Any]]:
        return compare(
            network, batches,
            loss=F.cross_entropy, bits=2, estimator=estimators.Tanh(5.5), optimizer=partial(torch.optim.Adam,
            betas=(0.9, 0.95)),
            lr=0.05, steps=STEPS, log_every=1, validation=batches[:1], counterparts=["ste", "jitter"],
            checkpoints=checkpoints, stop=stop,
        ).rows  # fmt: skip

    if stop_after is None:
        return run(Checkpoints(workplace, {}))
    from qat_ste.experiment.lockstep import Stopped

    seen: list[int] = []
    try:
        run(Checkpoints(workplace, {}, every_steps=1, keep=2), lambda: bool(seen.append(1)) or len(seen) == stop_after)  # type: ignore[func-returns-value]
    except Stopped:
        shutil.copy(workplace / "checkpoint.1.pt", workplace / "kept.pt")
    return run(None)


STORED: tuple[Fault, ...] = (CheckpointFiles(), StrangeStates())
