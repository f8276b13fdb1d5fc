"""Whole runs: the tests marked ``gpu``, a replica, and the command on real images."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F

from benchmarks.networks import OPTIMIZER, Setting
from qat_ste.base.sections import Execution, Metrics, Quantization, Training
from qat_ste.estimators import Tanh
from qat_ste.experiment.comparison import compare

from .findings import Findings

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/experiment/test_gpu.py", "tests/experiment/test_compare.py", "tests/data/test_image_folder.py")
COMMAND = "from qat_ste.app.commands import qat_run; qat_run()"


def gpu_tests(findings: Findings) -> None:
    """The tests marked ``gpu``."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu",
        "-q",
        "-ra",
        *TESTS,
    ]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins there may not fit this pytest
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-400:]]
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", lines[-1])}
    for word, number in counts.items():
        findings.add(f"tests {word}", number)
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            findings.add(line[:300], "failed")
    if counts.get("skipped") and not findings.on_gpu:
        findings.skip("tests marked gpu", "they need a GPU")
    elif done.returncode:
        findings.add("exit code of pytest", done.returncode, note=lines[-1][:300])


def _with_replica(findings: Findings, precision: str, mode: str) -> None:
    setting = Setting("keras_cnn", 28, findings.size(128, 8), 1, 1)
    steps, batches = findings.size(200, 4), [setting.batch() for _ in range(findings.size(20, 2))]
    comparison = compare(
        setting.build, batches, loss=F.cross_entropy, estimator=Tanh(5.5), optimizer=OPTIMIZER, lr=1e-3,
        quantization=Quantization(include=["Conv2d"]), training=Training(steps=steps),
        metrics=Metrics(every=steps // 2), counterparts=["jitter", "replica"],
        execution=Execution(device=findings.device, precision=precision, execution=mode),
    )  # fmt: skip
    for name in ("replica", "jitter"):
        numbers = comparison.counterparts[name]
        figure = f"keras_cnn, {precision}, {mode}, {_kernels()}, {steps} steps: {name}"
        findings.add(f"{figure}, weight alignment error", numbers.weight_alignment_error)
        findings.add(f"{figure}, equal quantized weights", numbers.quantized_weight_agreement)


def _kernels() -> str:
    return "deterministic kernels" if torch.are_deterministic_algorithms_enabled() else "default kernels"


def replica(findings: Findings) -> None:
    """A replica: exactly 0, or by how much not, beside a jitter of 1 %; with deterministic kernels, too."""
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        for precision, mode in (("fp32", "eager"), ("bf16", "eager"), ("fp32", "graph")):
            name = f"replica, {precision}, {mode}, {_kernels()}"
            if mode == "graph" and not findings.on_gpu:
                findings.skip(name, "CUDA graphs need a GPU")
            else:
                findings.attempt(name, partial(_with_replica, findings, precision, mode))


def imagenet(findings: Findings) -> None:
    """The command: ResNet-50 on the sample of ImageNet, from image files to the results."""
    data = findings.data / "imagenet-sample"
    if not data.is_dir():
        findings.skip("ResNet-50 on the sample of ImageNet", f"{data} is no folder; set --data or QAT_STE_SHARED")
        return
    for precision in ("fp32", "bf16"):
        findings.attempt(f"the command, {precision}", partial(_command, findings, data, precision))


def _command(findings: Findings, data: Path, precision: str) -> None:
    steps, batch, size = findings.size(200, 2), findings.size(128, 4), findings.size(224, 32)
    with TemporaryDirectory() as folder:
        overrides = [
            "dataset=imagenet", "model=resnet50", "estimator=tanh", "optimizer=sgd", "logger=none",
            f"paths.data={data}", f"dataset.image_size={size}", "train.epochs=null",
            f"train.steps={steps}", f"train.batch_size={batch}",
            "optimizer.lr=1e-3", "counterparts=[ste,naive]", f"metrics.every={max(1, steps // 10)}",
            f"runtime.precision={precision}", f"runtime.device={findings.device}", f"hydra.run.dir={folder}/run",
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [ROOT, *sys.path]))}
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *overrides], capture_output=True, text=True, env=environment, cwd=folder
        )
        seconds = time.perf_counter() - start
        print(done.stdout[-3000:], done.stderr[-3000:], flush=True)
        name = f"ResNet-50, {size} px, batch {batch}, {precision}, {steps} steps of 3 members"
        if done.returncode:
            findings.add(
                name, "failed", note=(done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1][:400]
            )
            return
        results = json.loads((Path(folder) / "run" / "results.json").read_text(encoding="utf-8"))
        log = (Path(folder) / "run" / "run.log").read_text(encoding="utf-8")
        findings.add(f"{name}: start to end", seconds, "s", note=f"on {results['device']}")
        findings.add(f"{name}: training", results["wall_seconds"], "s")
        for counterpart, numbers in results["counterparts"].items():
            findings.add(f"{name}: {counterpart}, weight alignment error", numbers["weight_alignment_error"])
        for mode in re.findall(r"execution auto: (\w+)", log):
            findings.add(f"{name}: fastest mode", mode)
