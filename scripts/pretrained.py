"""Runs the tables of docs/pretrained.md: python scripts/pretrained.py PART…; prints Markdown.

MNIST is read from data/, or from the folder that QAT_STE_MNIST names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from parts import run_parts
from qat_ste import Execution, Quantization, Training, compare, pretrain
from qat_ste.data.dataset import Shard
from qat_ste.data.digits import digits
from qat_ste.data.mnist import mnist
from qat_ste.estimators import Estimator, Power, Ste, Tanh
from qat_ste.experiment.comparison import Comparison
from qat_ste.models import keras_cnn, small_cnn
from qat_ste.quantizers.scales import LearnedScale
from qat_ste.report.tables import shown_estimate

CPU = torch.device("cpu")
MOMENTUM = partial(torch.optim.SGD, momentum=0.9)
STE = Ste()
MEMBERS = ("ste", "naive", "mirrored", "jitter")
K = {2: 5.5, 4: 18.0}  # of tanh, by bits
SCALES: dict[str, dict[str, Any]] = {
    "He bound": {"scale": "he"},
    "initial absmax": {"scale": "initial_absmax"},
    "initial absmax by channel": {"scale": "initial_absmax", "granularity": "channel"},
    "initial least squares by channel": {"scale": "initial_mse", "granularity": "channel"},
    "absmax by channel": {"scale": "absmax", "granularity": "channel"},
    "learned": {"scale": LearnedScale(lr=0.1)},
}


@dataclass(frozen=True)
class Network:
    """A network that is trained as float first."""

    build: Callable[[], nn.Module]
    dataset: Callable[[], Any]
    lr: float
    float_steps: int
    steps: int
    tested: int | None = None  # batches of test images; None: all

    def batches(self, shard: Shard) -> Any:
        """Training batches of 64."""
        return self.dataset().train_batches(64, True, 1, CPU, shard)

    def validation(self, shard: Shard) -> Any:
        """Test batches."""
        return list(islice(self.dataset().test_batches(CPU, shard), self.tested))

    def run(
        self,
        quantization: Quantization,
        estimator: Estimator = STE,
        optimizer: Callable[..., torch.optim.Optimizer] = MOMENTUM,
        lr: float | None = None,
        counterparts: Sequence[str] = MEMBERS,
        segment: list[int] | None = None,
        steps: int | None = None,
    ) -> Comparison:
        """Trains on, at a tenth of the learning rate unless another is given."""
        return compare(
            _pretrained(self),
            self.batches,
            loss=F.cross_entropy,
            estimator=estimator,
            optimizer=optimizer,
            lr=lr or self.lr / 10,
            quantization=quantization,
            training=Training(steps=steps or self.steps, seed=1, segment=segment),
            execution=Execution(device="cpu"),
            validation=self.validation,
            on_start=lambda start: None,
            counterparts=list(counterparts),
        )


@cache
def _pretrained(network: Network) -> Callable[[], nn.Module]:
    """The function that builds the network with trained float weights."""
    return pretrain(
        network.build, network.batches, network.float_steps, loss=F.cross_entropy, optimizer=MOMENTUM, lr=network.lr,
        training=Training(seed=1),
    )  # fmt: skip


@cache
def _mnist() -> Any:
    return mnist(os.environ.get("QAT_STE_MNIST", "data"))


NETWORKS = {
    "small_cnn, digits": Network(small_cnn, digits, 0.03, 600, 300),
    "keras_cnn, MNIST": Network(keras_cnn, _mnist, 0.03, 200, 60, tested=2),
}


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def scales() -> None:
    """Accuracy right after quantization, by scale; one seed."""
    print("| network | bits | scale | float | quantized | outside the range |\n|---|---:|---|---:|---:|---:|")
    for name, network in NETWORKS.items():
        for bits in K:
            for scale, settings in SCALES.items():
                start = network.run(Quantization(bits=bits, **settings), counterparts=["replica"], steps=2).start
                assert start is not None
                cells = map(_percent, (start.float_accuracy, start.quantized_accuracy, start.outside_range))
                print(f"| {name} | {bits} | {scale} | {' | '.join(cells)} |", flush=True)


def training() -> None:
    """Accuracy and alignment errors after training on; one seed."""
    print("| network | bits | scale | STE | tanh | " + " | ".join(f"`{name}`" for name in MEMBERS) + " |")
    print("|---|---:|---|---:|---:|" + "---:|" * len(MEMBERS))
    for name, network in NETWORKS.items():
        for bits, k in K.items():
            for scale in ("initial absmax by channel", "absmax by channel", "learned"):
                quantization = Quantization(bits=bits, **SCALES[scale])
                with_ste = network.run(quantization, counterparts=["replica"])
                with_tanh = network.run(quantization, Tanh(k))
                accuracies = [_percent(each.reference.test_accuracy) for each in (with_ste, with_tanh)]
                errors = [f"{of.weight_alignment_error:.3g}" for of in with_tanh.counterparts.values()]
                print(f"| {name} | {bits} | {scale} | {' | '.join([*accuracies, *errors])} |", flush=True)


def dge() -> None:
    """DGE on E2M1 with scales rounded to powers of two, whole runs and segments of 5 and 20 steps; one seed."""
    optimizers: dict[str, tuple[Any, float]] = {
        "SGD, momentum 0.9": (MOMENTUM, 0.003),
        "AdamW, β₂ = 0.95": (partial(torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0), 3e-4),
        "AdamW, β₂ = 0.999": (partial(torch.optim.AdamW, betas=(0.9, 0.999), weight_decay=0), 3e-4),
    }
    rules: dict[str, dict[str, Any]] = {
        "MS-AMP's power by channel": {"scale": "msamp_power", "granularity": "channel"},
        "MX, blocks of 9": {"scale": "mx_power", "granularity": 9, "saturation": "none"},
    }
    names = " | ".join(f"`{name}`" for name in (*MEMBERS, "replica"))
    print(f"| optimizer | scale | δ | {names} | ste / jitter, 5 steps | 20 steps |\n|---|---|---:|" + "---:|" * 7)
    network = NETWORKS["small_cnn, digits"]
    for optimizer, (make, lr) in optimizers.items():
        for scale, settings in rules.items():
            quantization = Quantization(levels="fp4_e2m1", ties="even", **settings)
            comparison = network.run(quantization, Power(), make, lr, (*MEMBERS, "replica"), segment=[5, 20])
            errors = [f"{of.weight_alignment_error:.3g}" for of in comparison.counterparts.values()]
            delta = max(comparison.movement_in_memory.values(), default=None)
            assert comparison.segments is not None
            verdicts = comparison.segments.as_dict()["segment_summary"]["verdicts"].values()
            ratios = [shown_estimate(verdict["ste_over_jitter"], 2) for verdict in verdicts]
            cells = ["–" if delta is None else f"{delta:.2g}", *errors, *ratios]
            print(f"| {optimizer} | {scale} | {' | '.join(cells)} |", flush=True)


PARTS = {"scales": scales, "training": training, "dge": dge}

if __name__ == "__main__":
    run_parts(__doc__, PARTS)
