"""Process groups, memory, and the input pipeline."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.memory import bytes_a_weight
from benchmarks.networks import Members, Plain, Setting
from benchmarks.scaling import one_layer
from benchmarks.timing import Stopwatch
from qat_ste.app.ranks import join
from qat_ste.data.imagenet import imagenet
from qat_ste.experiment.execution import find_device
from qat_ste.experiment.ranks import Ranks, gloo_group

from .findings import Findings


@contextmanager
def _joined(device: torch.device) -> Iterator[None]:
    with TemporaryDirectory() as folder:
        join(device, f"file://{folder}/ranks", 0, 1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _collectives(device: torch.device) -> None:
    for place in {device, torch.device("cpu")}:
        values = torch.ones(4, device=place)
        dist.all_reduce(values)
        dist.broadcast(values, 0)
        out = torch.empty(4, device=place)
        dist.scatter(out, [values], 0)
        assert torch.equal(out.cpu(), torch.ones(4))
    gathered: list[object] = [None]
    dist.gather_object({"rank": 0}, gathered)
    box = ["text"]
    dist.broadcast_object_list(box)
    assert gathered == [{"rank": 0}] and box == ["text"]
    assert Ranks().any([True, False]) == [True, False]


def _parallel(device: torch.device, synchronized: bool) -> None:
    """A step of a model under DDP, with synchronized batch norm or without."""
    model: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2)).to(device)
    inputs = torch.randn(8, 3, 8, 8, device=device)
    model(inputs)
    expected = copy.deepcopy(model)
    if synchronized:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model, dist.new_group([0]))
    parallel = DistributedDataParallel(model)
    for each in (parallel, expected):
        each(inputs).square().sum().backward()
    for parameter, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, wanted.grad, rtol=1e-3, atol=1e-3)


def nccl(findings: Findings) -> None:
    """One rank: NCCL beside gloo as the command joins, for ``cuda`` and ``cuda:0``, and NCCL alone."""
    names = ("cuda", "cuda:0") if findings.on_gpu else ("cpu",)
    if not findings.on_gpu:
        findings.skip("NCCL, one rank, cuda and cuda:0", "NCCL needs a GPU; gloo is tried in its place")
        findings.skip("synchronized batch norm", "SyncBatchNorm needs a GPU")
    for name in names:
        device = find_device(name)
        with _joined(device):
            backends = dist.get_backend_config()

            def check(what: str, checked: partial[None], name: str = name, backends: str = backends) -> None:
                figure = f"one rank on {name}, {backends}: {what}"
                if findings.attempt(figure, checked):
                    findings.add(figure, "works")

            check("collectives", partial(_collectives, device))
            check("a step under DDP", partial(_parallel, device, False))
            if findings.on_gpu:
                check("a step under DDP with synchronized batch norm", partial(_parallel, device, True))
    if findings.on_gpu:
        findings.attempt("NCCL alone", partial(_nccl_alone, findings))


def _nccl_alone(findings: Findings) -> None:
    with TemporaryDirectory() as folder:
        dist.init_process_group("nccl", f"file://{folder}/ranks", rank=0, world_size=1)
        try:
            on_cpu, on_gpu = torch.ones(2), torch.ones(2, device=findings.device)
            dist.all_reduce(on_cpu, group=gloo_group(dist.group.WORLD))
            dist.all_reduce(on_gpu)
            findings.add(f"one rank, {dist.get_backend_config()}: numbers on the CPU by gloo", "works")
        finally:
            dist.destroy_process_group()


def memory(findings: Findings) -> None:
    """Bytes of GPU memory that the metrics hold per quantized weight, and at most during a step."""
    if not findings.on_gpu:
        findings.skip("memory of the GPU", "there is no GPU; bytes of tensors are counted in its place")
        for what, value in bytes_a_weight(findings.size(0, 100)).items():
            findings.add(f"bytes per weight {what}", value, "B")
        return
    width = 4000
    held, peak = {}, {}
    for members in (1, 2, 3):
        sizes = []
        for metrics in (False, True):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            batch = torch.randn(1, width, device=findings.device), torch.zeros(1, dtype=torch.long).to(findings.device)
            model = one_layer(width).to(findings.device)
            each = Members(model, members, batch, Stopwatch(), metrics, include=["Linear"])
            for _ in range(3):
                each.step()
            findings.wait()
            sizes.append((torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()))
            del each, model
        held[members], peak[members] = ((b - a) / width**2 for a, b in zip(*sizes, strict=True))
    findings.add("bytes per weight of the reference and one counterpart", held[2], "B")
    findings.add("bytes per weight of each further counterpart", held[3] - held[2], "B")
    findings.add("bytes per weight of two members, most during a step", peak[2], "B")


def pipeline(findings: Findings) -> None:
    """Images per second of the input pipeline alone, of training alone, and the share of training that waits for it."""
    data = findings.data / "imagenet-sample"
    if not data.is_dir():
        findings.skip("input pipeline", f"{data} is no folder; set --data or QAT_STE_SHARED")
        return
    size, batch_size, steps = findings.size(224, 32), findings.size(128, 4), findings.size(40, 2)
    dataset = imagenet(data, size)
    dataset.prepare()

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batches = dataset.train_batches(batch_size, True, 0, findings.device).starting_at(0)
        for _ in range(findings.size(8, 1)):  # workers start
            next(batches)
        return batches

    start, read = batches(), 0
    began = time.perf_counter()
    for images, _ in islice(start, steps):
        read += len(images)
    findings.wait()
    findings.add("input pipeline alone", read / (time.perf_counter() - began), "images/s")
    setting = Setting("resnet50", size, batch_size, 1, 1)
    for precision in ("fp32", "bf16"):
        plain = Plain([setting.build().to(findings.device)], next(start), Stopwatch(), precision)
        source, waited = batches(), 0.0
        plain.step()
        findings.wait()
        began = time.perf_counter()
        for _ in range(steps):
            before = time.perf_counter()
            plain.batch = next(source)
            waited += time.perf_counter() - before
            plain.step()
        findings.wait()
        seconds = time.perf_counter() - began
        findings.add(f"one plain ResNet-50, {precision}, fed by it", steps * batch_size / seconds, "images/s")
        findings.add(f"one plain ResNet-50, {precision}: time in next(batches)", 100 * waited / seconds, "%")
