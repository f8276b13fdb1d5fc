"""Steps of training: equal in all modes, and their cost relative to plain steps."""

from __future__ import annotations

import shutil
import statistics
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.comparison import LOG_EVERY
from benchmarks.networks import LR, OPTIMIZER, Members, Plain, Setting
from benchmarks.timing import Contestant, Stopwatch, difference, interleaved, total
from qat_ste.base.sections import Execution, Quantization
from qat_ste.estimators import Tanh
from qat_ste.experiment.cohort import Cohort
from qat_ste.experiment.lockstep import Lockstep
from qat_ste.experiment.schedules import constant
from qat_ste.fake_quant.fake_quantize import quantize_weights

from .findings import Findings

MODES = ("eager", "compile", "graph")
Batch = tuple[Tensor, Tensor]


def _missing(mode: str, findings: Findings) -> str:
    """Why a mode cannot be used here; empty if it can."""
    if mode == "graph" and not findings.on_gpu:
        return "CUDA graphs need a GPU"
    if mode == "compile" and not findings.on_gpu and shutil.which("g++") is None:
        return "torch.compile needs a C++ compiler on a CPU"
    return ""


def _batch(setting: Setting, findings: Findings) -> Batch:
    inputs, targets = (values.to(findings.device) for values in setting.batch())
    return inputs, targets


# Equal numbers


