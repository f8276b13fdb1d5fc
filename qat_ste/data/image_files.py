"""Image files in the usual folders, ``root/train/<class>/*`` and ``root/val/<class>/*``."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

EXTENSIONS = (".gif", ".jfif", ".jpeg", ".jpg", ".png", ".webp")  # of the formats that decode_image reads
OF_SYSTEMS = ("desktop.ini", "thumbs.db")  # put there by the operating system
MOST_ENDINGS = 5  # named in a warning

log = logging.getLogger(__name__)


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
        """Decodes an image: RGB, uint8, 3 x height x width. Of an animated GIF it takes the first frame.

        Raises:
            BrokenImageError: the file is missing or not an image of 8 bits per channel.
        """
        from torchvision.io import ImageReadMode, decode_image  # costs half a second

        path = self.path(index)
        try:
            image = decode_image(path, ImageReadMode.RGB)
        except RuntimeError as error:  # message: "function, file.cpp:line, reason"
            raise BrokenImageError(path, re.sub(r"^\w+, \S+:\d+, ", "", " ".join(str(error).split()))) from None
        if image.ndim == 4:
            image = image[0]
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise BrokenImageError(path, f"{image.ndim} dimensions of {image.dtype}, expected 3 of torch.uint8")
        return image


def find_images(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """Finds the training and the test images of a folder; warns of other files in the folders of classes.

    Raises:
        FileNotFoundError: a folder or its images are missing.
        ValueError: the splits have different classes.
    """
    others = Counter[str]()
    train, val = (_find_split(root, split, others) for split in ("train", "val"))
    if others:
        endings = ", ".join(f"{number} {ending}" for ending, number in others.most_common(MOST_ENDINGS))
        more = ", …" if len(others) > MOST_ENDINGS else ""
        log.warning("%s: %d entries in the folders of classes are not used: %s%s", root, others.total(), endings, more)
    for split, other in ((train, val), (val, train)):
        missing = sorted(set(split.classes) - set(other.classes))
        if missing:
            examples = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise ValueError(
                f"{other.folder} has no images of {len(missing)} of the {len(split.classes)} classes of "
                f"{split.folder}: {examples}"
            )
    return train, val


def _find_split(root: Path, split: str, others: Counter[str]) -> ImageFiles:
    """The images of one split; counts the other entries of its classes by ending."""
    folder = root / split
    if not folder.is_dir():
        raise FileNotFoundError(f"{root} has no folder {split}: expected {split}/<class>/*{'|*'.join(EXTENSIONS)}")
    classes: list[str] = []
    names: list[bytes] = []
    labels: list[int] = []
    for name in sorted(entry.name for entry in _visible(folder) if entry.is_dir()):
        images = []
        for entry in _visible(folder / name):
            if not entry.is_file():
                others["folders"] += 1
            elif entry.name.lower().endswith(EXTENSIONS):
                images.append(entry.name)
            elif entry.name.lower() not in OF_SYSTEMS:
                others[Path(entry.name).suffix.lower() or "without an ending"] += 1
        if images:
            images.sort()
            names += [os.fsencode(f"{name}/{image}") for image in images]
            labels += [len(classes)] * len(images)
            classes.append(name)
    if not names:
        raise FileNotFoundError(f"{folder} has no images: expected {split}/<class>/*{'|*'.join(EXTENSIONS)}")
    return ImageFiles(folder, classes, np.array(names), torch.tensor(labels))


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden; scandir avoids a stat call per file."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]
