"""Loads .ui files made for Slicer: QUiLoader with the stand-in's ctk and qMRML classes, and the file's connections made
in Python, because Qt knows neither the signals nor the slots of these classes.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

from PySide6 import QtCore, QtUiTools, QtWidgets

from . import originals, pythonqt, signals

# Class name in a .ui file -> the class; ctk and qMRML classes register themselves here.
widget_classes: dict[str, type] = {}


def _connect(root: QtWidgets.QWidget, connection: ElementTree.Element) -> None:
    def widget(name: str) -> Any:
        if originals.raw(QtCore.QObject, "objectName")(root) == name:
            return root
        found = root.findChild(QtCore.QObject, name)
        if found is None:
            raise RuntimeError(f"The .ui file connects {name}, which it does not contain")
        return found

    text = {key: connection.findtext(key, "") for key in ("sender", "signal", "receiver", "slot")}
    slot_name = text["slot"].partition("(")[0]
    receiver = widget(text["receiver"])
    parameters = text["slot"].partition("(")[2].rstrip(")")
    count = len(parameters.split(",")) if parameters else 0

    def call(*arguments: Any) -> None:
        getattr(receiver, slot_name)(*arguments[:count])

    if not signals.connect_signal(widget(text["sender"]), text["signal"], call):
        raise RuntimeError(f"The .ui file names the signal {text['signal']} of {text['sender']}, which does not exist")


class UiLoader(QtUiTools.QUiLoader):
    """QUiLoader that makes the stand-in's widgets."""

    def createWidget(self, class_name: str, parent: QtWidgets.QWidget | None = None, name: str = "") -> Any:
        """Called by Qt for each widget of the file."""
        if class_name in widget_classes:
            widget = widget_classes[class_name](parent)
            widget.objectName = name
            return widget
        if class_name.startswith(("ctk", "qMRML", "qSlicer")):
            raise NotImplementedError(f"The stand-in has no {class_name}, which the .ui file asks for")
        return super().createWidget(class_name, parent, name)

    def load(self, device: QtCore.QIODevice, parent: QtWidgets.QWidget | None = None) -> Any:
        """Returns the widget that the .ui file describes."""
        root = ElementTree.fromstring(bytes(device.readAll().data()))
        unknown = [
            element.get("class", "")
            for element in root.iter("widget")
            if element.get("class", "").startswith(("ctk", "qMRML", "qSlicer"))
            and element.get("class") not in widget_classes
        ]
        if unknown:
            raise NotImplementedError(f"The stand-in has no {', '.join(sorted(set(unknown)))}, used in the .ui file")
        connections = root.find("connections")
        if connections is not None:
            root.remove(connections)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(root))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        pythonqt._loading_ui.append(True)
        try:
            widget = super().load(buffer, parent)
        finally:
            pythonqt._loading_ui.pop()
        for connection in connections if connections is not None else []:
            _connect(widget, connection)
        return widget
