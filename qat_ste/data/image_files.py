"""Image files in the usual folders, ``root/train/<class>/*`` and ``root/val/<class>/*``."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

EXTENSIONS = (".jpeg", ".jpg", ".png")


class BrokenImageError(ValueError):
    """A file cannot be read as an image; the message names the file, the reason and the remedy."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} is not a readable image ({self.reason}): repair or remove it, or set dataset.on_error=skip"


@dataclass(frozen=True)
class ImageFiles:
    """The images of one split in sorted order; a label is the index of the class in sorted order."""

    folder: Path
    classes: list[str]
    names: np.ndarray  # "class/file" as bytes: workers would gradually copy a list of str
    labels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"\n".join(self.names.tolist())).hexdigest()[:16]

    def path(self, index: int) -> str:
        return f"{self.folder}/{os.fsdecode(self.names[index])}"

    def read(self, index: int) -> Tensor:
        """Decodes an image: RGB, uint8, 3 x height x width.

        Raises:
            BrokenImageError: the file is missing or not an image of 8 bits per channel.
        """
        from torchvision.io import ImageReadMode, decode_image  # costs half a second

        path = self.path(index)
        try:
            image = decode_image(path, ImageReadMode.RGB)
        except RuntimeError as error:  # message: "function, file.cpp:line, reason"
            raise BrokenImageError(path, re.sub(r"^\w+, \S+:\d+, ", "", " ".join(str(error).split()))) from None
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise BrokenImageError(path, f"{image.ndim} dimensions of {image.dtype}, expected 3 of torch.uint8")
        return image


def find_images(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """Finds the training and the test images of a folder.

    Raises:
        FileNotFoundError: a folder or its images are missing.
        ValueError: the splits have different classes.
    """
    train, val = (_find_split(root, split) for split in ("train", "val"))
    for split, other in ((train, val), (val, train)):
        missing = sorted(set(split.classes) - set(other.classes))
        if missing:
            examples = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise ValueError(
                f"{other.folder} has no images of {len(missing)} of the {len(split.classes)} classes of "
                f"{split.folder}: {examples}"
            )
    return train, val


def _find_split(root: Path, split: str) -> ImageFiles:
    folder = root / split
    if not folder.is_dir():
        raise FileNotFoundError(f"{root} has no folder {split}: expected {split}/<class>/*{'|*'.join(EXTENSIONS)}")
    classes: list[str] = []
    names: list[bytes] = []
    labels: list[int] = []
    for name in _sorted_names(folder, folders=True):
        images = [image for image in _sorted_names(folder / name) if image.lower().endswith(EXTENSIONS)]
        if images:
            names += [os.fsencode(f"{name}/{image}") for image in images]
            labels += [len(classes)] * len(images)
            classes.append(name)
    if not names:
        raise FileNotFoundError(f"{folder} has no images: expected {split}/<class>/*{'|*'.join(EXTENSIONS)}")
    return ImageFiles(folder, classes, np.array(names), torch.tensor(labels))


def _sorted_names(folder: Path, folders: bool = False) -> list[str]:
    """Lists visible files or folders; scandir avoids a stat call per file."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and (entry.is_dir() if folders else entry.is_file())
        )
