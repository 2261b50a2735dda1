"""What a network in training predicts, as a small picture: a validation case, its true labels, and the prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..files import replace_file
from ..labels import PALETTE

NAME = "sample.png"
#: How much of the image shows through the labels.
_SEEN_THROUGH = 0.5
#: Height of each of the three parts, and the gap between them, pixels.
_HEIGHT, _GAP = 200, 6


def draw(image: torch.Tensor, truth: torch.Tensor, found: torch.Tensor, path: Path) -> None:
    """Draw the plane that shows most of the true labels: the image, with the truth over it, with the prediction.

    Args:
        image: (channel, x, y) or (channel, x, y, z), as the network gets it; the first channel is shown.
        truth, found: labels of the same shape without channels.
        path: of the PNG file, replaced in one step.
    """
    grey, true, ours = (np.asarray(one.cpu()) for one in (image[0], truth, found))
    if grey.ndim == 3:
        counts = (true > 0).sum(axis=(0, 1))
        k = int(counts.argmax()) if counts.any() else grey.shape[2] // 2
        grey, true, ours = grey[..., k], true[..., k], ours[..., k]
    low, high = np.quantile(grey, [0.01, 0.99])
    shade = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    paper = np.repeat((255 * shade)[..., None], 3, axis=2)
    parts = [paper, _painted(paper, true), _painted(paper, ours)]
    size = (max(1, round(_HEIGHT * grey.shape[0] / grey.shape[1])), _HEIGHT)
    whole = Image.new("RGB", (3 * size[0] + 2 * _GAP, _HEIGHT), (255, 255, 255))
    for number, part in enumerate(parts):
        # x to the right and y up, as RAS slices are shown from below
        shown = Image.fromarray(part.astype(np.uint8).transpose(1, 0, 2)[::-1])
        whole.paste(shown.resize(size, Image.Resampling.NEAREST), (number * (size[0] + _GAP), 0))
    replace_file(path, lambda partial: whole.save(partial, format="PNG"))


def _painted(paper: np.ndarray, labels: np.ndarray) -> np.ndarray:
    out = paper.copy()
    for value in np.unique(labels[labels > 0]):
        where = labels == value
        colour = np.array(PALETTE[(int(value) - 1) % len(PALETTE)])
        out[where] = _SEEN_THROUGH * paper[where] + (1 - _SEEN_THROUGH) * colour
    return out
