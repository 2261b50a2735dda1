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
        similarity: what the deformable stage maximises.
        linear_similarity: what the linear stages maximise.
        deformation: the deformable transform.
        regularisation: weight of the deformation's smoothness.
        iterations: most iterations on each level of the deformable stage.
        resolution: voxel edge of the finest level of the deformable stage, mm; 0 is the fixed image's own, -1 as fine
            as a million voxels allow.
        work: voxels times iterations of a level on a CPU, where no iterations were asked for; 0 is without limit.
        global_search: whether the deformable stage begins with a search among large displacements.
    """

    title: str
    summary: str
    stages: tuple[str, ...]
    similarity: str
    linear_similarity: str
    deformation: str = "svf"
    regularisation: float = 1.0
    iterations: int = 40
    resolution: float = -1.0
    work: int = 12_000_000
    global_search: bool = False


PRESETS: dict[str, Preset] = {
    "rigid": Preset("Rigid, same modality", "One patient, two images of one kind.", ("rigid",), "cc", "cc"),
    "rigid-multimodal": Preset(
        "Rigid, different modalities",
        "One patient, two kinds of image, as T1 and T2, or CT and MR.",
        ("rigid",), "nmi", "nmi",
    ),
    "affine": Preset("Affine", "Two patients, coarsely: position, size and shear.", ("rigid", "affine"), "nmi", "nmi"),
    "deformable": Preset(
        "Deformable", "Two patients, or one at two times, of one modality: brains and small structures.",
        ("affine", "deformable"), "ssd+lncc", "mind", regularisation=1.5,
    ),
    "deformable-multimodal": Preset(
        "Deformable, different modalities", "Two patients or times, and two kinds of image.",
        ("affine", "deformable"), "mind", "nmi",
    ),
    "lung-ct": Preset(
        "Lung CT", "One chest in two states of breathing, or at two times.",
        ("affine", "deformable"), "ssd+lncc", "nmi", regularisation=2.5, work=24_000_000, global_search=True,
    ),
}  # fmt: skip
