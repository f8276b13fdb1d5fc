"""Full or read-only disks, removed folders, failing writes."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .command import Unsupported, start, until
from .concurrency import atlas, finish_atlas
from .fault import Fault, Trial
from .run_folder import unreadable

LEAST, MOST = 50, 9_000  # kB; a run needs 8,000
ATLAS_KILOBYTES, REPORT_KILOBYTES = (8, 130), (8, 500)  # an atlas needs 110, a report 400


@contextmanager
def small_disk(workplace: Path, kilobytes: int) -> Iterator[Path]:
    """Mounts a file system in memory of this size.

    Raises:
        Unsupported: it cannot be mounted.
    """
    disk = workplace / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        raise Unsupported("mounting needs root on Linux")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def remount(disk: Path, option: str) -> None:
    """Remounts a disk with another size, or as ``ro`` or ``rw``."""
    subprocess.run(["mount", "-o", f"remount,{option}", disk], check=False, capture_output=True)


def fill_disk(trial: Trial) -> None:
    """Runs on a disk of random size, which fills up; makes room and repeats the command."""
    with small_disk(trial.workplace, round(LEAST * (MOST / LEAST) ** trial.draw.random())) as disk:
        trial.folder = disk / "run"
        trial.end_clearly(trial.run())
        remount(disk, "size=100m")
        trial.finish()


def limit_files(trial: Trial) -> None:
    """Limits the size of files to a random value (RLIMIT_FSIZE), like a quota."""
    size = round(1_000 * 4_000 ** trial.draw.random())
    trial.end_clearly(trial.run(preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))))
    trial.finish()


def make_read_only(trial: Trial, from_the_beginning: bool) -> None:
    """Makes the disk read-only before the run or at a random moment."""
    read_only = "ro,bind"  # a disk with open files cannot be remounted, a bind mount over it can
    with small_disk(trial.workplace, 100_000) as disk:
        trial.folder = disk / "run"
        if from_the_beginning:
            remount(disk, read_only)
        process = trial.start()
        if not from_the_beginning:
            trial.pause()
            remount(disk, read_only)
        trial.end_clearly(trial.end(process))
        remount(disk, "rw")
        trial.finish()


def take_folder(trial: Trial, renamed: bool) -> None:
    """Removes or renames the run folder at a random moment."""
    aside = trial.workplace / "aside"
    process = trial.start()
    until(process, trial.folder.exists)
    trial.pause()
    trial.folder.rename(aside)  # atomic, unlike the removal of the files
    if not renamed:
        shutil.rmtree(aside, ignore_errors=True)  # the run may still write to it
    trial.ended = trial.end(process).line
    if renamed:
        trial.broken += unreadable(aside)
        shutil.rmtree(trial.folder, ignore_errors=True)  # files written since
        aside.rename(trial.folder)
        trial.check_files()
    trial.finish()


def fail(trial: Trial, call: str, most: int) -> None:
    """Makes one or three calls in a row fail that write a file: no space left. ``most``: calls in a run."""
    log, at = trial.workplace / "log", trial.draw.randint(1, most)
    orders = {"log": str(log), "fail": call, "at": at, "times": trial.draw.choice([1, 3])}
    trial.end_clearly(trial.run(orders=orders))
    if "failed" not in log.read_text():
        trial.broken.append(f"no call number {at}")
    trial.finish()


def atlas_on_small_disk(trial: Trial) -> None:
    """Makes an atlas on a disk of random size; makes room and repeats the command."""
    with small_disk(trial.workplace, trial.draw.randint(*ATLAS_KILOBYTES)) as disk:
        trial.ended = trial.end(atlas(trial, disk / "atlas")).line
        remount(disk, "size=100m")
        finish_atlas(trial, disk / "atlas")


def report_on_small_disk(trial: Trial) -> None:
    """Writes a report on a disk that is too small; makes room and repeats the command."""
    with small_disk(trial.workplace, trial.draw.randint(*REPORT_KILOBYTES)) as disk:
        (disk / "report.html").write_text("an earlier one</html>")
        report = (str(trial.reference), "--output", str(disk))
        trial.ended = trial.end(start(*report, program="qat-report", cwd=trial.workplace)).line
        trial.broken += unreadable(disk)
        remount(disk, "size=100m")
        again = trial.end(start(*report, program="qat-report", cwd=trial.workplace))
        trial.broken += unreadable(disk) + ([again.line] if again.code else [])
        trial.broken += [f"{path.name} was not removed" for path in disk.glob(".*.tmp")]


CALLS = {  # functions that write files, and their number of calls in a run
    "a checkpoint": ("qat_ste.experiment.checkpoint:torch.save", 24),
    "rows": ("qat_ste.loggers.files:RunFolder._append", 30),
    "status or results": ("qat_ste.loggers.files:write_json", 3),
    "figures or page": ("qat_ste.report.pages:write", 4),
}
STORAGE: tuple[Fault, ...] = (
    Fault("disk full", "storage", fill_disk, rounds=8),
    Fault("files limited in size", "storage", limit_files, rounds=8),
    Fault("disk read-only", "storage", partial(make_read_only, from_the_beginning=True), rounds=1),
    Fault("disk read-only at any moment", "storage", partial(make_read_only, from_the_beginning=False)),
    Fault("run folder removed", "storage", partial(take_folder, renamed=False)),
    Fault("run folder renamed", "storage", partial(take_folder, renamed=True)),
    *(
        Fault(f"{what} cannot be written", "storage", partial(fail, call=call, most=most))
        for what, (call, most) in CALLS.items()
    ),
    Fault("atlas on a full disk", "storage", atlas_on_small_disk),
    Fault("report on a full disk", "storage", report_on_small_disk),
)
