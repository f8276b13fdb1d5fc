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
    """A file that cannot be read as an image; says which, why and what to do."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} is no readable image ({self.reason}): mend or remove it, or dataset.on_error=skip"


@dataclass(frozen=True)
class ImageFiles:
    """The images of one split in sorted order; a label is the place of the class in sorted order."""

    folder: Path
    classes: list[str]
    names: np.ndarray  # "class/file" as bytes: a list of str would be copied into each worker bit by bit
    labels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"\n".join(self.names.tolist())).hexdigest()[:16]

    def path(self, index: int) -> str:
        return f"{self.folder}/{os.fsdecode(self.names[index])}"

    def read(self, index: int) -> Tensor:
        """RGB, uint8, 3 x height x width.

        Raises:
            BrokenImageError: the file is missing or is no image of 8 bits a channel.
        """
        from torchvision.io import ImageReadMode, decode_image  # half a second, of which a run without files has no use

        path = self.path(index)
        try:
            image = decode_image(path, ImageReadMode.RGB)
        except RuntimeError as error:  # "function, file.cpp:line, reason"
            raise BrokenImageError(path, re.sub(r"^\w+, \S+:\d+, ", "", " ".join(str(error).split()))) from None
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise BrokenImageError(path, f"{image.ndim} dimensions of {image.dtype} where 3 of torch.uint8 are wanted")
        return image


def find_images(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """Training and test images below ``root``.

    Raises:
        FileNotFoundError: a folder or its images are missing.
        ValueError: the two splits have not the same classes.
    """
    train, val = (_find_split(root, split) for split in ("train", "val"))
    for one, other in ((train, val), (val, train)):
        missing = sorted(set(one.classes) - set(other.classes))
        if missing:
            some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise ValueError(
                f"{other.folder} has no images of {len(missing)} of the {len(one.classes)} classes of {one.folder}: "
                f"{some}"
            )
    return train, val


def _find_split(root: Path, split: str) -> ImageFiles:
    folder = root / split
    if not folder.is_dir():
        raise FileNotFoundError(f"{root} has no folder {split}: wanted are {split}/<class>/*{'|*'.join(EXTENSIONS)}")
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
        raise FileNotFoundError(f"{folder} holds no images: wanted are {split}/<class>/*{'|*'.join(EXTENSIONS)}")
    return ImageFiles(folder, classes, np.array(names), torch.tensor(labels))


def _sorted_names(folder: Path, folders: bool = False) -> list[str]:
    """Files or folders that are not hidden; scandir spares a stat for each of a million files."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and (entry.is_dir() if folders else entry.is_file())
        )
