"""The parameter objects of a run: arguments in Python and sections of the configuration. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qat_ste.base.errors import (
    BITS,
    COUNT,
    FLAG,
    POSITIVE,
    SEED,
    STEPS,
    STRENGTH,
    ListOf,
    Number,
    OneOf,
    OrNone,
)
from qat_ste.base.grid_sections import AtlasConfig, TuneConfig
from qat_ste.base.parameters import PATH, Parameters, parameter

COUNTERPARTS = ("ste", "naive", "jitter", "replica", "mirrored", "ste_once")
DEFAULT_COUNTERPARTS = ("ste", "naive", "jitter")
# range: between the outermost levels (arXiv 2405.05171); bin: half a step beyond them; none: everywhere.
SATURATIONS = ("range", "bin", "none")
TIES = ("up", "even")
SCHEDULES = ("cosine", "constant", "step")
CLIP_AT = ("latent", "quantized")
PLACEMENTS = ("together", "spread")
PRECISIONS = ("fp32", "bf16")
MATRICES = "matrices"  # in place of a name pattern
EXECUTIONS = ("auto", "eager", "compile", "graph")
PATTERNS = ListOf((str, type), "module types, type names or name patterns")
NAMES = ListOf((str,), "name patterns")


class _Granularity(OneOf):
    """One of two words, or the size of a group."""

    def __init__(self) -> None:
        super().__init__(("tensor", "channel"))

    def __contains__(self, value: Any) -> bool:
        return value in COUNT or super().__contains__(value)

    def __str__(self) -> str:
        return "tensor, channel, or a whole number of at least 1"


class _PowerOfTwo:
    def __contains__(self, value: Any) -> bool:
        return value in Number(2, 2**14) and value & (value - 1) == 0

    def __str__(self) -> str:
        return "a power of two from 2 to 16384"


@dataclass(frozen=True)
class Quantization(Parameters):
    """The quantized weights of a model and their levels; section ``quantizer`` of the configuration.

    Args:
        bits: 1 to 16; 2^bits equally spaced levels, unless ``levels`` are given.
        levels: name of a grid, or ascending numbers; see ``GridQuantizer``.
        scale: the largest |level|: ``he``, the He-uniform bound; a number; one taken once from the initial weights, as
            ``initial_absmax`` (see ``InitialScale``); computed at every step, as ``absmax`` (see ``MovingScale``); or
            ``learned`` (see ``LearnedScale``).
        granularity: which weights of a tensor share a scale: ``tensor``, ``channel``, or n: groups of n weights of a
            channel; see ``Grouping``.
        saturation: where the backward pass lets the gradient through; see ``Quantizer``.
        ties: the level of a weight on a threshold: ``up`` or ``even``; see ``GridQuantizer``.
        include: modules whose ``weight`` is quantized: types, type names ("Conv2d"), or patterns over qualified
            names ("layer1.*").
        exclude: modules left alone although ``include`` names them.
        biases: whether the biases of these modules are quantized as well.
        rotation: size of the blocks of a channel that are rotated before rounding, and back after; see ``Rotation``.

    Raises:
        ArgumentError: a field has a value that is not allowed.
    """

    bits: int = parameter(2, BITS, "2^bits equally spaced levels, unless `levels` are given")
    levels: Any = parameter(
        None, None, "a grid (ternary, fp4_e2m1, nf4, apot, int4) or ascending numbers: replaces `bits`"
    )
    scale: Any = parameter(
        "he",
        None,
        "largest |level|: he, a number, initial_absmax, initial_mse, initial_percentile_<percent>, absmax, "
        "absmax_gradient, rms_<factor>, msamp_power, mx_power, nvfp4 or learned",
        "absmax",
    )
    granularity: Any = parameter(
        "tensor", _Granularity(), "what shares a scale: tensor, channel, or a number of weights of a channel", "channel"
    )
    saturation: str = parameter(
        "range", OneOf(SATURATIONS), "where the gradient passes: range (|w| <= max), bin (half a step more), none"
    )
    ties: str = parameter(
        "up", OneOf(TIES), "a weight on a threshold goes to the upper level (up) or as in IEEE (even)"
    )
    include: list[Any] = parameter(["Conv2d"], PATTERNS, "types or name patterns of the quantized modules")
    exclude: list[Any] = parameter([], PATTERNS, "modules left alone although `include` names them")
    biases: bool = parameter(False, FLAG, "quantize the biases of these modules as well")
    rotation: int | None = parameter(
        None, OrNone(_PowerOfTwo()), "weights of a Hadamard block, rotated before rounding: a power of two", 32
    )


class _Schedule(OneOf):
    """A schedule by name or, from Python, a function step -> factor on all learning rates."""

    def __contains__(self, value: Any) -> bool:
        return callable(value) or super().__contains__(value)


class _Segments:
    """A number of steps, or several that differ."""

    def __contains__(self, value: Any) -> bool:
        lengths = value if isinstance(value, list | tuple) and value else [value]
        return value is None or (all(length in COUNT for length in lengths) and len({*lengths}) == len(lengths))

    def __str__(self) -> str:
        return "None, a whole number of at least 1, or a list of different ones"


@dataclass(frozen=True)
class Training(Parameters):
    """Length, schedule and regularization of training; section ``train`` of the configuration.

    Args:
        steps: optimizer steps.
        epochs: if given, the run takes epochs x steps_per_epoch steps, whatever ``steps`` says.
        steps_per_epoch: by default the length of ``batches``; validation follows each epoch.
        schedule: ``cosine``, ``constant``, ``step``, or a function step -> factor on all learning rates, which
            then includes any warm-up.
        warmup: share of the steps over which the factor grows from 0.
        clip_norm, clip_at: see ``Clipping``.
        l2, l2_include: see ``L2Penalty``; the theorem does not cover it, the counterpart ``mirrored`` does. Beside name
            patterns, ``matrices`` includes all tensors of two dimensions or more.
        weight_decay: see ``WeightDecay``; acts on the tensors of ``l2_include``.
        accumulate: parts that a batch is split into; their gradients are added up.
        segment: lengths in steps; for each, every counterpart is trained once more, from the reference's mapped
            state every so many steps (docs/segments.md).
        seed: of weights, batches and dropout.

    Raises:
        ArgumentError: a field has a value that is not allowed.
    """

    steps: int = parameter(1500, STEPS, "optimizer steps")
    epochs: int | None = parameter(
        None, OrNone(STEPS), "if set, the run takes epochs x steps_per_epoch steps, whatever `steps` says", 10
    )
    steps_per_epoch: int | None = parameter(None, OrNone(COUNT), "null: one pass over the training data", 100)
    schedule: Any = parameter("cosine", _Schedule(SCHEDULES), "of the learning rate: cosine, constant, step")
    warmup: float = parameter(0.02, Number(0, 1, real=True, below=True), "share of the steps, linear from 0")
    clip_norm: float | None = parameter(
        None,
        OrNone(POSITIVE),
        "largest norm of all gradients together; larger ones are scaled down, before any decay",
        1,
    )
    clip_at: str = parameter(
        "latent", OneOf(CLIP_AT), "which norm: of gradients after the estimator, as in torch, or before it: quantized"
    )
    l2: float = parameter(0.0, STRENGTH, "penalty l2 * sum(w^2) on latent weights", 1e-4)
    weight_decay: float = parameter(
        0.0, STRENGTH, "w <- w - lr * weight_decay * w beside the optimizer's step, as in AdamW", 1e-2
    )
    l2_include: list[Any] = parameter(
        ["*"],
        NAMES,
        f"name patterns of the tensors that l2 and weight_decay act on; {MATRICES}: those of two dimensions or more",
    )
    accumulate: int = parameter(1, COUNT, "parts that a batch is split into, their gradients added up")
    seed: int = parameter(42, SEED, "of weights, batches and dropout")
    segment: Any = parameter(
        None, _Segments(), "lengths of segments, in steps: counterparts start again from the reference's state", 5
    )

    @property
    def segments(self) -> list[int]:
        """Lengths of the segments, ascending."""
        return sorted(self.segment if isinstance(self.segment, list | tuple) else filter(None, [self.segment]))

    def total_steps(self, steps_per_epoch: int | None) -> int:
        """Optimizer steps of the run, where one pass over the data takes ``steps_per_epoch``."""
        if self.epochs is None:
            return self.steps
        return self.epochs * (self.steps_per_epoch or steps_per_epoch or 1)


@dataclass(frozen=True)
class Metrics(Parameters):
    """How often, and on how many weights, the divergence is measured; section ``metrics`` of the configuration.

    Args:
        every: steps between rows of metrics; by default a run has 200 rows.
        sequence_weights: number of weights whose changes of level are kept; of more, a fixed random sample is.
        validate_every: epochs between validations; the last step is always validated.

    Raises:
        ArgumentError: a field has a value that is not allowed.
    """

    every: int | None = parameter(None, OrNone(COUNT), "steps between rows; null: 200 rows a run", 10)
    sequence_weights: int = parameter(
        1_000_000, COUNT, "weights whose changes of level are kept; of more, a fixed sample"
    )
    validate_every: int = parameter(1, COUNT, "epochs between validations", 10)


@dataclass(frozen=True)
class Execution(Parameters):
    """Where and how training steps are computed; part of section ``runtime`` of the configuration.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1`` …; ``auto``: a GPU where there is one.
        placement: of the members where several ranks train them; see ``Layout``.
        precision: ``fp32``, or ``bf16`` for forward and backward passes under autocast. Its rounding is larger
            than most of what is measured; latent weights, weight maps and metrics stay in their own precision.
        execution: of forward and backward passes. ``eager``: the reference, on a CPU the same bit for bit each time;
            on a GPU not even eager steps need be; ``compile``: by ``torch.compile``; ``graph``: by CUDA graphs, where
            they repeat a step; ``auto``: eager on a CPU and on several ranks, on one GPU the fastest, measured over a
            few steps.
        sync_batchnorm: whether batch norm computes its statistics over all ranks of a member (GPUs).

    Raises:
        ArgumentError: a field has a value that is not allowed.
    """

    device: Any = parameter("auto", None, "cpu, cuda, cuda:1, …; auto: a GPU where there is one", "cpu")
    placement: str = parameter(
        "together", OneOf(PLACEMENTS), "together: all members on each device, the batch split; spread: members apart"
    )
    precision: str = parameter(
        "fp32", OneOf(PRECISIONS), "bf16: autocast in both passes; its rounding may drown what is measured"
    )
    execution: str = parameter(
        "auto", OneOf(EXECUTIONS), "of the passes: eager, compile (torch.compile), graph (CUDA graphs), or the fastest"
    )
    sync_batchnorm: bool = parameter(False, FLAG, "batch norm over all devices of a member (GPUs)")


@dataclass(frozen=True)
class CheckpointSchedule(Parameters):
    """When a checkpoint is written, and how many are kept; section ``checkpoint`` of the configuration.

    Args:
        every_steps: steps between checkpoints; None: not by steps.
        every_seconds: seconds between checkpoints; None: not by time.
        keep: number of files that stay.

    Raises:
        ArgumentError: a field has a value that is not allowed.
    """

    every_steps: int | None = parameter(None, OrNone(COUNT), "steps between checkpoints", 1000)
    every_seconds: float | None = parameter(600, OrNone(POSITIVE), "seconds between checkpoints")
    keep: int = parameter(2, Number(1, 100), "how many of the last ones stay")


@dataclass(frozen=True)
class TrainConfig(Training):
    """Section ``train``: ``Training``, the start, the batches, and the factors that rows of the paper's tables set."""

    pretrain_steps: int = parameter(
        0,
        Number(0, STEPS.highest),
        "of the float network that training starts from; runs share it, in paths.output",
        500,
    )

    batch_size: int = parameter(64, COUNT, "of all members alike")
    shuffle: bool = parameter(True, FLAG, "false: file order, wrapping around")
    length_scale: float = parameter(
        1.0, Number(0, 10_000, real=True, above=True), "factor on epochs or steps: set by row=..."
    )
    lr_scale: float = parameter(1.0, POSITIVE, "factor on the learning rate: set by row=...")
    share: float = parameter(
        1.0,
        Number(0, 1, real=True, above=True),
        "share of the length that is trained, with the schedule in proportion: set by reproduce=short",
    )

    def total_steps(self, steps_per_epoch: int | None) -> int:
        """Whole epochs, at least one, where the length is counted in them."""
        scale = self.length_scale * self.share
        if self.epochs is None:
            return max(1, round(self.steps * scale))
        return max(1, round(self.epochs * scale)) * (self.steps_per_epoch or steps_per_epoch or 1)


@dataclass(frozen=True)
class RuntimeConfig(Execution):
    """Section ``runtime``: ``Execution``, and the processes."""

    devices: int = parameter(1, Number(1, 256), "processes of this machine that share the work, each with its GPU")
    tf32: bool = parameter(False, FLAG, "TF32 on GPUs; its rounding may drown what is measured")
    threads: int | None = parameter(None, OrNone(Number(1, 1024)), "of the CPU; null: torch decides", 2)
    line_seconds: float = parameter(5, POSITIVE, "seconds between lines of progress where there is no terminal")


@dataclass(frozen=True)
class PathsConfig(Parameters):
    """Section ``paths``: folders."""

    data: str = parameter("data", PATH, "folder of the data sets")
    output: str = parameter("outputs", PATH, "folder of the run folders")


SECTIONS: Mapping[str, type[Parameters]] = {
    "quantizer": Quantization,
    "train": TrainConfig,
    "metrics": Metrics,
    "runtime": RuntimeConfig,
    "checkpoint": CheckpointSchedule,
    "paths": PathsConfig,
    "atlas": AtlasConfig,
    "tune": TuneConfig,
}
