"""A sequence of tokens of any length, of which only the windows of a batch are read."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qat_ste.base.errors import ArgumentError
from qat_ste.data.dataset import Batch, Shard, to_device

BLOCK = 4096  # tokens
SAMPLED = 64  # blocks that identify a file
MOST_LOGITS = 1 << 23  # of a batch in evaluation
PRIMES = (1_000_003, 15_485_863)  # so that (seed, step) and (seed', step') have different generators


class Tokens:
    """A sequence of tokens, in memory or in a file of any size.

    Args:
        name: for messages.
        load: returns all tokens; those of a file as a new memory map, since pages that were read stay in memory as long
            as their map.
        vocabulary: number of tokens there are.

    Raises:
        ArgumentError: there is no token, or one beyond the vocabulary, as far as the sampled blocks show; ``read``
            checks every window.
    """

    def __init__(self, name: str, load: Callable[[], np.ndarray], vocabulary: int) -> None:
        self.name, self.load, self.vocabulary = name, load, vocabulary
        tokens = load()
        self.count = len(tokens)
        step = max(1, (self.count - BLOCK) // (SAMPLED - 1))
        content = b"".join(self.read(start, BLOCK).tobytes() for start in range(0, self.count, step))
        self.digest = hashlib.sha256(f"{self.count} {tokens.dtype.str}".encode() + content).hexdigest()[:16]

    @classmethod
    def of_file(cls, path: Path, vocabulary: int | None = None) -> Tokens:
        """The bytes of UTF-8 text, or the unsigned 16-bit integers, little-endian, of a ``.bin`` file.

        Args:
            vocabulary: by default 256 for text, and 50257 (GPT-2's) for ``.bin``.

        Raises:
            ArgumentError: the file cannot be read, is empty, no UTF-8 text, or no sequence of 16-bit integers.
        """
        binary = path.suffix == ".bin"
        try:
            size = path.stat().st_size
            if not binary:
                _check_text(path)
        except OSError as error:
            raise ArgumentError("file", str(path), f"a file that can be read ({error.strerror})") from error
        if not size or (binary and size % 2):
            raise ArgumentError("file", str(path), "unsigned 16-bit tokens" if size else "a file that is not empty")
        load = partial(np.memmap, path, "<u2" if binary else "u1", "r")
        return cls(path.name, load, vocabulary or (50257 if binary else 256))

    def read(self, start: int, count: int) -> np.ndarray:
        """Up to ``count`` tokens from ``start`` on.

        Raises:
            ArgumentError: a token is not in the vocabulary.
        """
        values = np.array(self.load()[start : start + count])
        if values.size and (largest := int(values.max())) >= self.vocabulary:
            where = start + int(values.argmax())
            allowed = f"larger than {largest}, which is token {where} of {self.name}"
            raise ArgumentError("vocabulary", self.vocabulary, allowed)
        return values


class TokensWithout:
    """A sequence of tokens without those from ``start`` to ``stop``; a window may straddle the seam."""

    def __init__(self, tokens: Tokens, start: int, stop: int) -> None:
        self.tokens, self.start, self.stop = tokens, start, stop
        self.vocabulary = tokens.vocabulary

    def read(self, start: int, count: int) -> np.ndarray:
        """As ``Tokens.read``; ``start`` counts the tokens that are left."""
        before = min(max(self.start - start, 0), count)
        ranges = ((start, before), (start + before + self.stop - self.start, count - before))
        return np.concatenate([self.tokens.read(first, number) for first, number in ranges if number])


def _check_text(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while block := file.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            allowed = f"UTF-8 text, or 16-bit tokens in a file named *.bin ({error.reason})"
            raise ArgumentError("file", str(path), allowed) from error


@dataclass(frozen=True)
class Windows:
    """Windows of ``context`` tokens from ``start`` to ``stop``, each with the token that follows."""

    tokens: Tokens | TokensWithout
    start: int
    stop: int
    context: int

    def __len__(self) -> int:
        return (self.stop - self.start - 1) // self.context

    @property
    def positions(self) -> int:
        """First tokens that a window can have."""
        return self.stop - self.start - self.context

    def batch(self, firsts: Tensor, device: torch.device) -> Batch:
        """The windows with these first tokens, counted from ``start``, and their next tokens (int64)."""
        rows = [self.tokens.read(self.start + first, self.context + 1) for first in firsts.tolist()]
        values = torch.from_numpy(np.stack(rows).astype(np.int64))
        inputs, targets = values[:, :-1].contiguous(), values[:, 1:].contiguous()
        return to_device(inputs, device), to_device(targets, device)


class TrainingWindows:
    """Endless batches of windows that depend on (seed, step) alone.

    With ``shuffle`` windows start anywhere; without, each follows the one before, wrapping around.

    Raises:
        ArgumentError: the batch is larger than the split, or not divisible by the number of ranks.
    """

    def __init__(
        self, windows: Windows, batch_size: int, shuffle: bool, seed: int, device: torch.device, shard: Shard = Shard()
    ) -> None:
        self._share = shard.of_batch(batch_size, len(windows), "windows")
        self.windows, self.batch_size, self.shuffle, self.seed = windows, batch_size, shuffle, seed
        self.device = device
        self.steps_per_epoch = len(windows) // batch_size

    def starting_at(self, step: int) -> Iterator[Batch]:
        while True:
            yield self.windows.batch(self.firsts(step)[self._share], self.device)
            step += 1

    def firsts(self, step: int) -> Tensor:
        """The first tokens of the windows of the batch at ``step``."""
        if not self.shuffle:
            numbers = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
            return numbers % len(self.windows) * self.windows.context
        generator = torch.Generator().manual_seed(self.seed * PRIMES[0] + step * PRIMES[1])
        return torch.randint(self.windows.positions, (self.batch_size,), generator=generator)


class EvaluationWindows:
    """Up to ``most`` windows of a split, spread evenly, in order; rank r of R reads every R-th batch."""

    def __init__(self, windows: Windows, most: int, device: torch.device, shard: Shard = Shard()) -> None:
        self.windows, self.device, self.shard = windows, device, shard
        count = min(most, len(windows))
        self.firsts = torch.arange(count) * len(windows) // count * windows.context
        self.batch_size = max(1, MOST_LOGITS // (windows.context * windows.tokens.vocabulary))

    def __iter__(self) -> Iterator[Batch]:
        batches = self.firsts.split(self.batch_size)[self.shard.rank :: self.shard.ranks]
        return (self.windows.batch(firsts, self.device) for firsts in batches)
