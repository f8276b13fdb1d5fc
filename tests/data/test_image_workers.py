"""Worker processes: their number, and when they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qat_ste.data import image_folder
from qat_ste.data.imagenet import imagenet
from tests.data.images import CPU, same

READS = """
import itertools, multiprocessing, os, signal, sys, time, torch
from qat_ste.data.imagenet import imagenet
torch.randn(600, 600) @ torch.randn(600, 600)  # starts OpenMP threads
data = imagenet(sys.argv[1], 32, workers=2)
batches = data.train_batches(4, True, 0, torch.device("cpu")).starting_at(0)
tested = data.test_batches(torch.device("cpu"))
next(batches), list(tested)
workers = [worker.pid for worker in multiprocessing.active_children()]
"""
SIGNALLED = """
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: got.append(number))
    os.killpg(0, number)
for _ in range(40):
    next(batches)
list(tested)
assert workers == [worker.pid for worker in multiprocessing.active_children()]
assert len(workers) == 4 and set(got) == {signal.SIGINT, signal.SIGTERM}
batches.close()
assert len(multiprocessing.active_children()) == 2
"""


@pytest.mark.slow
def test_workers_survive_signals_to_the_group_and_end_when_closed(tiny):
    done = subprocess.run(
        [sys.executable, "-c", READS + SIGNALLED, tiny],
        start_new_session=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_workers_end_with_their_parent(tiny):
    waits = "print(*workers, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", READS + waits, tiny], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(number) for number in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    assert len(workers) == 4
    until = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < until:
        time.sleep(0.2)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def test_one_worker_per_core_up_to_eight(tiny, monkeypatch):
    for cores, workers in ((2, 2), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert imagenet(tiny, 32).workers == workers


def test_test_workers_are_reused(tiny, monkeypatch):
    monkeypatch.setattr(image_folder, "TEST_BATCH", 2)
    data = imagenet(tiny, 32, 2)
    first = list(data.test_batches(CPU))
    workers = {worker.pid for worker in multiprocessing.active_children()}
    next(iter(data.test_batches(CPU)))  # abandoned iterator
    assert same(data.test_batches(CPU), first)
    assert {worker.pid for worker in multiprocessing.active_children()} == workers


FAILS = """
import gc
kept = []
for keep in (False, True, False):
    data = imagenet(sys.argv[1], 32, workers=2)
    tested = data.test_batches(torch.device("cpu"))
    list(tested)
    batches = data.train_batches(4, True, 0, torch.device("cpu")).starting_at(0)
    next(batches)
    try:
        raise ValueError
    except ValueError as error:
        cycle = [error, batches, data, tested]
        cycle.append(cycle)
        kept += cycle if keep else []
workers = multiprocessing.active_children()
# A DataLoader waits this long for a worker that did not receive the signal to stop.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 1000.0
del data, batches, tested, cycle, workers
kept.clear()
gc.collect()
assert not multiprocessing.active_children()
"""


@pytest.mark.slow
def test_workers_end_with_loaders_in_a_reference_cycle(tiny):
    done = subprocess.run([sys.executable, "-c", READS + FAILS, tiny], timeout=90, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
