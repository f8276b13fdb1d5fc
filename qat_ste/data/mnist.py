"""MNIST, read from its four original files, gzipped or not."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import torch

from qat_ste.base.files import home_path
from qat_ste.data.in_memory import InMemoryDataset, Split

# MD5 of the gzipped file (as torchvision lists it) and of its content.
FILES = {
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}


def mnist(root: str | Path, download: bool = True) -> InMemoryDataset:
    """60,000 training and 10,000 test images, 28x28, pixels/255.

    Args:
        root: folder with the four files (gzipped or not), directly or in ``MNIST/raw``.
        download: whether torchvision may fetch missing files into ``root/MNIST/raw``.

    Raises:
        ValueError: a file is damaged (its MD5 differs).
        FileNotFoundError: files are missing and were not downloaded; the message names files and folders.
    """
    root = home_path(root)
    folders = [root, root / "MNIST" / "raw"]
    missing = [name for name in FILES if _find(name, folders) is None]
    if missing and download:
        problem = _download(root)
        missing = [name for name in FILES if _find(name, folders) is None]
    elif missing:
        problem = "dataset.download=false"
    if missing:
        raise FileNotFoundError(
            f"MNIST files {', '.join(missing)} (gzipped or not) are neither in {folders[0]} nor in {folders[1]}, "
            f"and were not downloaded ({problem})"
        )
    arrays = {name: _read(name, _find(name, folders)) for name in FILES}  # type: ignore[arg-type]
    splits = []
    for split in ("train", "t10k"):
        images = torch.from_numpy(arrays[f"{split}-images-idx3-ubyte"]).float().div_(255).unsqueeze(1)
        splits.append(Split(images, torch.from_numpy(arrays[f"{split}-labels-idx1-ubyte"]).long()))
    train, test = splits
    return InMemoryDataset(train, test, num_classes=10, held_out=5000)


def _find(name: str, folders: list[Path]) -> Path | None:
    candidates = [folder / file for folder in folders for file in (name, f"{name}.gz")]
    return next((path for path in candidates if path.is_file()), None)


def _download(root: Path) -> str:
    """Downloads from torchvision's mirrors; returns the reason, in one line, why files may still be missing."""
    from torchvision.datasets import MNIST

    try:
        MNIST(str(root), download=True)
    except Exception as error:  # any network error
        return " ".join(str(error).split())[:200]
    return "the download left no files"


def _read(name: str, path: Path) -> np.ndarray:
    """Reads an IDX file (uint8; big-endian 32-bit sizes in its header); raises ValueError if its MD5 is wrong."""
    gzip_md5, content_md5 = FILES[name]
    content = path.read_bytes()
    expected = gzip_md5 if path.suffix == ".gz" else content_md5
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != expected:
        raise ValueError(f"{path} is damaged: {len(content)} bytes with MD5 {md5}, expected MD5 {expected}")
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    dimensions = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=dimensions, offset=4)
    return np.frombuffer(bytearray(content), dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
