"""``parameterNodeWrapper``: typed attributes on a vtkMRMLScriptedModuleNode, and their connection to widgets by the
property SlicerParameterName.
"""

from __future__ import annotations

import logging
import typing
import weakref
from typing import Any

import slicer
import vtk
from PySide6 import QtWidgets

from . import guiConnectors
from .annotations import Default, Parameter, extract_default, split_dotted, splitAnnotations, unannotatedType
from .pack import check_member
from .serializers import createSerializer

SlicerParameterNamePropertyName = "SlicerParameterName"


class _Stored:
    """One parameter of one wrapper; its value is kept where the type allows it, until the node changes."""

    def __init__(self, parameter: Parameter, node: Any, prefix: str | None) -> None:
        self.parameter, self.node = parameter, node
        self.name = f"{prefix or ''}{parameter.basename}"
        if not parameter.serializer.isIn(node, self.name):
            parameter.serializer.write(node, self.name, parameter.default.value)
        self.cached = parameter.serializer.supportsCaching()
        if self.cached:
            self._writing = False
            self._value = self._read()
            held = weakref.WeakMethod(self._on_modified)

            def observer(caller: Any, event: str) -> None:
                method = held()
                if method is not None:
                    method()

            self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, observer)
            weakref.finalize(self, node.RemoveObserver, self._tag)

    def _read(self) -> Any:
        serializer = self.parameter.serializer
        if not serializer.isIn(self.node, self.name):
            serializer.write(self.node, self.name, self.parameter.default.value)
        return serializer.read(self.node, self.name)

    def _on_modified(self) -> None:
        if not self._writing:
            self._value = self._read()

    def read(self) -> Any:
        """Returns the value."""
        return self._value if self.cached else self._read()

    def write(self, value: Any) -> None:
        """Stores a value; observers of the node see the new one."""
        if not self.cached:
            self.parameter.serializer.write(self.node, self.name, value)
            return
        self._writing = True
        try:
            with slicer.util.NodeModify(self.node):
                self.parameter.serializer.write(self.node, self.name, value)
                self._value = self._read()
        finally:
            self._writing = False


def _check_name(wrapper: Any, name: str) -> None:
    first, rest = split_dotted(name)
    if first not in wrapper.allParameters:
        known = ", ".join(wrapper.allParameters)
        raise ValueError(f"Cannot find a param with the given name: {first}. Found parameters: {known}")
    if rest is not None:
        check_member(unannotatedType(wrapper.allParameters[first].unalteredType), rest)


def _init(self: Any, parameterNode: Any, prefix: str | None = None) -> None:
    self.parameterNode = parameterNode
    self._connected: dict[int, dict[str, Any]] = {}
    self._observers: dict[int, int] = {}
    self._next_tag = 0
    self._updating = False
    self._stored = {name: _Stored(info, parameterNode, prefix) for name, info in self.allParameters.items()}


def _get_value(self: Any, name: str) -> Any:
    """Returns a parameter, or a member of a pack ("box.x")."""
    _check_name(self, name)
    first, rest = split_dotted(name)
    value = self._stored[first].read()
    return value if rest is None else value.getValue(rest)


def _set_value(self: Any, name: str, value: Any) -> None:
    """Sets a parameter, or a member of a pack."""
    _check_name(self, name)
    first, rest = split_dotted(name)
    if rest is None:
        self._stored[first].write(value)
    else:
        self._stored[first].read().setValue(rest, value)


def _is_cached(self: Any, paramName: str) -> bool:
    """Whether the parameter's value is kept between changes of the node."""
    _check_name(self, paramName)
    return self._stored[paramName].cached


def _default(self: Any, paramName: str) -> Default:
    """Returns the parameter's Default."""
    _check_name(self, paramName)
    return self.allParameters[paramName].default


def _update_widgets(self: Any) -> None:
    if self._updating:
        return
    self._updating = True
    try:
        with slicer.util.NodeModify(self):
            for connectors in self._connected.values():
                for name, connector in connectors.items():
                    connector.write(self.getValue(name))
    finally:
        self._updating = False


