from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qat_ste.divergence.sequences import ChangeSequences, Sequences, compress
from tests.divergence import slow

VECTORS = [  # levels, times, and (level, time, oscillation count) after compression, by the paper's definition
    ([0, 1, 0, 1], [0, 3, 5, 8], [(0, 0, 1), (1, 8, 0)]),
    ([0, 1, 0, 1, 0], [0, 3, 5, 8, 9], [(0, 0, 1), (1, 8, 0), (0, 9, 0)]),
    ([0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5], [(0, 0, 2), (1, 5, 0)]),
    ([0, 1, 2, 1, 2, 0], [0, 1, 2, 3, 4, 5], [(0, 0, 0), (1, 1, 1), (2, 4, 0), (0, 5, 0)]),
    ([0, 1, 0], [0, 4, 6], [(0, 0, 0), (1, 4, 0), (0, 6, 0)]),
    ([2], [0], [(2, 0, 0)]),
]


def flat(entries_by_weight) -> Sequences:
    lengths = [len(entries) for entries in entries_by_weight]
    columns = np.array([entry for entries in entries_by_weight for entry in entries], dtype=np.int32).reshape(-1, 3)
    return Sequences(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), *columns.T)


def unflat(sequences: Sequences):
    entries = list(zip(sequences.level.tolist(), sequences.time.tolist(), sequences.oscillations.tolist(), strict=True))
    return [entries[a:b] for a, b in zip(sequences.offset, sequences.offset[1:], strict=False)]


@pytest.mark.parametrize(("levels", "times", "expected"), VECTORS)
def test_worked_vectors(levels, times, expected):
    assert unflat(compress(flat([[(a, b, 0) for a, b in zip(levels, times, strict=True)]]))) == [expected]
    assert slow.compress(list(zip(levels, times, strict=True))) == expected


def test_all_vectors_at_once():
    given_ = [[(a, b, 0) for a, b in zip(levels, times, strict=True)] for levels, times, _ in VECTORS]
    assert unflat(compress(flat(given_))) == [expected for _, _, expected in VECTORS]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=60), min_size=1, max_size=8))
def test_compression_equals_the_reference_implementation(runs):
    sequences = [slow.sequence(run) for run in runs]
    compressed = compress(flat([[(level, time, 0) for level, time in entries] for entries in sequences]))
    assert unflat(compressed) == [slow.compress(entries) for entries in sequences]
    assert unflat(compress(compressed)) == unflat(compressed), "compression is idempotent"


@pytest.mark.parametrize("limit", [1, 50, 10**9])
def test_repeated_compression_equals_one_compression_at_the_end(limit):
    torch.manual_seed(1)
    levels = [torch.randint(0, 3, (40,))]
    collected = ChangeSequences(levels[0])
    collected.LIMIT = limit
    for step in range(1, 300):
        level = torch.where(torch.rand(40) < 0.5, torch.randint(0, 2, (40,)), levels[-1])
        changed = (level != levels[-1]).nonzero().squeeze(1)
        collected.append(changed, torch.full_like(changed, step), level[changed])
        levels.append(level)
    columns = torch.stack(levels).T.tolist()
    assert unflat(collected.compressed()) == [slow.compress(slow.sequence(column)) for column in columns]


def test_oscillations_take_bounded_memory():
    collected = ChangeSequences(torch.zeros(1000))
    collected.LIMIT = 5000
    everywhere = torch.arange(1000)
    for step in range(1, 200):
        collected.append(everywhere, torch.full((1000,), step), torch.full((1000,), step % 2))
    assert collected._pending <= 6000
    assert len(collected.compressed().level) <= 3000
    assert collected.compressed().oscillations[0] == 99
