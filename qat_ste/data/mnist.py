"""MNIST from its four original files, packed or unpacked, read without unpacking to disk."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import torch

from qat_ste.data.in_memory import InMemoryDataset, Split

# MD5 of the packed file (as torchvision lists it) and of its content.
FILES = {
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}


def mnist(root: str | Path, download: bool = True) -> InMemoryDataset:
    """60,000 training and 10,000 test images, 28x28, pixels/255.

    Args:
        root: folder that holds the four files (.gz or unpacked), itself or in ``MNIST/raw``.
        download: whether torchvision may fetch missing files into ``root/MNIST/raw``.

    Raises:
        ValueError: a file is damaged (its MD5 differs).
        FileNotFoundError: files are missing and could not be had; the message names them and the folders looked at.
    """
    root = Path(root)
    folders = [root, root / "MNIST" / "raw"]
    missing = [name for name in FILES if _find(name, folders) is None]
    if missing and download:
        problem = _download(root)
        missing = [name for name in FILES if _find(name, folders) is None]
    elif missing:
        problem = "dataset.download=false"
    if missing:
        raise FileNotFoundError(
            f"MNIST files {', '.join(missing)} (each packed as .gz or unpacked) are neither in {folders[0]} nor in "
            f"{folders[1]}, and were not downloaded ({problem})"
        )
    arrays = {name: _read(name, _find(name, folders)) for name in FILES}  # type: ignore[arg-type]
    splits = []
    for part in ("train", "t10k"):
        images = torch.from_numpy(arrays[f"{part}-images-idx3-ubyte"]).float().div_(255).unsqueeze(1)
        splits.append(Split(images, torch.from_numpy(arrays[f"{part}-labels-idx1-ubyte"]).long()))
    train, test = splits
    return InMemoryDataset(train, test, num_classes=10)


def _find(name: str, folders: list[Path]) -> Path | None:
    candidates = [folder / file for folder in folders for file in (name, f"{name}.gz")]
    return next((path for path in candidates if path.is_file()), None)


def _download(root: Path) -> str:
    """Tries torchvision's mirrors; returns what went wrong in one line, for the case that files are still missing."""
    from torchvision.datasets import MNIST

    try:
        MNIST(str(root), download=True)
    except Exception as error:  # network errors of every kind
        return " ".join(str(error).split())[:200]
    return "the download left no files"


def _read(name: str, path: Path) -> np.ndarray:
    """Content of an IDX file: uint8, a header of big-endian 32-bit sizes."""
    packed_md5, content_md5 = FILES[name]
    content = path.read_bytes()
    expected = packed_md5 if path.suffix == ".gz" else content_md5
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise ValueError(f"{path} is damaged: {len(content)} bytes with MD5 {found}, expected MD5 {expected}")
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    dimensions = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=dimensions, offset=4)
    return np.frombuffer(bytearray(content), dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)
