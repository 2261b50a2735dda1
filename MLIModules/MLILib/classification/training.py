"""Training a classifier: cross-entropy on small moved copies of grey images, into a MONAI bundle.

A residual network (He 2016) with the stem that suits images of a few dozen pixels; AdamW with a warm-up and a cosine
schedule. A part of the training images chooses the epoch; the file's validation images are measured once, at the end.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from .. import charts, checkpoint
from ..bundle_parts import instantiate, read_words
from ..descent import copied, learning_rate, set_rate
from ..device import resolve
from ..errors import BadInput
from ..progress import Progress
from . import bundle, medmnist
from .figures import Figures, measure
from .medmnist import Part
from .requests import TrainClassificationRequest
from .trained import Trained

_WEIGHT_DECAY = 0.05
#: Largest shift (share of the image), turn (radians) and change of size of a copy.
_SHIFT, _TURN, _ZOOM = 0.08, 0.15, 0.1


def run(request: TrainClassificationRequest, progress: Progress) -> dict[str, Any]:
    """Train as `request` says; see :class:`MLILib.classification.requests.TrainClassificationRequest`.

    Raises:
        BadInput: a file that cannot be used, or an output folder that already holds something.
    """
    charts.require_matplotlib()
    words = read_words(request.describe)  # a mistake in it is told now, not after the training
    folder = Path(request.output)
    checkpoint.require_fresh(folder, folder / "none", resume=False)
    progress.stage("Reading images")
    known = medmnist.read(request.dataset, "train")
    if known is None:
        raise BadInput(f"{request.dataset} has no train_images and train_labels.", "", "Give a MedMNIST-style file.")
    test = medmnist.read(request.dataset, "val")
    classes = int(known.labels.max()) + 1
    if classes < 2 or len(np.unique(known.labels)) < classes:
        raise BadInput(
            f"The classes of {request.dataset} are {np.unique(known.labels).tolist()}.",
            "There must be two or more, numbered from 0 without a gap.",
            "Number the classes anew.",
        )
    if test is not None and (test.labels.max() >= classes or test.images.shape[1:] != known.images.shape[1:]):
        raise BadInput(f"The val_images of {request.dataset} are not like its train_images.", "", "Check the file.")
    if request.threads:
        torch.set_num_threads(request.threads)
    device = resolve(request.device)
    training, choosing = medmnist.split(known, request.choose, request.seed)
    if request.shuffle:
        order = np.random.default_rng(request.seed).permutation(len(training))
        training = Part(training.images, training.labels[order])
    trained = fit(request, training, choosing, classes, device, progress)
    progress.stage("Writing the bundle")
    return bundle.write(folder, trained, request, words, test, progress)


def fit(
    request: TrainClassificationRequest,
    training: Part,
    choosing: Part,
    classes: int,
    device: torch.device,
    progress: Progress,
) -> Trained:
    """Train a network; the epoch with the lowest cross-entropy on the images that choose it is kept.

    (The area under the ROC curve ignores where the scores are cut: chosen by it, a network can be inaccurate.)
    With `request.shuffle` the last epoch is kept: what counts is that the labels were learned by heart.
    """
    started = time.monotonic()
    torch.manual_seed(request.seed)
    definition = network_definition(classes, request.filters)
    network = instantiate(definition).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=request.learning_rate, weight_decay=_WEIGHT_DECAY)
    images, labels = as_tensor(training.images), torch.as_tensor(training.labels)
    held = as_tensor(choosing.images)
    generator = torch.Generator().manual_seed(request.seed)
    steps = max(1, len(images) // request.batch)
    best: tuple[float, int, Figures, dict[str, torch.Tensor]] | None = None
    history: list[dict[str, float]] = []
    progress.stage("Training")
    for epoch in range(request.epochs):
        network.train()
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for step in range(steps):
            some = order[step * request.batch : (step + 1) * request.batch]
            set_rate(optimizer, learning_rate(epoch * steps + step, request.epochs * steps, request.learning_rate))
            batch = images[some] if request.shuffle else moved(images[some], generator)
            loss = functional.cross_entropy(network(batch.to(device)), labels[some].to(device))
            if not torch.isfinite(loss):
                raise BadInput(
                    f"The training diverged in epoch {epoch + 1}.",
                    "The learning rate is too high.",
                    "Lower --learning-rate.",
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
            progress.fraction((epoch + (step + 1) / steps) / request.epochs)
        logits = scores(network, held, device)
        found = measure(logits, choosing.labels)
        unsure = float(functional.cross_entropy(torch.from_numpy(logits), torch.as_tensor(choosing.labels)))
        row = {"epoch": epoch + 1, "loss": total / steps, "choosing_loss": unsure}
        row |= {"auc": found.auc, "accuracy": found.accuracy}
        history.append(row | {"seconds": time.monotonic() - started})
        progress.message(
            f"epoch {epoch + 1}/{request.epochs}  loss {row['loss']:.4f}, of the choosing images {unsure:.4f}  "
            f"AUC {found.auc:.4f}  accuracy {found.accuracy:.4f}  {history[-1]['seconds']:.0f} s"
        )
        better = best is None or unsure < best[0] or request.shuffle
        if better:
            best = (unsure, epoch + 1, found, copied(network))
    assert best is not None
    network = copy.deepcopy(network).cpu()
    network.load_state_dict(best[3])
    size = (training.images.shape[2], training.images.shape[1])
    spent = time.monotonic() - started
    counts = (len(training), len(choosing))
    return Trained(
        definition, network.eval(), size, classes, best[1], best[2], history, counts, spent, str(device)
    )  # fmt: skip


def network_definition(classes: int, filters: int) -> dict[str, Any]:
    """A residual network of four stages, for small images: its first layer keeps the size, and nothing is pooled."""
    return {
        "_target_": "monai.networks.nets.ResNet",
        "block": "basic",
        "layers": [1, 1, 1, 1],
        "block_inplanes": [filters, 2 * filters, 4 * filters, 8 * filters],
        "spatial_dims": 2,
        "n_input_channels": 1,
        "conv1_t_size": 3,
        "conv1_t_stride": 1,
        "no_max_pool": True,
        "num_classes": classes,
    }


def as_tensor(images: np.ndarray) -> torch.Tensor:
    """(N, rows, columns) as the network sees them, (N, 1, x, y): each with mean 0 and standard deviation 1."""
    values = torch.as_tensor(images.astype(np.float32)).transpose(1, 2)[:, None]
    mean = values.mean((1, 2, 3), keepdim=True)
    deviation = values.std((1, 2, 3), keepdim=True, correction=0)
    return (values - mean) / torch.where(deviation == 0, 1.0, deviation)


def moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Copies (N, 1, x, y), each shifted, turned and resized a little at random; the border goes on outside."""

    def drawn(limit: float) -> torch.Tensor:
        return limit * (2 * torch.rand(len(images), generator=generator) - 1)

    turn, zoom = drawn(_TURN), 1 + drawn(_ZOOM)
    matrix = torch.stack(
        [
            torch.stack([zoom * turn.cos(), -zoom * turn.sin(), 2 * drawn(_SHIFT)], 1),
            torch.stack([zoom * turn.sin(), zoom * turn.cos(), 2 * drawn(_SHIFT)], 1),
        ],
        1,
    )
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def scores(network: torch.nn.Module, images: torch.Tensor, device: torch.device) -> np.ndarray:
    """(N, classes) logits; the network is left in evaluation mode."""
    network.eval()
    return torch.cat([network(part.to(device)).cpu() for part in images.split(256)]).numpy()
