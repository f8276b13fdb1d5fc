"""Calls a command in this process, without drawing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tests.undrawn import undrawn


def in_process(
    program: str, main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., SimpleNamespace]:
    """A function that calls the command with arguments; it returns ``code``, ``out`` and ``err``."""

    def call(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        capsys.readouterr()
        with undrawn(), pytest.raises(SystemExit) as exited:
            main()
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=exited.value.code or 0, out=out, err=err)

    return call
