"""Ways in which a bundle's transforms may differ, each a change of its inference.json."""

from __future__ import annotations

from typing import Any

from plain_monai import transforms


def swap_inversion_and_activation(config: dict[str, Any]) -> None:
    after = transforms(config, "postprocessing")
    after[0], after[1] = after[1], after[0]


def invert_labels(config: dict[str, Any]) -> None:
    after = transforms(config, "postprocessing")
    after[1], after[2] = after[2], after[1]
    after[2]["nearest_interp"] = True


def invert_nearest(config: dict[str, Any]) -> None:
    transforms(config, "postprocessing")[1]["nearest_interp"] = True


def leave(config: dict[str, Any]) -> None:
    del config


def crop(config: dict[str, Any]) -> None:
    transforms(config, "preprocessing").append(
        {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "margin": 2,
         "select_fn": "$lambda x: x > 0.4", "allow_smaller": True}
    )  # fmt: skip


def pad(config: dict[str, Any]) -> None:
    transforms(config, "preprocessing").append({"_target_": "SpatialPadd", "keys": "image", "spatial_size": [44] * 3})


def turn(config: dict[str, Any]) -> None:
    transforms(config, "preprocessing").extend(
        [
            {"_target_": "Flipd", "keys": "image", "spatial_axis": 1},
            {"_target_": "Rotate90d", "keys": "image", "k": 3, "spatial_axes": [0, 2]},
        ]
    )


def resample_to_world(config: dict[str, Any]) -> None:
    transforms(config, "preprocessing")[3]["diagonal"] = True


WAYS_BACK = (leave, swap_inversion_and_activation, invert_labels, invert_nearest)
WAYS_THERE = (leave, crop, pad, turn, resample_to_world)
