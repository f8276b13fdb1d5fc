"""A run folder that cannot be written for a while: no row is lost, and none is half written."""

from __future__ import annotations

import json
import os
import resource
import shutil
from contextlib import contextmanager

import pytest

from qat_ste.loggers.files import RunFolder


@contextmanager
def no_file_longer_than(size: int):
    """Acts like a disk with this much room: the part of a write that fits is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def steps(folder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_are_kept_until_there_is_room_and_none_is_half_written(tmp_path, caplog):
    files = RunFolder(tmp_path)
    files.log_row({"step": 1, "loss": 0.5})
    with no_file_longer_than((tmp_path / "metrics.jsonl").stat().st_size + 10):
        files.log_row({"step": 2, "loss": 0.25})
        files.log_row({"step": 3, "loss": 0.125})
        assert steps(tmp_path) == [1]
        assert caplog.messages == [f"{tmp_path}: File too large; rows will be written again with the next row"]
    files.log_row({"step": 4, "loss": 0.0})
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_pending_rows_are_written_with_the_results_or_an_error_is_raised(tmp_path):
    files = RunFolder(tmp_path)
    with no_file_longer_than(100):
        files.log_row({"step": 1, "text": "x" * 200})
        with pytest.raises(OSError, match="File too large"):
            files.log_results({"schema": 1})
        assert json.loads((tmp_path / "results.json").read_text()) == {"schema": 1}, "numbers first"
    files.log_results({"schema": 1})
    assert steps(tmp_path) == [1]


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, caplog):
    files = RunFolder(tmp_path)
    monkeypatch.setattr(files, "_status_time", -10.0)
    monkeypatch.setattr(
        "qat_ste.loggers.files.write_json", lambda *_: os.open(tmp_path / "absent" / "file", os.O_RDONLY)
    )
    files.log_row({"step": 1})
    files.set_last_status("preempted", "SIGTERM")
    assert steps(tmp_path) == [1]
    assert caplog.messages == [
        f"{tmp_path}: No such file or directory; rows will be written again with the next row",
        f"{tmp_path}: status preempted cannot be written: No such file or directory",
    ]


def test_the_error_names_a_folder_that_was_removed(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    files = RunFolder(folder)
    shutil.rmtree(folder)
    files.log_row({"step": 1})  # its file is still open
    monkeypatch.setattr(files, "_status_time", -10.0)
    with pytest.raises(FileNotFoundError, match=f"the run folder {folder} was removed"):
        files.log_row({"step": 2})
