from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from qat_ste.app import report_cli
from qat_ste.report.sweep.findings import find
from qat_ste.report.sweep.page import write_sweep_report
from tests.report.matrix import write_matrix


@pytest.fixture(scope="session")
def matrix(finished_run, tmp_path_factory):
    """A sweep of 24 run folders; not to be changed."""
    folder = write_matrix(finished_run, tmp_path_factory.mktemp("sweep") / "matrix")
    return SimpleNamespace(folder=folder, findings=find([folder]))


@pytest.fixture
def qat_report(monkeypatch, capsys, tmp_path):
    """Runs the command in this process; gives exit code, lines of both streams."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["qat-report", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            report_cli.main()
        except SystemExit as exit_:
            code = exit_.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out.splitlines(), err=err.splitlines())

    return call


@pytest.fixture(scope="session")
def report(matrix, tmp_path_factory):
    """The report of the matrix and, beside it, an empty, a truncated and a foreign ``results.json``."""
    folder = tmp_path_factory.mktemp("report")
    whole = next(matrix.folder.glob("*/results.json")).read_text()
    contents = {"empty": "", "truncated": whole[: len(whole) // 2], "foreign": '{"accuracy": 0.9}'}
    for name, content in contents.items():
        (folder / name).mkdir()
        (folder / name / "results.json").write_text(content)
    return write_sweep_report([matrix.folder, folder], folder)
