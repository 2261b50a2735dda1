"""Atlases in the scene: folders of the subject hierarchy, which volume and segmentation belong together, their labels.

A segmentation belongs to the volume that it was drawn on; where it does not say so, to the one that it lies below, or
beside in a folder of their own, or whose name its own begins with. What is left over is told, not guessed at.
"""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

from MLILib.errors import BadInput

from . import exchange
from .jobs import Steps
from .scene_labels import SceneLabels

#: Name under which a folder of the subject hierarchy keeps an id that outlives the scene's file.
_UID = "MLI.Folder"
#: In place of such an id: every volume and segmentation of the scene.
WHOLE_SCENE = "scene"
#: What no file's name may hold on some system.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


@dataclasses.dataclass(frozen=True)
class SceneAtlas:
    """A volume and the segmentation of it."""

    volume: slicer.vtkMRMLScalarVolumeNode
    segmentation: slicer.vtkMRMLSegmentationNode


@dataclasses.dataclass(frozen=True)
class SceneAtlases:
    """What a folder of the subject hierarchy holds.

    Attributes:
        atlases: in the folder's order.
        notes: a sentence for each volume or segmentation that is no part of an atlas.
    """

    atlases: tuple[SceneAtlas, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> SceneLabels:
        """The labels of all segmentations together."""
        return SceneLabels.of([atlas.segmentation for atlas in self.atlases])


# -- the subject hierarchy


def folders(one: str = "", many: str = "") -> dict[str, str]:
    """The folders that hold atlases, and the whole scene where some lie outside of folders: id and name for a reader.

    A folder of one atlas within a folder of several is that subject's, and not listed.

    Args:
        one, many: how atlases are counted, the second with {count}; by default they are called atlases.
    """
    one, many = one or _("1 atlas"), many or _("{count} atlases")

    def counted(name: str, count: int) -> str:
        return f"{name} ({one if count == 1 else many.format(count=count)})"

    hierarchy = _hierarchy()
    if hierarchy is None:
        return {}
    scene = hierarchy.GetSceneItemID()
    counts = {}
    for item in _children(hierarchy, scene, True):
        if _is_folder(hierarchy, item) and (count := len(_read(hierarchy, item).atlases)):
            counts[item] = count
    found = {}
    for item, count in counts.items():
        if count > 1 or not any(above in counts for above in _above(hierarchy, item)):
            found[_uid_of(hierarchy, item)] = counted(hierarchy.GetItemName(item), count)
    everywhere = _read(hierarchy, scene).atlases
    items = [hierarchy.GetItemByDataNode(atlas.volume) for atlas in everywhere]
    if any(not any(above in counts for above in _above(hierarchy, item)) for item in items):
        found[WHOLE_SCENE] = counted(_("The whole scene"), len(everywhere))
    return found


def name_of(folder: str) -> str:
    """The name of a folder by its id, "" where there is none."""
    hierarchy = _hierarchy()
    if folder == WHOLE_SCENE:
        return _("The whole scene")
    item = hierarchy.GetItemByUID(_UID, folder) if hierarchy is not None and folder else 0
    return str(hierarchy.GetItemName(item)) if item else ""


def read(folder: str, without: Sequence[Any] = ()) -> SceneAtlases:
    """The atlases in a folder, and in folders in it.

    Args:
        folder: its id, from :func:`folders`.
        without: nodes that take no part: the target, its reference, earlier results.
    """
    hierarchy = _hierarchy()
    if hierarchy is None:
        return SceneAtlases()
    item = hierarchy.GetSceneItemID() if folder == WHOLE_SCENE else hierarchy.GetItemByUID(_UID, folder)
    return _read(hierarchy, item, without) if item else SceneAtlases()


def of_pairs(pairs: Iterable[tuple[slicer.vtkMRMLScalarVolumeNode, slicer.vtkMRMLSegmentationNode]]) -> SceneAtlases:
    """Volumes with the segmentations of them, for scripts."""
    return SceneAtlases(tuple(SceneAtlas(volume, segmentation) for volume, segmentation in pairs))


def make_folder(name: str, members: Iterable[slicer.vtkMRMLNode]) -> str:
    """A new folder of the subject hierarchy that holds nodes; its id."""
    hierarchy = _hierarchy()
    item = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), name)
    for node in members:
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), item)
    return _uid_of(hierarchy, item)


def _hierarchy() -> Any:
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)


def _children(hierarchy: Any, item: int, recursive: bool) -> list[int]:
    ids = vtk.vtkIdList()
    hierarchy.GetItemChildren(item, ids, recursive)
    return [ids.GetId(index) for index in range(ids.GetNumberOfIds())]


def _above(hierarchy: Any, item: int) -> list[int]:
    """The items that hold an item, up to the scene."""
    found = []
    while item := hierarchy.GetItemParent(item):
        found.append(item)
    return found


def _is_folder(hierarchy: Any, item: int) -> bool:
    """Whether it is a folder, patient or study: all of them have no node, or the one that shows a folder."""
    node = hierarchy.GetItemDataNode(item)
    if node is None:
        return not hierarchy.IsItemVirtualBranchParent(item) and bool(hierarchy.GetItemLevel(item))
    return bool(node.IsA("vtkMRMLFolderDisplayNode"))


def _uid_of(hierarchy: Any, item: int) -> str:
    uid = hierarchy.GetItemUID(item, _UID)
    if not uid:
        uid = uuid.uuid4().hex
        hierarchy.SetItemUID(item, _UID, uid)
    return str(uid)


