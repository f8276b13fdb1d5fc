from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("QAT_STE_SHARED", ROOT.parent / "shared"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    folder = SHARED / "data" / "mnist"
    if not folder.is_dir():
        pytest.skip(f"needs the four MNIST files in {folder}; set QAT_STE_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def check_run() -> Path:
    script = SHARED / "tools" / "check_run.py"
    if not script.is_file():
        pytest.skip(f"needs {script}; set QAT_STE_SHARED to the folder that holds tools/")
    return script
