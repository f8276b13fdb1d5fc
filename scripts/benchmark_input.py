#!/usr/bin/env python3
"""How fast training batches of an image folder arrive, beside a bare DataLoader on the same files.

    python scripts/benchmark_input.py --data DIR                     ImageNet crops of 224
    python scripts/benchmark_input.py --data DIR --image-size 64

In one process and in turn: (1) a bare DataLoader with torchvision's decoder, RandomResizedCrop and horizontal flip,
which stops at uint8; (2) our batches, normalised to float32; (3) the same from the cache of decoded images. Prints the
median over rounds of images per second and of the ratios to (1), so that a slow moment of the machine falls on all.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from qat_ste.data.image_folder import ImageFolderDataset
from qat_ste.data.imagenet import imagenet

REST_SECONDS = 1.0  # in which the workers of the one measured last fill their queues and fall silent


class Bare(Dataset):
    """Decode, crop, flip: what anyone would write first."""

    def __init__(self, paths: list[str], labels: Tensor, image_size: int) -> None:
        self.paths, self.labels = paths, labels
        self.transform = v2.Compose([v2.RandomResizedCrop(image_size, antialias=True), v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(decode_image(self.paths[index], ImageReadMode.RGB)), self.labels[index]


def bare_batches(data: ImageFolderDataset, batch_size: int) -> Iterator[list[Tensor]]:
    bare = Bare([data.train.path(index) for index in range(len(data.train))], data.train.labels, data.image_shape[1])
    endless = RandomSampler(bare, replacement=True, num_samples=10**9)
    return iter(DataLoader(bare, batch_size, sampler=endless, num_workers=data.workers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds train/ and val/")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=None, help="default: one a core, at most 8")
    parser.add_argument("--batches", type=int, default=30, help="batches of a round")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as cache:
        plain = imagenet(arguments.data, arguments.image_size, arguments.workers)
        cached = imagenet(arguments.data, arguments.image_size, arguments.workers, cache=cache)
        cached.prepare()
        ours = {"our batches": plain, "our batches, cached": cached}
        batches: dict[str, Iterator] = {"bare DataLoader": bare_batches(plain, arguments.batch_size)}
        for name, data in ours.items():
            order = data.train_batches(arguments.batch_size, shuffle=True, seed=0, device=torch.device("cpu"))
            batches[name] = order.starting_at(0)
        epoch = -(-len(plain.train) // arguments.batch_size)  # the first reading verifies checksums
        for _ in itertools.islice(batches["our batches, cached"], epoch):
            pass
        rates: dict[str, list[float]] = {name: [] for name in batches}
        for _ in range(arguments.rounds):
            for name, source in batches.items():
                time.sleep(REST_SECONDS)
                for _ in itertools.islice(source, 2 * plain.workers + 1):  # what was fetched ahead
                    pass
                start = time.perf_counter()
                for _ in itertools.islice(source, arguments.batches):
                    pass
                rates[name].append(arguments.batches * arguments.batch_size / (time.perf_counter() - start))

    setting = f"batches of {arguments.batch_size} x {arguments.image_size} x {arguments.image_size}"
    print(f"{arguments.data}: {len(plain.train)} images, {setting}, {plain.workers} workers")
    for name, values in rates.items():
        ratios = sorted(value / bare for value, bare in zip(values, rates["bare DataLoader"], strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        rate = f"{statistics.median(values):7.0f} images/s"
        print(f"{name:20} {rate}  {statistics.median(ratios):6.2f} x bare   (quartiles {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