def _network() -> nn.Module:
    """A network without dropout, whose noise a compiler draws in its own way."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 25, 10),
    )  # fmt: skip


def _trained(mode: str, dtype: torch.dtype, steps: int, findings: Findings) -> tuple[Tensor, Tensor]:
    """Losses and final weights of a reference and its STE."""
    torch.manual_seed(0)
    model = quantize_weights(_network().to(findings.device, dtype), Quantization(include=["Conv2d"]), Tanh(5.5))
    batches = [
        (torch.randn(32, 3, 13, 13, dtype=dtype).to(findings.device), torch.randint(0, 10, (32,)).to(findings.device))
        for _ in range(steps)
    ]
    execution = Execution(execution=mode)
    cohort = Cohort(model, Tanh(5.5), OPTIMIZER, LR, ["ste"], execution=execution).make_members()
    lockstep = Lockstep(cohort, F.cross_entropy, constant(), seed=0)
    losses = torch.stack([lockstep.step(step, *batch) for step, batch in enumerate(batches)])
    return losses.cpu(), cohort.slices.clone().cpu()


def modes(findings: Findings) -> None:
    """Compiled and graphed steps against eager ones, in float64 and in float32."""
    steps = findings.size(50, 4)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-3)):
        expected = _trained("eager", dtype, steps, findings)
        for mode in MODES:
            name = f"{mode}, {str(dtype).removeprefix('torch.')}, {steps} steps"
            if reason := _missing(mode, findings):
                findings.skip(name, reason)
            else:
                findings.attempt(name, partial(_compare, name, mode, dtype, expected, tolerance, findings))


def _compare(
    name: str, mode: str, dtype: torch.dtype, expected: tuple[Tensor, Tensor], tolerance: float, findings: Findings
) -> None:
    trained = _trained(mode, dtype, len(expected[0]), findings)
    for what, values, wanted in zip(("losses", "weights"), trained, expected, strict=True):
        error = ((values - wanted).abs() / wanted.abs().max()).max().item()
        findings.add(f"{name}: {what} differ by at most", error, note=_within(error, tolerance))


def _within(error: float, tolerance: float) -> str:
    return f"{'within' if error <= tolerance else 'OUTSIDE'} {tolerance:g}"


# Cost


def _contestants(
    setting: Setting, members: int, execution: Execution, findings: Findings
) -> tuple[dict[str, Contestant], Stopwatch]:
    """Plain eager steps, and members with and without metrics."""
    batch, watch = _batch(setting, findings), Stopwatch()

    def build() -> nn.Module:
        return setting.build().to(findings.device)

    unwatched = Stopwatch()
    plain = Plain([build() for _ in range(members)], batch, unwatched, execution.precision)
    full = Members(build(), members, batch, watch, metrics=True, execution=execution)
    bare = Members(build(), members, batch, unwatched, metrics=False, execution=execution)
    return {"plain": plain.step, "bare": bare.step, "full": full.step, "row": full.row}, watch


def _cost(name: str, setting: Setting, members: int, execution: Execution, findings: Findings) -> None:
    if findings.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    contestants, watch = _contestants(setting, members, execution, findings)
    seconds = interleaved(contestants, setting.steps, setting.rounds, watch, findings.wait)
    rows = [value / LOG_EVERY for value in seconds["row"]]
    whole, plain = total(seconds["full"], rows), seconds["plain"]
    findings.add(f"{name}: plain steps of {members} networks", [1e3 * value for value in plain], "ms")
    for what, values in (("all metrics / plain", whole), ("no metrics / plain", seconds["bare"])):
        findings.add(f"{name}: {what}", [a / b for a, b in zip(values, plain, strict=True)], "×")
    shares = [100 * a / b for a, b in zip(difference(whole, seconds["bare"]), plain, strict=True)]
    findings.add(f"{name}: metrics, steps with minus steps without", shares, "%")
    findings.add(
        f"{name}: images per second, each for {members} members", setting.batch_size / statistics.median(whole)
    )
    if findings.on_gpu:
        findings.add(f"{name}: most memory, all contestants", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def keras(findings: Findings) -> None:
    """``keras_cnn``, batches of 128, 4 members, in each mode, against the plain eager loop."""
    setting = Setting("keras_cnn", 28, findings.size(128, 4), findings.size(50, 1), findings.size(11, 2))
    for mode in MODES:
        name = f"keras_cnn, batch {setting.batch_size}, {mode}"
        if reason := _missing(mode, findings):
            findings.skip(name, reason)
        elif mode == "compile" and not findings.on_gpu:
            findings.skip(name, "takes a minute on a CPU")
        else:
            findings.attempt(name, partial(_cost, name, setting, 4, Execution(execution=mode), findings))


def resnet50(findings: Findings) -> None:
    """ResNet-50 at 224 pixels, batches of 128, 2 members, in fp32 and bf16, eager and as graphs."""
    setting = Setting(
        "resnet50", findings.size(224, 32), findings.size(128, 2), findings.size(5, 1), findings.size(5, 1)
    )
    for precision, mode in (("fp32", "eager"), ("bf16", "eager"), ("bf16", "graph"), ("fp32", "graph")):
        name = f"resnet50, {setting.image_size} px, batch {setting.batch_size}, {precision}, {mode}"
        if reason := _missing(mode, findings):
            findings.skip(name, reason)
            continue
        execution = Execution(execution=mode, precision=precision)
        findings.attempt(name, partial(_cost, name, setting, 2, execution, findings))


def metrics(findings: Findings) -> None:
    """The metrics alone: their time on the device, the time until Python goes on, and that of a row."""
    sizes = findings.size(224, 32), findings.size(128, 2)
    for setting in (Setting("keras_cnn", 28, sizes[1], 1, 1), Setting("resnet50", *sizes, 1, 1)):
        watch, batch = Stopwatch(), _batch(setting, findings)
        members = Members(setting.build().to(findings.device), 2, batch, watch, metrics=True)
        rounds = []
        for _ in range(findings.size(40, 3)):
            findings.wait()
            members.lockstep.step(0, *batch)
            findings.wait()
            with watch("per step"):
                members.observe()
                findings.wait()
            with watch("per row"):
                members.row()
            rounds.append(watch.take())
        kinds = {"per step": "per step", "observe": "per step, until Python goes on", "per row": "per row"}
        for phase, what in kinds.items():
            taken = [1e3 * round_[phase] for round_ in rounds[1:]]  # the first one warms up
            findings.add(f"{setting.network}, 2 members, metrics {what}", taken, "ms")
