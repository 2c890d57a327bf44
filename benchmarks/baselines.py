"""What the package is measured against: plain loops and plain PyTorch, independent of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageFilter, ImageOps

MEAN = np.array((0.485, 0.456, 0.406))
STD = np.array((0.229, 0.224, 0.225))


def pil_training_sample(
    image_file: Path, mask_file: Path, rng: np.random.Generator, base: int = 513, crop: int = 513
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode, mirror, scale the whole image, pad, crop, blur, normalise: the published order."""
    image = PILImage.open(image_file).convert("RGB")
    mask = PILImage.open(mask_file)
    if rng.random() < 0.5:
        image = image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
        mask = mask.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
    short = int(rng.integers(base // 2, 2 * base, endpoint=True))
    scale = short / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, PILImage.Resampling.BILINEAR)
    mask = mask.resize(size, PILImage.Resampling.NEAREST)
    right, below = max(crop - size[0], 0), max(crop - size[1], 0)
    if right or below:
        image = ImageOps.expand(image, border=(0, 0, right, below), fill=0)
        mask = ImageOps.expand(mask, border=(0, 0, right, below), fill=255)
    left = int(rng.integers(0, image.width - crop, endpoint=True))
    top = int(rng.integers(0, image.height - crop, endpoint=True))
    image = image.crop((left, top, left + crop, top + crop))
    mask = mask.crop((left, top, left + crop, top + crop))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(radius=rng.random()))
    pixels = np.array(image).astype(np.float32)
    pixels /= 255.0
    pixels -= MEAN
    pixels /= STD
    labels = np.array(mask).astype(np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1)).float(), torch.from_numpy(labels).float()


def torchvision_training_sample(
    image_file: Path, mask_file: Path, base: int = 513, crop: int = 513
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same augmentation with torchvision's transforms v2 on uint8 tensors."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2 import functional

    image = decode_image(str(image_file), ImageReadMode.RGB)
    mask = torch.from_numpy(np.array(PILImage.open(mask_file)))[None]
    scale = float(torch.empty(()).uniform_(0.5, 2.0)) * base / min(image.shape[1:])
    size = [round(side * scale) for side in image.shape[1:]]
    image = functional.resize(image, size, antialias=True)
    mask = functional.resize(mask, size, functional.InterpolationMode.NEAREST)
    padding = [0, 0, max(crop - size[1], 0), max(crop - size[0], 0)]
    image, mask = functional.pad(image, padding, fill=0), functional.pad(mask, padding, fill=255)
    top = int(torch.randint(0, image.shape[1] - crop + 1, ()))
    left = int(torch.randint(0, image.shape[2] - crop + 1, ()))
    image = functional.crop(image, top, left, crop, crop)
    mask = functional.crop(mask, top, left, crop, crop)
    flip, blur, sigma = torch.rand(3).tolist()
    if flip < 0.5:
        image, mask = functional.horizontal_flip(image), functional.horizontal_flip(mask)
    if blur < 0.5:
        image = functional.gaussian_blur(image, [7, 7], [0.1 + 0.9 * sigma])
    image = functional.to_dtype(image, torch.float32, scale=True)
    return functional.normalize(image, MEAN.tolist(), STD.tolist()), mask[0].long()
