#!/usr/bin/env python3
"""Check on one GPU what only a GPU can show, and write a record; on a CPU, rehearse it with tiny sizes.

    python scripts/gpu_check.py --wheels wheels            where there is a network: collect packages, 12 MB at most
    python scripts/gpu_check.py --packages wheels --json docs/gpu/record.json
    python scripts/gpu_docs.py                             write docs/gpu.md from the record

It needs Python 3.11 or newer, torch and torchvision. `--packages` adds Hydra and others to the path without installing
them; W&B, scikit-learn and matplotlib are not used. Each part is a process with its own time limit, so a part that
fails, hangs or runs out of memory does not stop the others, and what it measured before is kept. A record is extended:
parts run before and not now stay in it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory
from typing import Any

from gpu_checks.wheels import collect, unpack

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "numpy", "triton", "hydra-core", "omegaconf", "pytest", "wandb", "matplotlib")
# Module and function of each part, and the most seconds that it may take.
PARTS: Mapping[str, tuple[str, str, int]] = {
    "tests": ("runs", "gpu_tests", 240),
    "modes": ("steps", "modes", 240),
    "replica": ("runs", "replica", 180),
    "nccl": ("surroundings", "nccl", 90),
    "memory": ("surroundings", "memory", 90),
    "metrics": ("steps", "metrics", 120),
    "keras": ("steps", "keras", 240),
    "resnet50": ("steps", "resnet50", 420),
    "pipeline": ("surroundings", "pipeline", 180),
    "imagenet": ("runs", "imagenet", 480),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="run this part; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record to FILE")
    parser.add_argument("--data", type=Path, metavar="DIR", help="holds imagenet-sample (default: QAT_STE_SHARED/data)")
    parser.add_argument("--device", help="of the check (default: cuda where there is a GPU, else cpu)")
    parser.add_argument(
        "--packages", type=Path, metavar="DIR", help="wheels to unpack and use, without installing them"
    )
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="collect wheels for Python 3.12 into DIR, and stop")
    parser.add_argument("--seconds", type=int, help="another time limit for each part")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # in the process of a part
    arguments = parser.parse_args()
    if arguments.wheels:
        print(f"{arguments.wheels}: {collect(arguments.wheels):,} bytes of wheels")
        return 0
    shared = Path(os.environ.get("QAT_STE_SHARED") or ROOT.parent / "shared")
    data = (arguments.data or shared / "data").resolve()
    if arguments.part:
        return _run_part(arguments.part, arguments.device, data, arguments.json)
    with TemporaryDirectory() as folder:
        path = [str(ROOT), str(ROOT / "scripts"), *filter(None, [os.environ.get("PYTHONPATH")])]
        if arguments.packages:
            unpack(arguments.packages, Path(folder))
            path.insert(2, folder)
            sys.path.insert(0, folder)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "QAT_STE_SHARED": str(data.parent),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # for deterministic kernels
        }  # fmt: skip
        record = _record(arguments.json)
        device = arguments.device or ("cuda" if record["machine"]["gpu"] else "cpu")
        for name in arguments.only or PARTS:
            seconds = arguments.seconds or PARTS[name][2]
            print(f"\n{name}, at most {seconds} s", flush=True)
            record["parts"][name] = _in_process(name, device, data, seconds, environment)
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print()
    for name in arguments.only or PARTS:
        part = record["parts"][name]
        print(f"{name}: {part['status']} in {part['seconds']:.0f} s, {len(part['figures'])} figures")
        for skipped in part["skipped"]:
            print(f"  skipped: {skipped['what']} ({skipped['reason']})")
    return int(any(record["parts"][name]["status"] != "done" for name in arguments.only or PARTS))


def _in_process(name: str, device: str, data: Path, seconds: int, environment: dict[str, str]) -> dict[str, Any]:
    """Runs a part; returns its figures, also those of one that failed or was killed."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "findings.json"
        command = [
            sys.executable,
            __file__,
            "--part",
            name,
            "--device",
            device,
            "--data",
            str(data),
            "--json",
            str(file),
        ]
        start, error, status = time.monotonic(), "", "done"
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            _, error = process.communicate(timeout=seconds)
            if process.returncode:
                status = "failed" if process.returncode > 0 else f"killed by signal {-process.returncode}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {seconds} s"
        with suppress(ProcessLookupError):  # and what it started
            os.killpg(process.pid, SIGKILL)
        process.communicate()
        findings: dict[str, Any] = {"figures": [], "skipped": []}
        with suppress(OSError, ValueError):
            findings = json.loads(file.read_text(encoding="utf-8"))
    part = {"status": status, "seconds": round(time.monotonic() - start, 1), **findings}
    if status != "done":
        part["error"] = (error.strip().splitlines() or [""])[-1][:400]
        print(error[-4000:], status, sep="\n", flush=True)
    return part


def _run_part(name: str, device: str, data: Path, file: Path) -> int:
    import torch

    from gpu_checks.findings import Findings

    torch.manual_seed(0)
    # As the command does; TF32 would round plain fp32 steps.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    chosen = torch.device(device)
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", 0)
    findings = Findings(file, chosen, data)
    findings.save()
    module, function, _ = PARTS[name]
    check: Callable[[Findings], None] = getattr(import_module(f"gpu_checks.{module}"), function)
    check(findings)
    return 0


def _record(file: Path | None) -> dict[str, Any]:
    """An empty record of this machine, with the parts of the record in the file if it is of the same machine."""
    import torch

    gpu = torch.cuda.is_available()
    machine = {
        "gpu": torch.cuda.get_device_name(0) if gpu else None,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else None,
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
    }
    record: dict[str, Any] = {"schema": 1, "machine": machine, "parts": {}}
    if file is not None and file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["machine"] == machine:
            record["parts"] = before["parts"]
    return record


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _output(*command: str) -> str | None:
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None


if __name__ == "__main__":
    sys.exit(main())