def _connect_parameters(self: Any, mapping: dict) -> int:
    """Connects parameters to widgets or connectors.

    Args:
        mapping: parameter's name -> widget or GuiConnector.

    Returns:
        A number for disconnectGui.
    """
    for name in mapping:
        _check_name(self, name)
    connectors = {
        name: target
        if isinstance(target, guiConnectors.GuiConnector)
        else guiConnectors.createGuiConnector(target, self.dataType(name))
        for name, target in mapping.items()
    }
    tag = self._next_tag
    self._next_tag += 1
    self._connected[tag] = connectors

    def on_change(name: str, connector: Any) -> Any:
        def changed() -> None:
            with slicer.util.NodeModify(self):
                if not self._updating:
                    self.setValue(name, connector.read())

        return changed

    for name, connector in connectors.items():
        connector.write(self.getValue(name))
        connector.onChanged(on_change(name, connector))
    self._observers[tag] = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: _update_widgets(self))
    return tag


def _connect_gui(self: Any, gui: Any) -> int:
    """Connects the widgets that name a parameter in their property SlicerParameterName.

    Args:
        gui: a widget with children, or an object whose attributes are widgets (slicer.util.childWidgetVariables).

    Returns:
        A number for disconnectGui.
    """
    widgets = gui.findChildren(QtWidgets.QWidget) if isinstance(gui, QtWidgets.QWidget) else list(vars(gui).values())
    named = {widget.property(SlicerParameterNamePropertyName): widget for widget in widgets}
    return _connect_parameters(self, {name: widget for name, widget in named.items() if name})


def _disconnect_gui(self: Any, guiTag: int) -> None:
    """Undoes connectGui or connectParametersToGui."""
    for connector in self._connected.pop(guiTag, {}).values():
        connector.onChanged(None)
    if guiTag in self._observers:
        self.RemoveObserver(self._observers.pop(guiTag))


def findChildWidgetForParameter(widget: Any, parameter: str) -> Any:
    """Returns the child widget of a parameter, or None; members of packs are found by their nested names."""
    for child in widget.findChildren(QtWidgets.QWidget):
        if child.property(SlicerParameterNamePropertyName) == parameter:
            return child
    first, rest = split_dotted(parameter)
    parent = findChildWidgetForParameter(widget, first) if rest is not None else None
    return guiConnectors.pack_widgets(parent).get(rest) if parent is not None else None


def isParameterNodeWrapper(classOrObj: Any) -> bool:
    """Whether an object or class is a parameter node wrapper."""
    return getattr(classOrObj, "_is_parameter_node_wrapper", False)


def _property(name: str) -> property:
    return property(lambda self: self._stored[name].read(), lambda self, value: self._stored[name].write(value))


def _process(cls: type) -> type:
    parameters: dict[str, Parameter] = {}
    for name, full_type in typing.get_type_hints(cls, include_extras=True).items():
        kind, annotations = splitAnnotations(full_type)
        try:
            serializer, rest = createSerializer(kind, annotations)
        except Exception as error:
            raise Exception(f"Unable to create serializer for {cls} member {name}") from error
        default, rest = (Default(getattr(cls, name)), rest) if hasattr(cls, name) else extract_default(rest)
        if rest:
            logging.warning(f"Unused annotations: {rest}")
        parameters[name] = Parameter(name, serializer, default or Default(serializer.default()), full_type)
        setattr(cls, name, _property(name))

    def data_type(membername: str) -> Any:
        _check_name(cls, membername)
        first, rest = split_dotted(membername)
        kind = parameters[first].unalteredType
        return kind if rest is None else unannotatedType(kind).dataType(rest)

    methods = {
        "allParameters": parameters,
        "_is_parameter_node_wrapper": True,
        "default": _default,
        "isCached": _is_cached,
        "dataType": staticmethod(data_type),
        "getValue": _get_value,
        "setValue": _set_value,
        "connectGui": _connect_gui,
        "connectParametersToGui": _connect_parameters,
        "disconnectGui": _disconnect_gui,
        "StartModify": lambda self: self.parameterNode.StartModify(),
        "EndModify": lambda self, wasModified: self.parameterNode.EndModify(wasModified),
        "AddObserver": lambda self, event, callback, priority=0.0: self.parameterNode.AddObserver(
            event, callback, priority
        ),
        "RemoveObserver": lambda self, tag: self.parameterNode.RemoveObserver(tag),
        "Modified": lambda self: self.parameterNode.Modified(),
    }
    for name, value in methods.items():
        if hasattr(cls, name):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
        setattr(cls, name, value)
    cls.__init__ = _init  # type: ignore[misc]
    return cls


def parameterNodeWrapper(classtype: type | None = None) -> Any:
    """Class decorator that turns a class with annotated members into a parameter node wrapper."""
    return _process if classtype is None else _process(classtype)