def _read(hierarchy: Any, folder: int, without: Sequence[Any] = ()) -> SceneAtlases:
    """Pair what is in a folder and in folders in it; segmentations of what takes no part take none either."""
    volumes: dict[Any, int] = {}
    segmentations: dict[Any, int] = {}
    label_maps = []
    for item in _children(hierarchy, folder, True):
        node = hierarchy.GetItemDataNode(item)
        if node is None or node in without or node.GetScene() is None:
            continue
        if node.GetClassName() == "vtkMRMLScalarVolumeNode":
            volumes[node] = item
        elif node.IsA("vtkMRMLSegmentationNode"):
            if _source_of(node) is None or _source_of(node) not in without:
                segmentations[node] = item
        elif node.IsA("vtkMRMLLabelMapVolumeNode"):
            label_maps.append(node)
    return _paired(hierarchy, folder, volumes, segmentations, label_maps)


def _paired(
    hierarchy: Any,
    folder: int,
    volumes: Mapping[Any, int],
    segmentations: Mapping[Any, int],
    label_maps: Sequence[Any],
) -> SceneAtlases:
    pairs: dict[Any, Any] = {}
    notes = []
    for segmentation in segmentations:
        volume = _volume_of(hierarchy, folder, segmentation, volumes, segmentations)
        if volume is None:
            notes.append(_("{name} has no volume.").format(name=segmentation.GetName()))
        elif not segmentation.GetSegmentation().GetNumberOfSegments():
            notes.append(_("{name} has no segment.").format(name=segmentation.GetName()))
        elif volume in pairs:
            text = _("{volume} has two segmentations: {used} is used, {name} is not.")
            used = pairs[volume].GetName()
            notes.append(text.format(volume=volume.GetName(), used=used, name=segmentation.GetName()))
        else:
            pairs[volume] = segmentation
    alone = [volume for volume in volumes if volume not in pairs]
    notes += [_("{name} has no segmentation.").format(name=volume.GetName()) for volume in alone]
    notes += [_("{name} is a label map: convert it to a segmentation.").format(name=m.GetName()) for m in label_maps]
    return SceneAtlases(tuple(SceneAtlas(v, pairs[v]) for v in volumes if v in pairs), tuple(notes))


def _source_of(segmentation: Any) -> Any:
    """The volume that a segmentation says it was drawn on, or None."""
    return segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())


def _volume_of(
    hierarchy: Any, folder: int, segmentation: Any, volumes: Mapping[Any, int], segmentations: Mapping[Any, int]
) -> Any:
    """The volume that a segmentation belongs to, or None."""
    source = _source_of(segmentation)
    if source is not None:
        return source if source in volumes else None
    above = hierarchy.GetItemParent(segmentations[segmentation])
    below = next((volume for volume, place in volumes.items() if place == above), None)
    if below is not None:
        return below
    beside = [volume for volume, place in volumes.items() if hierarchy.GetItemParent(place) == above]
    rivals = [other for other, place in segmentations.items() if hierarchy.GetItemParent(place) == above]
    if above != folder and len(beside) == 1 and len(rivals) == 1:
        return beside[0]
    name = segmentation.GetName().casefold()
    named = [volume for volume in volumes if _begins(name, volume.GetName().casefold())]
    return max(named, key=lambda volume: len(volume.GetName()), default=None)


def _begins(name: str, start: str) -> bool:
    """Whether a name begins with another as a whole: "brain 1 labels" with "brain 1", not "brain 10"."""
    return bool(start) and name.startswith(start) and not name[len(start) : len(start) + 1].isalnum()


# -- what the worker gets


def write(atlases: SceneAtlases, folder: Path, files: dict[Path, Any], title: str) -> Steps:
    """Write atlases as a Decathlon-format data set; `files` learns which node each file came from.

    Args:
        atlases: at least one.
        folder: of the job.
        files: gets the paths.
        title: what a reader calls the set.

    Returns:
        The path of its dataset.json.

    Raises:
        BadInput: a volume or segmentation cannot be used.
    """
    labels = atlases.labels
    listing = folder / "dataset.json"
    files[listing] = title
    stems = file_names([atlas.volume.GetName() for atlas in atlases.atlases])
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    training = []
    for atlas, stem, values in zip(atlases.atlases, stems, labels.values, strict=True):
        image, drawn = folder / "images" / f"{stem}.nrrd", folder / "labels" / f"{stem}.nrrd"
        yield from exchange.write_volume(atlas.volume, image)
        files[image] = atlas.volume
        yield from exchange.write_segments(atlas.segmentation, values, atlas.volume, drawn)
        files[drawn] = atlas.segmentation
        training.append({"image": f"./images/{image.name}", "label": f"./labels/{drawn.name}"})
    names = {"0": "background", **{str(label["value"]): label["name"] for label in labels.labels}}
    data = {"name": title, "modality": {"0": "image"}, "labels": names, "training": training}
    listing.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
    return listing


def file_names(names: Sequence[str]) -> list[str]:
    """Names of files as close to the given ones as file systems allow, each different without regard to case."""
    found: list[str] = []
    for name in names:
        stem = _FORBIDDEN.sub("_", " ".join(name.split())).strip(". ") or "unnamed"
        stem = re.sub(r"_0000$", "_0", stem)  # which names a channel in nnU-Net's folders
        taken = {one.casefold() for one in found}
        made, number = stem, 1
        while made.casefold() in taken:
            number += 1
            made = f"{stem} ({number})"
        found.append(made)
    return found


def require(atlases: SceneAtlases, title: str) -> None:
    """Raise :class:`BadInput` where a folder holds no atlas."""
    if not atlases.atlases:
        raise BadInput(
            f"The folder {title} holds no atlas." if title else "There is no atlas.",
            " ".join(atlases.notes),
            "Put volumes and their segmentations into a folder of the Data module.",
        )
