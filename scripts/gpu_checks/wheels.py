"""Collects the packages that a machine without a network lacks, and unpacks them there."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

# Beside torch, torchvision and what these need. What is missing in this list the check does without.
PURE = (
    "hydra-core==1.3.2", "omegaconf==2.3.0", "antlr4-python3-runtime==4.9.3", "packaging", "rich", "markdown-it-py",
    "mdurl", "pygments", "jinja2", "pytest", "pluggy", "iniconfig",
)  # fmt: skip
COMPILED = ("pyyaml", "markupsafe")  # with a part in C, which they can do without
MOST_BYTES = 12_000_000


def collect(folder: Path, python: str = "3.12") -> int:
    """Downloads wheels for Linux on x86-64 into the folder; returns their bytes.

    Raises:
        subprocess.CalledProcessError: pip failed.
        ValueError: they are larger than ``MOST_BYTES``.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    # ``wheel``, since antlr4 is published as source alone.
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", folder, *PURE], check=True)
    target = [f"--platform=manylinux{version}_x86_64" for version in ("2014", "_2_17", "_2_28")]
    target += [f"--python-version={python}", "--implementation=cp", "--only-binary=:all:"]
    subprocess.run([*pip, "download", "-q", "--no-deps", "-d", folder, *target, *COMPILED], check=True)
    size = sum(file.stat().st_size for file in folder.glob("*.whl"))
    if size > MOST_BYTES:
        raise ValueError(f"{folder} holds {size:,} bytes of wheels; at most {MOST_BYTES:,} are meant to be carried")
    return size


def unpack(folder: Path, into: Path) -> list[str]:
    """Unpacks the wheels, as importing needs no more; returns their names.

    Raises:
        FileNotFoundError: there are none.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise FileNotFoundError(f"{folder} holds no wheels; collect them with --wheels {folder}")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    return [wheel.name for wheel in wheels]
