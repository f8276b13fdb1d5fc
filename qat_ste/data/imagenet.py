"""ImageNet, or any image folder with its preprocessing."""

from __future__ import annotations

from pathlib import Path

from qat_ste.data.image_folder import ImageFolderDataset


def imagenet(
    root: str | Path,
    image_size: int = 224,
    workers: int | None = None,
    on_error: str = "stop",
    cache: str | Path | None = None,
) -> ImageFolderDataset:
    """Normalizes and crops as is usual for ImageNet; test images are resized to 256/224 of ``image_size``.

    Source: O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 115, 2015.

    Args and Raises: as ``ImageFolderDataset``.
    """
    return ImageFolderDataset(
        root,
        image_size,
        resize=round(image_size * 256 / 224),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        workers=workers,
        on_error=on_error,
        cache=cache,
    )
