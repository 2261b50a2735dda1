"""Settings that go together, by what is registered. Imports nothing: a widget fills its panel from it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Preset:
    """What a kind of pair wants.

    Attributes:
        title: for a reader.
        summary: what it is for, a sentence.
        stages: degrees of freedom in turn.
        similarity: what is maximised.
        deformation: the deformable transform.
        regularisation: weight of the deformation's smoothness.
        iterations: most iterations on each level of the deformable stage.
        resolution: voxel edge of the finest level of the deformable stage, mm; 0 is the fixed image's own.
    """

    title: str
    summary: str
    stages: tuple[str, ...]
    similarity: str
    deformation: str = "svf"
    regularisation: float = 1.0
    iterations: int = 50
    resolution: float = 0.0


PRESETS: dict[str, Preset] = {
    "rigid": Preset("Rigid, same modality", "One patient, two images of one kind.", ("rigid",), "lncc"),
    "rigid-multimodal": Preset(
        "Rigid, different modalities", "One patient, two kinds of image, as T1 and T2, or CT and MR.", ("rigid",), "nmi"
    ),
    "affine": Preset("Affine", "Two patients, coarsely: position, size and shear.", ("rigid", "affine"), "nmi"),
    "deformable": Preset(
        "Deformable", "Two patients, or one at two times: brains and small structures.",
        ("rigid", "affine", "deformable"), "mind",
    ),
    "lung-ct": Preset(
        "Lung CT", "One chest in two states of breathing, or at two times.", ("affine", "deformable"), "mind"
    ),
}  # fmt: skip
