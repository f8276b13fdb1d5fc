"""Weights & Biases: a view of the run that never asks, never blocks and never costs the run anything."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from qat_ste.loggers import Row

log = logging.getLogger(__name__)
CONNECT_SECONDS, INIT_SECONDS, FINISH_SECONDS = 3.0, 15.0, 20.0


class WandbLogger:
    """One W&B run. Where ``mode`` is online and W&B cannot be had, the run is logged offline and that is said once.

    Args:
        folder: run folder; the files go to its ``wandb`` folder.
        name: of the W&B run.
        config: resolved configuration.
        mode: ``online``, ``offline``, ``shared`` or ``disabled``.
        project, group, job_type, tags: as W&B has them.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        config: dict[str, Any],
        mode: str = "offline",
        project: str = "qat_ste",
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        if not _can_be_made(_cache_folder()):  # W&B's service would tell the terminal instead
            os.environ["WANDB_CACHE_DIR"] = str(folder / "wandb" / "cache")
        self._run: Any = None
        arguments = {"dir": folder, "name": name, "config": config, "project": project, "group": group}
        arguments |= {"tags": tags, "job_type": job_type, "id": _run_id(folder), "resume": "allow"}
        reason = _unreachable() if mode in ("online", "shared") else None
        if reason is None:
            reason = self._try(lambda: self._start(mode, arguments))
        if reason is not None and mode != "offline":
            log.warning("W&B %s is not to be had (%s): logging offline, `wandb sync` sends it later", mode, reason)
            reason = self._try(lambda: self._start("offline", arguments))
        if reason is not None:
            log.warning("W&B is left out: %s", reason)

    def log_row(self, row: Row) -> None:
        if self._run is not None:
            self._guard(lambda: self._run.log({key: value for key, value in row.items() if value is not None}))

    def log_results(self, results: dict[str, Any]) -> None:
        """Into the summary, all but titles and the configuration, which W&B has already."""
        summary = {key: value for key, value in results.items() if key not in ("config", "metrics")}
        if self._run is not None:
            self._guard(lambda: self._run.summary.update(summary))

    def close(self, exit_code: int) -> None:
        """Waits for uploads only for so long."""
        if self._run is None:
            return
        finish = threading.Thread(
            target=self._guard, args=(lambda: self._run.finish(exit_code=exit_code),), daemon=True
        )
        finish.start()
        finish.join(FINISH_SECONDS)
        if finish.is_alive():
            log.warning("W&B did not finish in %.0f s: `wandb sync` sends the rest later", FINISH_SECONDS)
        self._run = None

    def _start(self, mode: str, arguments: dict[str, Any]) -> None:
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_SECONDS,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        self._run = wandb.init(mode=cast(Any, mode), settings=settings, reinit="create_new", **arguments)
        self._run.define_metric("*", step_metric="step")

    def _guard(self, action: Callable[[], Any]) -> None:
        reason = self._try(action)
        if reason is not None:
            log.warning("W&B is left out from here on: %s", reason)
            self._run = None
            self._try(_forget_service)

    @staticmethod
    def _try(action: Callable[[], Any]) -> str | None:
        """What went wrong, in one line."""
        try:
            action()
        except Exception as error:  # whatever W&B raises must not reach the run
            return (" ".join(str(error).split()) or type(error).__name__)[:200]
        return None


def _cache_folder() -> Path:
    """Where W&B's service keeps its log: the one that the environment names, else one at home, if there is a home."""
    home = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", os.devnull)) / ".cache"
    return Path(os.environ.get("WANDB_CACHE_DIR") or Path(home) / "wandb")


def _can_be_made(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _forget_service() -> None:
    """Ends W&B's service process here: at the exit W&B would meet the same fault again, with a traceback."""
    import wandb

    wandb.teardown()


def _run_id(folder: Path) -> str:
    """Of the W&B run that this folder holds already, so that a run which is continued stays one; else a new one.

    W&B's own agent says which run of its sweep this is.
    """
    found = [path.stem.removeprefix("run-") for path in (folder / "wandb").glob("*run-*-*/run-*.wandb")]
    return found[0] if found else os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)


def _unreachable() -> str | None:
    """Why the W&B server cannot be connected to, found out within seconds; None if it can."""
    import wandb

    address = urlsplit(wandb.Settings().base_url)
    if os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY"):
        return None
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), CONNECT_SECONDS).close()
    except OSError as error:
        return f"no connection to {address.hostname}: {error}"
    return None
