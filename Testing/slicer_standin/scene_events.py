"""Observes a MRML scene or node on behalf of a widget, and stops when the widget is gone."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import shiboken6
import slicer
import vtk


class SceneWatcher:
    """Tells a widget of nodes that come and go, one by one, and at the end of a batch (loading or closing a scene)
    once.

    Args:
        widget: the widget for which the calls are made; they end with it.
        scene: the scene.
        added: called with a node that was added.
        removing: called with a node that is about to be removed.
        refresh: called where many nodes may have changed at once.
    """

    def __init__(self, widget: Any, scene: Any, added: Callable, removing: Callable, refresh: Callable) -> None:
        self._widget = weakref.ref(widget)
        self._scene = scene
        self._named: tuple[Any, int] | None = None
        self._later: list[Callable] = []
        node_argument = vtk.VTK_OBJECT
        self._tags = [
            self._observe(slicer.vtkMRMLScene.NodeAddedEvent, added, node_argument),
            self._observe(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, removing, node_argument),
            self._observe(slicer.vtkMRMLScene.NodeRemovedEvent, lambda: self._run_later(), None),
        ]
        for event in ("EndBatchProcessEvent", "EndCloseEvent", "EndImportEvent", "EndRestoreEvent"):
            self._tags.append(self._observe(getattr(slicer.vtkMRMLScene, event), refresh, None, in_batch=True))

    def _observe(self, event: int, function: Callable, argument: Any, in_batch: bool = False) -> int:
        held = weakref.WeakMethod(function) if hasattr(function, "__self__") else (lambda: function)

        def observer(caller: Any, name: str, data: Any = None) -> None:
            widget, call = self._widget(), held()
            if widget is None or call is None or not shiboken6.isValid(widget):
                self.stop()
                return
            if not in_batch and self._scene.IsBatchProcessing():
                return
            if argument is None:
                call()
            else:
                call(data)

        if argument is not None:
            observer.CallDataType = argument  # type: ignore[attr-defined]
        return self._scene.AddObserver(event, observer)

    def later(self, function: Callable) -> None:
        """Calls a function once the node that is being removed is out of the scene."""
        self._later.append(function)

    def _run_later(self) -> None:
        waiting, self._later = self._later, []
        for function in waiting:
            function()

    def observe_name(self, node: Any, refresh: Callable) -> None:
        """Calls ``refresh`` when the node's name changes; replaces the node observed before."""
        if self._named is not None:
            self._named[0].RemoveObserver(self._named[1])
            self._named = None
        if node is None:
            return
        held = weakref.WeakMethod(refresh)
        shown = node.GetName()

        def observer(caller: Any, event: str) -> None:
            nonlocal shown
            widget, call = self._widget(), held()
            if widget is not None and call is not None and shiboken6.isValid(widget) and caller.GetName() != shown:
                shown = caller.GetName()
                call()

        self._named = (node, node.AddObserver(vtk.vtkCommand.ModifiedEvent, observer))

    def stop(self) -> None:
        """Ends all observation."""
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._tags = []
        self.observe_name(None, self._run_later)


class NodeObserver:
    """Calls a method of a widget whenever a node changes, until the widget is gone or another node is observed.

    Args:
        widget: the widget for which the calls are made.
        changed: a method without arguments.
    """

    def __init__(self, widget: Any, changed: Callable) -> None:
        self._widget = weakref.ref(widget)
        self._changed = weakref.WeakMethod(changed)
        self._observed: list[tuple[Any, int]] = []

    def observe(self, node: Any, events: tuple[int, ...] = ()) -> None:
        """Observes a node's ModifiedEvent and the given events; None ends the observation."""
        for observed, tag in self._observed:
            observed.RemoveObserver(tag)
        self._observed = []
        if node is None:
            return

        def observer(caller: Any, event: str) -> None:
            widget, changed = self._widget(), self._changed()
            if widget is not None and changed is not None and shiboken6.isValid(widget):
                changed()

        for event in (vtk.vtkCommand.ModifiedEvent, *events):
            self._observed.append((node, node.AddObserver(event, observer)))
