"""The scene and the logics of an application on PyPI's slicer-core, which brings the classes but creates none of them:
the application logic, the logic of each module that the package contains, the slice and 3D views' nodes.
"""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import slicer
import vtk

# Module's name in slicer.modules -> (its title, the logic's class, the logic's name in the application logic).
_LOGICS = {
    "annotations": ("Annotations", "vtkSlicerAnnotationModuleLogic", "Annotations"),
    "cameras": ("Cameras", "vtkSlicerCamerasModuleLogic", "Cameras"),
    "colors": ("Colors", "vtkSlicerColorLogic", "Colors"),
    "data": ("Data", "vtkSlicerDataModuleLogic", "Data"),
    "markups": ("Markups", "vtkSlicerMarkupsLogic", "Markups"),
    "models": ("Models", "vtkSlicerModelsLogic", "Models"),
    "plots": ("Plots", "vtkSlicerPlotsLogic", "Plots"),
    "reformat": ("Reformat", "vtkSlicerReformatLogic", "Reformat"),
    "sceneviews": ("Scene Views", "vtkSlicerSceneViewsModuleLogic", "SceneViews"),
    "segmentations": ("Segmentations", "vtkSlicerSegmentationsModuleLogic", "Segmentations"),
    "sequences": ("Sequences", "vtkSlicerSequencesLogic", "Sequences"),
    "subjecthierarchy": ("Subject Hierarchy", "vtkSlicerSubjectHierarchyModuleLogic", "SubjectHierarchy"),
    "tables": ("Tables", "vtkSlicerTablesLogic", "Tables"),
    "terminologies": ("Terminologies", "vtkSlicerTerminologiesModuleLogic", "Terminologies"),
    "texts": ("Texts", "vtkSlicerTextsLogic", "Texts"),
    "transforms": ("Transforms", "vtkSlicerTransformLogic", "Transforms"),
    "units": ("Units", "vtkSlicerUnitsLogic", "Units"),
    "viewcontrollers": ("View Controllers", "vtkSlicerViewControllersLogic", "ViewControllers"),
    "volumerendering": ("Volume Rendering", "vtkSlicerVolumeRenderingLogic", "VolumeRendering"),
    "volumes": ("Volumes", "vtkSlicerVolumesLogic", "Volumes"),
}
_COLOR_FILES = ("GenericColors", "GenericAnatomyColors", "DarkBrightChartColors")


def _write_color_files(folder: Path) -> None:
    """Writes colour tables under the names that nodes refer to by default. The colours are not Slicer's."""
    folder.mkdir(exist_ok=True)
    for name in _COLOR_FILES:
        lines = ["0 background 0 0 0 0"]
        for label in range(1, 256):
            red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.6, 0.9))
            lines.append(f"{label} label_{label} {red} {green} {blue} 255")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


class Core:
    """The scene with its application logic.

    Args:
        share_directory: folder in which the logics look for their files; none of Slicer's are there.
        temporary_directory: folder for temporary files.
        cache_directory: folder for what is downloaded, and for scene bundles while they are read.
        main_window: with one, the scene has the nodes of three slice views and a 3D view.
    """

    def __init__(self, share_directory: str, temporary_directory: str, cache_directory: str, main_window: bool) -> None:
        self.scene = slicer.vtkMRMLScene()
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self.scene.AddNode(crosshair)
        self.logic = slicer.vtkSlicerApplicationLogic()
        _write_color_files(Path(share_directory) / "ColorFiles")
        self.logic.SetHomeDirectory(str(Path(share_directory).parent))
        self.logic.SetShareDirectory(Path(share_directory).name)
        self.logic.SetTemporaryPath(temporary_directory)
        self.scene.SetRootDirectory(temporary_directory)
        self.logic.SetMRMLScene(self.scene)
        self._add_cache(cache_directory)
        self.slice_logics = vtk.vtkCollection()
        self.view_logics = vtk.vtkCollection()
        self.layout_logic: Any = None
        self.logic.SetSliceLogics(self.slice_logics)
        self.logic.SetViewLogics(self.view_logics)
        for factory in (
            slicer.vtkMRMLThreeDViewDisplayableManagerFactory,
            slicer.vtkMRMLSliceViewDisplayableManagerFactory,
        ):
            factory.GetInstance().SetMRMLApplicationLogic(self.logic)
        self.module_logics: dict[str, Any] = {}
        self.titles: dict[str, str] = {}
        # The logics of colours and terminologies complain that Slicer's own files are not there; the package has none.
        vtk.vtkObject.GlobalWarningDisplayOff()
        for name, (title, class_name, logic_name) in _LOGICS.items():
            if hasattr(slicer, class_name):
                self._add_logic(name, title, getattr(slicer, class_name)(), logic_name, share_directory)
        vtk.vtkObject.GlobalWarningDisplayOn()
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)
        if main_window:
            self._add_views()

    def _add_cache(self, folder: str) -> None:
        """Without a cache, scene bundles (.mrb) cannot be read."""
        self._remote = slicer.vtkMRMLRemoteIOLogic()
        self._remote.GetCacheManager().SetRemoteCacheDirectory(folder)
        self._remote.SetMRMLScene(self.scene)
        self._remote.AddDataIOToScene()
        self._transfers = slicer.vtkDataIOManagerLogic()
        self._transfers.SetMRMLApplicationLogic(self.logic)
        self._transfers.SetAndObserveDataIOManager(self._remote.GetDataIOManager())

    def _add_logic(self, name: str, title: str, logic: Any, logic_name: str, share_directory: str) -> None:
        if hasattr(logic, "SetModuleShareDirectory"):
            logic.SetModuleShareDirectory(share_directory)
        if name == "colors":
            self.logic.SetColorLogic(logic)
        logic.SetMRMLApplicationLogic(self.logic)
        logic.SetMRMLScene(self.scene)
        self.logic.SetModuleLogic(logic_name, logic)
        if name == "colors" and self.scene.GetNumberOfNodesByClass("vtkMRMLColorNode") == 0:
            logic.AddDefaultColorNodes()
        self.module_logics[name] = logic
        self.titles[name] = title

    def _add_views(self) -> None:
        """Makes the view nodes of the layout, which the real layout logic keeps in step with it, and their logics."""
        view = slicer.vtkMRMLViewLogic()
        view.SetMRMLApplicationLogic(self.logic)
        view.SetMRMLScene(self.scene)
        view.AddViewNode("1")
        self.view_logics.AddItem(view)
        self.layout_logic = slicer.vtkMRMLLayoutLogic()
        self.layout_logic.SetMRMLScene(self.scene)
        self.layout_logic.GetLayoutNode().SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        for index in range(self.scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")):
            self.add_slice_logic(self.scene.GetNthNodeByClass(index, "vtkMRMLSliceNode"))

    def add_slice_logic(self, node: Any) -> Any:
        """Makes the logic of a slice view, and with it the node that says which volumes it shows."""
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(self.logic)
        logic.SetMRMLScene(self.scene)
        logic.SetSliceNode(node)
        self.slice_logics.AddItem(logic)
        return logic
