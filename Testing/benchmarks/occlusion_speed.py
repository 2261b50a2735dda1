"""Occlusion of a volume beside captum's, with captum's defaults: time, processor time, peak memory and difference.

Both run in one process, one after the other, on the same network with random weights, so that the numbers can be
compared to rounding. Prints a table::

    python Testing/benchmarks/occlusion_speed.py [--network resnet|unet] [--width 16] [--size 64] [--window 8]
        [--stride 4] [--threads 2] [--json OUT.json]

`resnet` is a ResNet-18 classifier, `unet` a residual U-Net with batch normalisation; `--width 64` is the published
ResNet-18. The score is a class' logit, for the U-Net the sum of a label's logits.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "MLIModules"))

from MLILib.explanation.occlusion import occlusion  # noqa: E402


def network(name: str, width: int) -> nn.Module:
    """A three-dimensional network with random weights and the statistics of an untrained one."""
    from monai.networks import nets

    torch.manual_seed(0)
    widths = [width, 2 * width, 4 * width, 8 * width]
    if name == "resnet":
        made = nets.ResNet("basic", [2, 2, 2, 2], widths, spatial_dims=3, n_input_channels=1, num_classes=2)
    else:
        made = nets.UNet(3, 1, 2, widths, (2, 2, 2), num_res_units=2, norm="batch")
    return made.eval()


def score(output: torch.Tensor) -> torch.Tensor:
    """The logit of class 1, or the sum of label 1's."""
    return output[:, 1].flatten(1).sum(1) if output.ndim > 2 else output[:, 1]


def timed(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """What a run gives, its seconds, those of the processor, and the process' peak memory in GiB after it."""
    wall, processor = time.perf_counter(), time.process_time()
    found = run()
    spent = {"seconds": time.perf_counter() - wall, "processor": time.process_time() - processor}
    return found, spent | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("resnet", "unet"), default="resnet")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--stride", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from captum.attr import Occlusion

    torch.set_num_threads(given.threads)
    net = network(given.network, given.width)
    image = torch.rand(1, 1, *(given.size,) * 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        score(net(image))  # the first run of a network is slower
    window, stride = (1, *(given.window,) * 3), (1, *(given.stride,) * 3)
    ours, our_cost = timed(lambda: occlusion(net, image, score, window=given.window, stride=given.stride))
    print(f"ours: {our_cost['seconds']:.1f} s", flush=True)
    theirs, their_cost = timed(
        lambda: Occlusion(lambda batch: score(net(batch))).attribute(image, window, strides=stride)
    )
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    rows: dict[str, Any] = {"MLILib": our_cost, "captum, its defaults": their_cost}
    print(f"\n{given.network}, width {given.width}, {given.size}^3, window {given.window}, stride {given.stride}, "
          f"{given.threads} threads, {platform.machine()}, torch {torch.__version__}\n")  # fmt: skip
    print(f"{'':22}{'seconds':>10}{'processor':>12}{'peak GiB':>10}")
    for title, cost in rows.items():
        print(f"{title:22}{cost['seconds']:10.1f}{cost['processor']:12.1f}{cost['peak']:10.2f}")
    print(f"\n{their_cost['seconds'] / our_cost['seconds']:.1f} times as fast "
          f"({their_cost['processor'] / our_cost['processor']:.1f} by processor time); "
          f"largest difference {difference:.1e} of the largest value")  # fmt: skip
    if given.json:
        settings = {name: value for name, value in vars(given).items() if name != "json"}
        given.json.write_text(json.dumps({**settings, "difference": difference, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
