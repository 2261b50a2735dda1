"""Widgets for types: ``createGui`` of ``slicer.parameterNodeWrapper``."""

from __future__ import annotations

import abc
import enum
from typing import Any

from PySide6 import QtWidgets

from .. import ctk_choices, ctk_numbers, ctk_ranges, ctk_sections, qmrml_nodes
from . import guiConnectors, validators, wrapper
from .annotations import Label, findFirstAnnotation, isNodeOrUnionOfNodes, splitAnnotations, unannotatedType
from .pack import FloatRange, isParameterPack


class GuiCreator(abc.ABC):
    """Base of users' creators."""

    @staticmethod
    @abc.abstractmethod
    def representationValue(datatype: Any) -> int:
        """Returns from 0 (not at all) to 100 how well this creator's widget represents a type; built in: up to 90."""

    @staticmethod
    @abc.abstractmethod
    def create(datatype: Any) -> Any:
        """Returns a widget for a type."""


_registered: list[type[GuiCreator]] = []


def parameterNodeGuiCreator(classtype: type | None = None) -> Any:
    """Class decorator that registers a creator; used with or without parentheses."""

    def register(cls: type[GuiCreator]) -> type[GuiCreator]:
        if not issubclass(cls, GuiCreator):
            raise TypeError("Must be a GuiCreator subclass")
        _registered.append(cls)
        return cls

    return register if classtype is None else register(classtype)


def _members(datatype: Any, form: QtWidgets.QFormLayout, root: Any, property_name: str) -> None:
    for name, info in datatype.allParameters.items():
        child = createGui(info.unalteredType)
        child.setProperty(property_name, name)
        label = findFirstAnnotation(splitAnnotations(info.unalteredType)[1], Label)
        form.addRow(label.label if label else name, child)
        if hasattr(child, "setMRMLScene"):
            root.mrmlSceneChanged.connect(child.setMRMLScene)


def _built_in(datatype: Any) -> Any:
    bare, annotations = splitAnnotations(datatype)
    limits = [findFirstAnnotation(annotations, kind) for kind in (validators.Minimum, validators.Maximum)]
    bounded = findFirstAnnotation(annotations, validators.WithinRange) is not None or None not in limits
    if findFirstAnnotation(annotations, validators.Choice) is not None and bare in (int, float, str, bool):
        return QtWidgets.QComboBox()
    if isinstance(bare, type) and issubclass(bare, enum.Enum):
        return QtWidgets.QComboBox()
    if bare is float:
        return ctk_numbers.ctkSliderWidget() if bounded else QtWidgets.QDoubleSpinBox()
    simple = {
        bool: QtWidgets.QCheckBox, int: QtWidgets.QSpinBox, str: QtWidgets.QLineEdit, FloatRange:
        ctk_ranges.ctkRangeWidget,
    }  # fmt: skip
    if isinstance(bare, type) and bare in simple:
        return simple[bare]()
    if bare in guiConnectors._PATHS:
        return ctk_choices.ctkPathLineEdit()
    if isNodeOrUnionOfNodes(datatype):
        return qmrml_nodes.qMRMLNodeComboBox()
    if isParameterPack(bare):
        root = qmrml_nodes.qSlicerWidget()
        section = ctk_sections.ctkCollapsibleButton()
        QtWidgets.QVBoxLayout(root).addWidget(section)
        _members(bare, QtWidgets.QFormLayout(section), root, guiConnectors.SlicerPackParameterNamePropertyName)
        return root
    if wrapper.isParameterNodeWrapper(bare):
        root = qmrml_nodes.qSlicerWidget()
        _members(bare, QtWidgets.QFormLayout(root), root, wrapper.SlicerParameterNamePropertyName)
        return root
    return None


def createGui(datatype: Any) -> Any:
    """Returns a widget for a type, which may be Annotated.

    Raises:
        RuntimeError: no widget is known for the type.
    """
    values = [(creator.representationValue(datatype), creator) for creator in _registered]
    best, creator = max(values, key=lambda item: item[0], default=(0, None))
    made = creator.create(datatype) if creator is not None and best > 90 else _built_in(datatype)
    if made is None and creator is not None and best > 0:
        made = creator.create(datatype)
    if made is None:
        raise RuntimeError(f"Unable to make a GUI for '{unannotatedType(datatype)}'")
    return made
