"""What can be asked of MLI: one frozen request a task, and the function that runs it.

A request is plain values (see :mod:`MLILib.settings`); a result is a dict of plain values. Imports no torch: the module
named by `runner` is imported when the task is run.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, ClassVar

from .anomaly.normative_requests import NormativeRequest, TrainNormativeRequest
from .anomaly.requests import AnomalyRequest, TrainAnomalyRequest
from .classical.requests import ClassicalRequest
from .classification.requests import TrainClassificationRequest
from .cohort.requests import BatchSegmentRequest, CompareRequest
from .errors import BadInput
from .explanation.requests import AttackRequest, ExplainCheckRequest, ExplainLayersRequest, ExplainRequest
from .fusion.requests import AtlasesCheckRequest, FuseRequest, TrainDeepStapleRequest
from .progress import Progress
from .registration.requests import RegisterRequest, TemplateRequest, TrainRegistrationRequest
from .segmentation.requests import CalibrateRequest, EvaluateRequest, SegmentRequest, TrainSegmentationRequest
from .settings import Request, device_setting, setting, setting_of, trust_setting


@dataclasses.dataclass(frozen=True)
class ModelsListRequest(Request):
    """List the shipped and the imported models."""

    task: ClassVar[str] = "models-list"
    words: ClassVar[tuple[str, ...]] = ("models", "list")
    runner: ClassVar[str] = "MLILib.catalogue:run_list"
    summary: ClassVar[str] = "the models at hand"


@dataclasses.dataclass(frozen=True)
class ModelsInfoRequest(Request):
    """Show a model's card, labels, size and checksum."""

    task: ClassVar[str] = "models-info"
    words: ClassVar[tuple[str, ...]] = ("models", "info")
    runner: ClassVar[str] = "MLILib.catalogue:run_info"
    summary: ClassVar[str] = "a model's card"

    model: str = setting_of(CalibrateRequest, "model")


@dataclasses.dataclass(frozen=True)
class ModelsImportRequest(Request):
    """Check a bundle and copy it to the user's models."""

    task: ClassVar[str] = "models-import"
    words: ClassVar[tuple[str, ...]] = ("models", "import")
    runner: ClassVar[str] = "MLILib.catalogue:run_import"
    summary: ClassVar[str] = "add a bundle (folder or zip) to your models"

    source: str = setting(help="Folder or zip of a MONAI bundle.", kind="input", positional=True, metavar="BUNDLE")
    name: str = setting("", "Name to import it under; by default the folder's.", metavar="NAME")
    replace: bool = setting(False, "Replace a model of yours with the same name.")
    trust: tuple[str, ...] = trust_setting()


@dataclasses.dataclass(frozen=True)
class ModelsRemoveRequest(Request):
    """Remove a model that was imported; shipped models stay."""

    task: ClassVar[str] = "models-remove"
    words: ClassVar[tuple[str, ...]] = ("models", "remove")
    runner: ClassVar[str] = "MLILib.catalogue:run_remove"
    summary: ClassVar[str] = "remove a model of yours"

    model: str = setting(help="Name of the model.", positional=True, metavar="NAME")


@dataclasses.dataclass(frozen=True)
class CheckRequest(Request):
    """Look at this computer: Python, torch, device, memory, disk, packages, models."""

    task: ClassVar[str] = "check"
    words: ClassVar[tuple[str, ...]] = ("check",)
    runner: ClassVar[str] = "MLILib.selfcheck"
    summary: ClassVar[str] = "is this computer ready?"

    device: str = device_setting()


REQUESTS: tuple[type[Request], ...] = (
    SegmentRequest,
    ClassicalRequest,
    TrainSegmentationRequest,
    EvaluateRequest,
    CalibrateRequest,
    BatchSegmentRequest,
    CompareRequest,
    RegisterRequest,
    TemplateRequest,
    TrainRegistrationRequest,
    FuseRequest,
    AtlasesCheckRequest,
    TrainDeepStapleRequest,
    AnomalyRequest,
    TrainNormativeRequest,
    NormativeRequest,
    TrainAnomalyRequest,
    ExplainRequest,
    ExplainLayersRequest,
    ExplainCheckRequest,
    AttackRequest,
    TrainClassificationRequest,
    ModelsListRequest,
    ModelsInfoRequest,
    ModelsImportRequest,
    ModelsRemoveRequest,
    CheckRequest,
)


def request_class(task: str) -> type[Request]:
    """The request of the task called `task`."""
    for cls in REQUESTS:
        if cls.task == task:
            return cls
    raise BadInput(f"There is no task {task!r}.", "", f"The tasks are: {', '.join(c.task for c in REQUESTS)}.")


def run(request: Request, progress: Progress | None = None) -> dict[str, Any]:
    """Check the request, import what it needs and run it.

    Returns:
        The task's result, plain values that JSON can hold.

    Raises:
        MLIError: what a user can act on.
    """
    request.check()
    module, _, function = request.runner.partition(":")
    result: dict[str, Any] = getattr(importlib.import_module(module), function or "run")(
        request, progress if progress is not None else Progress()
    )
    return result
