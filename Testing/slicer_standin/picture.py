"""Pictures of widgets, for people to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from .originals import raw


def ensure_fonts() -> None:
    """Makes text visible under the offscreen platform.

    Uses the system's fonts (Debian: fonts-dejavu-core), or else those that matplotlib brings.

    Raises:
        RuntimeError: there is no font at all.
    """
    if QtGui.QFontDatabase.families():
        return
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError(
            "Text cannot be drawn: install the system's package fonts-dejavu-core, or matplotlib."
        ) from error
    for font in sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVuSans*.ttf")):
        QtGui.QFontDatabase.addApplicationFont(str(font))
    QtWidgets.QApplication.setFont(QtGui.QFont("DejaVu Sans", 9))


def grab(widget: Any, path: str | Path, width: int = 480, height: int | None = None) -> Path:
    """Saves a picture of a widget as a PNG.

    Args:
        widget: a widget, or a scripted module's widget object.
        path: the file to write; its folder is made.
        width: pixels.
        height: pixels; by default as many as the widget wants at that width.

    Returns:
        The path.
    """
    shown = widget if isinstance(widget, QtWidgets.QWidget) else widget.parent
    was_visible = shown.visible
    shown.setAttribute(QtCore.Qt.WidgetAttribute.WA_DontShowOnScreen, not was_visible)
    shown.resize(width, height or 100)
    shown.show()
    QtWidgets.QApplication.processEvents()
    if height is None:
        wanted = shown.heightForWidth(width) if shown.hasHeightForWidth() else shown.sizeHint.height()
        shown.resize(width, max(wanted, shown.sizeHint.height()))
        QtWidgets.QApplication.processEvents()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = raw(QtWidgets.QWidget, "grab")(shown)
    if not was_visible:
        shown.hide()
    if not picture.save(str(path), "PNG"):
        raise OSError(f"{path} could not be written")
    return path
