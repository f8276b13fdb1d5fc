"""Counts the operations that would wait for a GPU, while they run on a CPU."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from qat_ste.divergence import deferred

# Operations that read a tensor: for its value, or to find the size of a result.
READS = {
    "_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "argwhere", "masked_select", "bincount", "unique_dim",
    "unique_consecutive", "_unique", "_unique2", "repeat_interleave.Tensor", "lift_fresh",
}  # fmt: skip
# Methods that torch answers without an operation on a CPU. The last ones copy Python's numbers to the device.
METHODS = {"tolist", "numpy", "cpu", "item", "__bool__", "__int__", "__float__", "tensor", "new_tensor", "as_tensor"}


class _Operations(TorchDispatchMode):
    def __init__(self, seen: Counter) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.").removesuffix(".default")
        indices = args[1] if name.startswith(("index.", "index_put", "_index_put")) else ()
        if name in READS or any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
            self.seen[name] += 1
        return function(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, seen: Counter) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        device = [*args[1:], kwargs.get("device")]
        # torch's own code moves tensors to the device where they are, here the CPU.
        ours = not sys._getframe(1).f_code.co_filename.startswith(str(Path(torch.__file__).parent))
        blocking = name == "to" and ours and "cpu" in map(str, device) and not kwargs.get("non_blocking")
        if name in METHODS or blocking:
            self.seen[name] += 1
        return function(*args, **kwargs)


@contextmanager
def counting(seen: Counter):
    """Counts operations that would wait for a GPU, except reading what was sent to the host."""
    with _Operations(seen), _Methods(seen):
        yield


@contextmanager
def uncounted():
    """Context in which nothing is counted."""
    with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
        yield


class Watched:
    """Training batches; operations are counted while steps ``first`` to ``last`` are trained."""

    steps_per_epoch = None

    def __init__(self, batches, first: int, last: int) -> None:
        self.batches, self.first, self.last, self.seen = batches, first, last, Counter()

    def starting_at(self, step):
        with ExitStack() as stack:
            while True:
                if step == self.first:
                    stack.enter_context(counting(self.seen))
                if step == self.last + 1:
                    stack.close()
                yield self.batches[step % len(self.batches)]
                step += 1


def like_a_gpu(monkeypatch) -> list[int]:
    """Makes the metrics treat the CPU as a GPU; returns a list that receives the age of each count when it is read."""
    monkeypatch.setattr("qat_ste.divergence.trajectory.asynchronous", lambda device: True)
    ages: list[int] = []
    add, init, read = deferred.DeferredChanges.add, deferred.Sent.__init__, deferred.Sent.read
    now = [0]

    def counted_add(self, step, level):
        now[0] = step
        return add(self, step, level)

    def counted_init(self, values):
        init(self, values)
        self.sent = now[0]

    def counted_read(self):
        ages.append(now[0] - self.sent)
        with uncounted():
            return read(self)

    def get_value(value):
        with uncounted():
            return value.item()

    monkeypatch.setattr(deferred.DeferredChanges, "add", counted_add)
    monkeypatch.setattr(deferred.Sent, "__init__", counted_init)
    monkeypatch.setattr(deferred.Sent, "read", counted_read)
    # Adam's step count stays on the CPU.
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_get_value", get_value)
    return ages
