"""What can be asked of cohorts: the requests of batch segment and compare. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..errors import BadInput
from ..segmentation.requests import EvaluateRequest, SegmentRequest, TrainSegmentationRequest
from ..settings import Request, device_setting, setting, setting_of, trust_setting

#: What label maps of a cohort are written as; the last keeps names and colours.
ENDINGS = (".nii.gz", ".nrrd", ".seg.nrrd")


@dataclasses.dataclass(frozen=True)
class BatchSegmentRequest(Request):
    """Segment every case of a cohort; what is done is left as it is, and a bad case stops none of the others."""

    task: ClassVar[str] = "batch-segment"
    words: ClassVar[tuple[str, ...]] = ("batch", "segment")
    runner: ClassVar[str] = "MLILib.cohort.batch"
    summary: ClassVar[str] = "segment a whole cohort"

    cohort: str = setting(
        help="Images: a folder of files, or of folders with a DICOM series each; a .csv with a column image (or "
        "image_1, image_2 ... for several channels) and, if wanted, case; or a Decathlon-format dataset.json.",
        kind="input",
        positional=True,
        metavar="FOLDER|TABLE.csv|DATASET.json",
    )
    model: tuple[str, ...] = setting_of(SegmentRequest, "model")
    output: str = setting(
        help="Folder for a label map a case and the table cohort.csv; made where it does not exist.",
        short="o",
        kind="output_folder",
        metavar="OUT",
    )
    ending: str = setting(".nii.gz", "What label maps are written as.", choices=ENDINGS)
    workers: int = setting(
        1,
        "Processes that segment at the same time on this computer; each holds the model.",
        minimum=1,
        maximum=256,
        metavar="N",
    )
    scheduler: str = setting(
        "",
        "Address of a Dask scheduler (tcp://host:8786) whose workers segment in place of this computer; they need MLI "
        "and the same file names.",
        metavar="ADDRESS",
    )
    overwrite: bool = setting(
        False, "Make label maps again that lie there already, but were made of other images, models or settings."
    )
    device: str = device_setting()
    tta: bool = setting_of(SegmentRequest, "tta")
    ensemble: str = setting_of(SegmentRequest, "ensemble")
    keep_largest: bool = setting_of(SegmentRequest, "keep_largest")
    tile: tuple[int, ...] = setting_of(SegmentRequest, "tile")
    overlap: float = setting_of(SegmentRequest, "overlap")
    trust: tuple[str, ...] = trust_setting()

    def check_task(self) -> None:
        _require_one_place(self.workers, self.scheduler)


@dataclasses.dataclass(frozen=True)
class CompareRequest(Request):
    """Measure several methods on the same cases, with paired tests, box plots and one HTML report."""

    task: ClassVar[str] = "compare"
    words: ClassVar[tuple[str, ...]] = ("compare",)
    runner: ClassVar[str] = "MLILib.cohort.comparison"
    summary: ClassVar[str] = "several methods on the same cases, with paired tests"

    dataset: str = setting_of(TrainSegmentationRequest, "dataset")
    output: str = setting(
        help="Report to write, .html; all figures go beside it as .csv and .json.",
        short="o",
        kind="output",
        metavar="OUT.html",
    )
    model: tuple[str, ...] = setting(
        (), "Models to compare: names, folders or zips of bundles.", short="m", kind="model", metavar="MODEL"
    )
    predictions: tuple[str, ...] = setting(
        (),
        "Methods of which label maps are there already: folders with a file a case, named as the case is.",
        metavar="NAME=FOLDER",
    )
    fold: int = setting(
        -1,
        "Compare on this fold alone, the one that `mli train segmentation --fold` kept aside; -1 takes every case.",
        minimum=-1,
        maximum=99,
    )
    folds: int = setting_of(TrainSegmentationRequest, "folds")
    split_seed: int = setting(0, "Seed of that split: the training's.", minimum=0, maximum=2**31 - 1)
    keep: str = setting(
        "",
        "Folder to keep each model's label maps in; a second run goes on with those.",
        kind="output_folder",
        metavar="FOLDER",
    )
    workers: int = setting_of(BatchSegmentRequest, "workers")
    scheduler: str = setting_of(BatchSegmentRequest, "scheduler")
    tolerance: float = setting_of(EvaluateRequest, "tolerance")
    device: str = device_setting()
    tta: bool = setting_of(SegmentRequest, "tta")
    trust: tuple[str, ...] = trust_setting()

    def check_task(self) -> None:
        _require_one_place(self.workers, self.scheduler)
        if self.scheduler and not self.keep:
            raise BadInput(
                "A cluster needs a folder for the label maps.",
                "Its workers write them where this computer reads them.",
                "Give --keep a folder that all of them see.",
            )
        if not self.output.lower().endswith(".html"):
            raise BadInput(f"{self.output} is no name for the report.", "It is an HTML file.", "End it in .html.")
        if len(self.model) + len(self.predictions) < 2:
            raise BadInput(
                "There is nothing to compare with.",
                "A comparison takes two methods or more.",
                "Give several with -m, or label maps of another with --predictions.",
            )
        self.require_distinct()


def _require_one_place(workers: int, scheduler: str) -> None:
    if scheduler and workers > 1:
        raise BadInput(
            "Both workers and a scheduler were given.",
            "The scheduler has workers of its own.",
            "Leave out --workers or --scheduler.",
        )
