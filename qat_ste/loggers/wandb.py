"""Weights & Biases logger. It never prompts, and no fault of W&B stops or hangs the run."""

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
    """Logs a run to W&B; if the server is not available, warns once and logs offline.

    Args:
        folder: run folder; W&B's files go to its ``wandb`` folder.
        name: name of the W&B run.
        config: resolved configuration.
        mode: ``online``, ``offline``, ``shared`` or ``disabled``.
        project, group, job_type, tags: arguments of ``wandb.init``.
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
        if not _can_be_made(_cache_folder()):  # otherwise W&B's service would write its log to the terminal
            os.environ["WANDB_CACHE_DIR"] = str(folder / "wandb" / "cache")
        self._folder = folder
        self._run: Any = None
        arguments = {"dir": folder, "name": name, "config": config, "project": project, "group": group}
        arguments |= {"tags": tags, "job_type": job_type, "id": _run_id(folder), "resume": "allow"}
        reason = _unreachable() if mode in ("online", "shared") else None
        if reason is None:
            reason = self._try(lambda: self._start(mode, arguments))
        if reason is not None and mode != "offline":
            log.warning("W&B %s is not available (%s): logging offline, `wandb sync` uploads it later", mode, reason)
            reason = self._try(lambda: self._start("offline", arguments))
        if reason is not None:
            log.warning("W&B is left out: %s", reason)

    def log_row(self, row: Row) -> None:
        """Logs the row under keys like ``weight_alignment_error/ste``: W&B makes one section of charts per metric.

        The length of a segment is left out, since keys hold it: ``weight_alignment_error/ste@5``.
        """
        values = {
            "/".join(reversed(key.split("/", 1))): value
            for key, value in row.items()
            if value is not None and key != "segment"
        }
        if self._run is not None:
            self._guard(lambda: self._run.log(values))

    def log_results(self, results: dict[str, Any]) -> None:
        """Writes the results to the summary, except titles and the configuration, which W&B has already."""
        summary = {key: value for key, value in results.items() if key not in ("config", "metrics")}
        if self._run is not None:
            self._guard(lambda: self._run.summary.update(summary))

    def close(self, exit_code: int) -> None:
        """Logs the figures and the page of a finished run; waits at most ``FINISH_SECONDS`` for uploads."""
        if self._run is None:
            return
        if exit_code == 0 and (reason := self._try(self._log_report)):
            log.warning("W&B lacks the report: %s", reason)
        finish = threading.Thread(
            target=self._guard, args=(lambda: self._run.finish(exit_code=exit_code),), daemon=True
        )
        finish.start()
        finish.join(FINISH_SECONDS)
        if finish.is_alive():
            log.warning("W&B did not finish in %.0f s: `wandb sync` uploads the rest later", FINISH_SECONDS)
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

    def _log_report(self) -> None:
        import wandb

        figures = sorted((self._folder / "figures").glob("*.png"))
        media: dict[str, Any] = {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
        page = self._folder / "report.html"
        if page.exists():
            media["report"] = wandb.Html(str(page), inject=False)  # the page has its own style sheet
        if media:
            self._run.log(media)

    def _guard(self, action: Callable[[], Any]) -> None:
        reason = self._try(action)
        if reason is not None:
            log.warning("W&B is left out from here on: %s", reason)
            self._run = None
            self._try(_forget_service)

    @staticmethod
    def _try(action: Callable[[], Any]) -> str | None:
        """Calls ``action``; returns its error in one line, if any."""
        try:
            action()
        except Exception as error:  # no error of W&B may reach the run
            return (" ".join(str(error).split()) or type(error).__name__)[:200]
        return None


def _cache_folder() -> Path:
    """The folder of the log of W&B's service: set by the environment, else in the home folder, if there is one."""
    home = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", os.devnull)) / ".cache"
    return Path(os.environ.get("WANDB_CACHE_DIR") or Path(home) / "wandb")


def _can_be_made(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _forget_service() -> None:
    """Ends W&B's service process: otherwise W&B would raise the same error again at exit, with a traceback."""
    import wandb

    wandb.teardown()


def _run_id(folder: Path) -> str:
    """The id of the W&B run in this folder, so that a resumed run stays one; else the environment's or a new id."""
    ids = [path.stem.removeprefix("run-") for path in (folder / "wandb").glob("*run-*-*/run-*.wandb")]
    return ids[0] if ids else os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)


def _unreachable() -> str | None:
    """The reason why the W&B server cannot be reached, or None. Takes at most ``CONNECT_SECONDS``."""
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
