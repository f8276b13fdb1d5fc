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


def shared(name: str, what: str) -> Path:
    """A path in the shared folder; the test is skipped where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {what} at {path}; set QAT_STE_SHARED to the folder that holds {name}")
    return path


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    return shared("data/mnist", "the four MNIST files")


@pytest.fixture(scope="session")
def check_run() -> Path:
    return shared("tools/check_run.py", "the checker of run folders")
