"""File systems that lack what those of Linux have."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import torch

from qat_ste.experiment.monitor import DivergenceMonitor
from tests.app.test_resume import RUN, read
from tests.app.test_resume import undisturbed as undisturbed


@pytest.mark.slow
def test_checkpoints_need_no_hard_links(qat_run, undisturbed, monkeypatch):
    """BeeGFS, exFAT and SMB have none."""

    def no_links(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    for name in ("link", "symlink"):
        monkeypatch.setattr(os, name, no_links)
    with pytest.raises(PermissionError):
        Path("a").hardlink_to("b")
    observe = DivergenceMonitor.observe

    def stop(self, step, levels):
        if step == 18:
            signal.raise_signal(signal.SIGTERM)
        observe(self, step, levels)

    with monkeypatch.context() as stopping:
        stopping.setattr(DivergenceMonitor, "observe", stop)
        run = qat_run(*RUN)
    assert (run.code, run.err) == (128 + signal.SIGTERM, "")
    steps = [torch.load(f"run/{name}", weights_only=True)["step"] for name in ("checkpoint.pt", "checkpoint.1.pt")]
    assert steps == [18, 15]
    run = qat_run(*RUN)
    assert (run.code, run.err) == (0, "")
    assert read(run.folder) == read(undisturbed)
