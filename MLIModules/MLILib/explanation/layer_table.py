"""The task "explain-layers": a model's layers with sizes, parameters and receptive fields.

Also which layer is looked at unless one is chosen: the last of those with the coarsest grid, where a network is most
about meaning and still about places.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import BadInput
from ..progress import Progress
from .receptive import receptive_sizes
from .requests import ExplainLayersRequest
from .subject import load, one_output
from .tracing import Call, trace


def run(request: ExplainLayersRequest, progress: Progress) -> dict[str, Any]:
    """List the layers; what the result has stands in :class:`MLILib.explanation.requests.ExplainLayersRequest`.

    Raises:
        BadInput: the model cannot be used, or does not take an image of this size.
    """
    progress.stage("Loading the model")
    model = load(request.model, request.trust)
    bundle = model.bundle
    shape = list(bundle.metadata["network_data_format"]["inputs"].get("image", {}).get("spatial_shape", []))
    if request.crop and bundle.kind != "segmentation":
        raise BadInput(
            f"The model {bundle.name} looks at an image as a whole.", "It names images.", "Leave out --crop."
        )
    tiling = model.tiling_for(request.crop, 0.5) if request.crop else model.tiling
    if tiling is not None and all(n > 0 for n in tiling.roi):
        shape = list(tiling.roi)
    if len(shape) != bundle.dimensions or not all(isinstance(n, int) and n > 0 for n in shape):
        raise BadInput(
            f"The model {bundle.name} does not say what size of image it takes.",
            "",
            "Give one with --crop." if bundle.kind == "segmentation" else "Ask its authors for complete metadata.",
        )
    device = torch.device("cpu")
    network = one_output(model.network(device), model.channels, shape)
    image = torch.zeros((1, model.channels, *shape))
    progress.stage("Looking at the layers")
    calls = trace(network, image).calls
    kinds = dict(network.named_modules())
    progress.fraction(0.3)
    fields = receptive_sizes(network, image) if request.field else {}
    usable = [call for call in calls if _has_places(call, calls, image)]
    rows = []
    for name in dict.fromkeys(call.module for call in calls if call.module):
        mine = [call for call in calls if call.module == name]
        given = mine[-1].shape
        rows.append(
            {
                "name": name,
                "kind": type(kinds[name]).__name__,
                "parameters": sum(p.numel() for p in kinds[name].parameters()),
                "shape": list(given[1:]) if given is not None else None,
                "calls": len(mine),
                "places": any(call.module == name for call in usable),
                "depth": name.count("."),
                "field": list(fields[name]) if name in fields else None,
            }
        )
    progress.fraction(1.0)
    output = calls[-1].shape
    result = {
        "layers": rows,
        "default": default_layer(network, image),
        "parameters": sum(p.numel() for p in network.parameters()),
        "input": list(image.shape[1:]),
        "output": list(output[1:]) if output is not None else None,
        "field": list(fields[""]) if "" in fields else None,
        "statistics": sorted({n for n, m in kinds.items() if isinstance(m, _STATISTICS)}),
        "model": {"name": bundle.name, "sha256": bundle.sha256},
    }
    return {**result, "text": table(result)}


#: Normalisations that look at the whole image.
_STATISTICS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm)

_defaults: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], str]] = weakref.WeakKeyDictionary()


def default_layer(network: nn.Module, image: torch.Tensor) -> str:
    """The last layer with the coarsest grid of several voxels; "" where none has a grid. Remembered.

    Args:
        network: in evaluation mode; run once.
        image: (1, C, *shape): only its shape matters.
    """
    known = _defaults.setdefault(network, {})
    if tuple(image.shape) not in known:
        calls = trace(network, image).calls
        usable = [call for call in calls if _has_places(call, calls, image)]
        coarse = min((_voxels(call) for call in usable), default=0)
        names = [call.module for call in usable if _voxels(call) == coarse]
        known[tuple(image.shape)] = names[-1] if names else ""
    return known[tuple(image.shape)]


def _voxels(call: Call) -> int:
    return math.prod(call.shape[2:]) if call.shape is not None else 0


def _has_places(call: Call, calls: Sequence[Call], image: torch.Tensor) -> bool:
    """Whether it runs once, depends on the image, and gives several voxels."""
    once = call.module != "" and sum(other.module == call.module for other in calls) == 1
    grid = call.shape is not None and len(call.shape) == image.ndim
    return once and grid and call.output is not None and _voxels(call) > 1


def table(result: dict[str, Any]) -> str:
    """The layers as lines for a terminal."""
    rows = [("LAYER", "KIND", "PARAMETERS", "OUTPUT", "FIELD")]
    for layer in result["layers"]:
        mark = " *" if layer["name"] == result["default"] else ""
        rows.append(
            (
                layer["name"] + mark,
                layer["kind"],
                f"{layer['parameters']:,}",
                " x ".join(map(str, layer["shape"])) if layer["shape"] else "",
                " x ".join(map(str, layer["field"])) if layer["field"] else "",
            )
        )
    wide = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}  {d:>{wide[3]}}  {e:>{wide[4]}}" for a, b, c, d, e in rows
    ]
    lines.append(
        f"\n{result['parameters']:,} parameters; an image of {' x '.join(map(str, result['input']))} (channels, x, y, "
        "z) went through. * is looked at unless another layer is chosen."
    )
    if result["statistics"]:
        lines.append(
            "FIELD leaves aside that normalisations over the whole image let each voxel depend a little on every other."
        )
    return "\n".join(line.rstrip() for line in lines)
