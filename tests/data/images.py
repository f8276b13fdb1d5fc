"""Reads and compares batches of image folders."""

from __future__ import annotations

import itertools

import torch

from qat_ste.data.dataset import Shard

CPU = torch.device("cpu")


def training(data, count, step=0, batch_size=4, seed=0, shard=Shard(), shuffle=True):
    return list(itertools.islice(data.train_batches(batch_size, shuffle, seed, CPU, shard).starting_at(step), count))


def same(batches, others) -> bool:
    pairs = list(zip(batches, others, strict=True))
    return all(torch.equal(a, b) and torch.equal(k, m) for (a, k), (b, m) in pairs)
