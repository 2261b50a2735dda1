"""The models at hand as a chooser shows them: title, purpose, channels, labels and card, read without running anything.

Reads the bundles' JSON only; checksums and weights are the worker's business, so that a widget opens at once.
"""

from __future__ import annotations

import dataclasses
import html
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from MLILib import folders
from MLILib.bundles import Bundle
from MLILib.errors import MLIError

#: All that a model can be for.
TASKS = ("segmentation", "registration", "classification", "regression", "anomaly")


@dataclasses.dataclass(frozen=True)
class Model:
    """What a reader wants to know of a model.

    Attributes:
        name: what the worker calls it.
        shipped: whether it came with the extension.
        bundle: its metadata.
    """

    name: str
    shipped: bool
    bundle: Bundle

    @property
    def title(self) -> str:
        """Its name for a reader."""
        return self.bundle.title if self.shipped else _("{title} (yours)").format(title=self.bundle.title)

    @property
    def task(self) -> str:
        """What it is for, see :attr:`MLILib.bundles.Bundle.kind`; a bundle that does not tell is for segmentation."""
        return self.bundle.kind if self.bundle.metadata.get("task") else "segmentation"

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the images it needs, in order."""
        return self.bundle.channels


def known(task: str | tuple[str, ...] = "segmentation") -> dict[str, Model]:
    """The shipped and the imported models of a task, by name; one that cannot be read is left out, and logged.

    Args:
        task: "segmentation", "registration", "classification" ..., or several of them; a bundle that does not say what
            it is for is for segmentation.
    """
    tasks = (task,) if isinstance(task, str) else task
    found: dict[str, Model] = {}
    for home in (folders.shipped(), folders.user()):
        if home is None or not home.is_dir():
            continue
        for folder in sorted(home.iterdir()):
            if folder.name not in found and (folder / "configs" / "metadata.json").is_file():
                try:
                    model = _read(folder, shipped=home == folders.shipped())
                    if model.task not in tasks:
                        continue
                    found[folder.name] = model
                    if model.task == "segmentation":
                        model.bundle.labels  # noqa: B018  incomplete metadata shows here
                except (MLIError, ValueError, KeyError, TypeError, OSError) as error:
                    found.pop(folder.name, None)
                    logging.warning("The model in %s cannot be read: %s", folder, error)
    return found


def labels_of(model: str) -> list[dict[str, Any]]:
    """The labels of a model for segmentation, as :func:`MLISlicerLib.nodes.fill_segmentation` takes them; else none."""
    found = known().get(model)
    return [] if found is None else [dataclasses.asdict(label) for label in found.bundle.labels]


def _read(folder: Path, *, shipped: bool) -> Model:
    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return Model(folder.name, shipped, Bundle(folder.name, folder, metadata, "", shipped, {}))


def summary(model: Model) -> str:
    """A few lines of HTML: what it does, which images it needs, its labels in their colours, the licence."""
    metadata = model.bundle.metadata
    lines = [html.escape(str(metadata.get("description", "")))]
    if model.task == "segmentation":
        labels = "&nbsp; ".join(
            f"<span style='color:{hex_of(label.color)}'>&#9632;</span>&nbsp;{html.escape(label.name)}"
            for label in model.bundle.labels
        )
        lines.append(labels)
    elif model.task in ("classification", "regression"):
        lines.append(html.escape(", ".join(model.bundle.output_channels)))
    if model.task != "registration" and len(model.channels) > 1:
        lines.append(_("Needs: {channels}").format(channels=html.escape(", ".join(model.channels))))
    intended = str(metadata.get("intended_use", ""))
    if intended:
        lines.append(f"<i>{html.escape(intended)}</i>")
    return "".join(f"<p style='margin:0 0 3px 0'>{line}</p>" for line in lines if line)


def hex_of(color: Sequence[float]) -> str:
    """A colour (red, green, blue, 0 to 1) as HTML writes it."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)
