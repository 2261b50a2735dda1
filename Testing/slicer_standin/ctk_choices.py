"""CTK's choosers and texts: ctkComboBox, ctkCheckableComboBox, ctkPathLineEdit, ctkDirectoryButton,
ctkColorPickerButton, ctkSearchBox, ctkFittedTextBrowser, ctkMessageBox, ctkWidgetsUtils.
"""

from __future__ import annotations

import enum
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from .declare import offered, prop, state, stored
from .originals import raw
from .signals import emit


@offered("ctk", ("returnRelease()",))
class ctkComboBox(QtWidgets.QComboBox):
    """A combo box with a text for no choice."""

    defaultText = stored("QString", "default_text", "", lambda self: self.update())
    defaultIcon = stored("QIcon", "default_icon", QtGui.QIcon())
    forceDefault = stored("bool", "force_default", False)
    elideMode = stored("Qt::TextElideMode", "elide", QtCore.Qt.ElideNone)
    currentUserDataAsString = prop(
        "QString",
        lambda self: "" if self.currentData is None else str(self.currentData),
        lambda self, value: self.setCurrentUserDataAsString(value),
    )

    def setCurrentUserDataAsString(self, value: str) -> None:
        """Chooses the item whose data reads ``value``."""
        for index in range(self.count):
            if str(self.itemData(index)) == value:
                self.currentIndex = index
                return

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        """Draws the combo box, with the default text where nothing is chosen."""
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionComboBox()
        self.initStyleOption(option)
        if self.forceDefault or self.currentIndex < 0:
            option.currentText = self.defaultText
        painter.drawComplexControl(QtWidgets.QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_ComboBoxLabel, option)
        painter.end()


@offered("ctk", ("checkedIndexesChanged()", "returnRelease()"))
class ctkCheckableComboBox(QtWidgets.QComboBox):
    """A combo box whose items have check boxes."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        model = QtGui.QStandardItemModel(0, 1, self)
        self.setModel(model)
        state(self).busy = False
        model.connect("rowsInserted(QModelIndex,int,int)", self._make_checkable)
        model.connect("itemChanged(QStandardItem*)", self._on_item_changed)

    def _make_checkable(self, parent: QtCore.QModelIndex, first: int, last: int) -> None:
        state(self).busy = True
        for row in range(first, last + 1):
            item = self.model().item(row)
            item.setCheckable(True)
            item.setData(QtCore.Qt.CheckState.Unchecked, QtCore.Qt.ItemDataRole.CheckStateRole)
        state(self).busy = False

    def _on_item_changed(self, item: QtGui.QStandardItem) -> None:
        if not state(self).busy:
            emit(self, "checkedIndexesChanged()")
            self.update()

    def _items(self) -> list[QtGui.QStandardItem]:
        return [self.model().item(row) for row in range(self.count)]

    def checkedIndexes(self) -> list[QtCore.QModelIndex]:
        """Returns the model's indexes of the ticked items."""
        return [item.index() for item in self._items() if item.checkState() == QtCore.Qt.CheckState.Checked]

    def allChecked(self) -> bool:
        """Whether every item is ticked."""
        return all(item.checkState() == QtCore.Qt.CheckState.Checked for item in self._items())

    def noneChecked(self) -> bool:
        """Whether no item is ticked."""
        return not self.checkedIndexes()

    def checkState(self, index: QtCore.QModelIndex) -> Any:
        """Returns the state of an item's check box."""
        return self.model().itemFromIndex(index).checkState()

    def setCheckState(self, index: QtCore.QModelIndex, check: Any) -> None:
        """Ticks or clears an item."""
        self.model().itemFromIndex(index).setCheckState(QtCore.Qt.CheckState(int(check)))

    def checkableModel(self) -> Any:
        """Returns the model that holds the items."""
        return self.model()

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        """Draws the combo box with the names of the ticked items."""
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionComboBox()
        self.initStyleOption(option)
        option.currentText = ", ".join(str(index.data()) for index in self.checkedIndexes())
        painter.drawComplexControl(QtWidgets.QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_ComboBoxLabel, option)
        painter.end()


class _Filter(enum.IntFlag):
    """QDir's filters, as ctkPathLineEdit repeats them."""

    Dirs = 0x001
    Files = 0x002
    Drives = 0x004
    NoSymLinks = 0x008
    AllEntries = 0x007
    Readable = 0x010
    Writable = 0x020
    Executable = 0x040
    Hidden = 0x100
    AllDirs = 0x400
    NoDot = 0x2000
    NoDotDot = 0x4000
    NoDotAndDotDot = 0x6000


class _DialogOption(enum.IntFlag):
    """QFileDialog's options, as CTK's choosers repeat them."""

    ShowDirsOnly = 0x01
    DontResolveSymlinks = 0x02
    DontConfirmOverwrite = 0x04
    DontUseNativeDialog = 0x10
    ReadOnly = 0x20
    HideNameFilterDetails = 0x40


@offered("ctk", ("validInputChanged(bool)", "currentPathChanged(QString)"))
class ctkPathLineEdit(QtWidgets.QWidget):
    """A path that can be typed, chosen from the last ones or browsed for."""

    Filters = _Filter
    Dirs, Files, Drives, NoSymLinks = _Filter.Dirs, _Filter.Files, _Filter.Drives, _Filter.NoSymLinks
    AllEntries, Readable, Writable, Executable = (
        _Filter.AllEntries, _Filter.Readable, _Filter.Writable, _Filter.Executable,
    )  # fmt: skip
    Hidden, AllDirs = _Filter.Hidden, _Filter.AllDirs
    NoDot, NoDotDot, NoDotAndDotDot = _Filter.NoDot, _Filter.NoDotDot, _Filter.NoDotAndDotDot
    Option = Options = _DialogOption

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        own = state(self)
        own.path = ""
        own.combo = QtWidgets.QComboBox(self)
        own.combo.setEditable(True)
        own.combo.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        own.button = QtWidgets.QToolButton(self)
        own.button.setText("...")
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(own.combo)
        layout.addWidget(own.button)
        own.combo.connect("editTextChanged(QString)", self._on_text)
        own.button.connect("clicked()", self.browse)

    def _on_text(self, text: str) -> None:
        own = state(self)
        if text == own.path:
            return
        had_input, own.path = bool(own.path), text
        if had_input != bool(text):
            emit(self, "validInputChanged(bool)", bool(text))
        emit(self, "currentPathChanged(QString)", text)

    def _set_path(self, path: str) -> None:
        raw(QtWidgets.QComboBox, "setEditText")(state(self).combo, path)

    def _set_button_visible(self, visible: bool) -> None:
        state(self).button.setVisible(visible)

    currentPath = prop("QString", lambda self: state(self).path, _set_path)
    filters = stored("Filters", "filters", _Filter.AllEntries | _Filter.NoDotAndDotDot | _Filter.Readable)
    options = stored("Options", "options", _DialogOption(0))
    nameFilters = stored("QStringList", "name_filters", ())
    label = stored("QString", "label", "")
    settingKey = stored("QString", "setting_key", "", lambda self: self.retrieveHistory())
    minimumContentsLength = stored("int", "minimum_length", 17)
    showBrowseButton = prop("bool", lambda self: not state(self).button.isHidden(), _set_button_visible)
    showHistoryButton = stored("bool", "show_history", True)

    def setCurrentPath(self, path: str) -> None:
        """Sets the path."""
        self.currentPath = path

    def comboBox(self) -> QtWidgets.QComboBox:
        """Returns the combo box that holds the path."""
        return state(self).combo

    def browse(self) -> None:
        """Asks for a path with a file dialog."""
        wants = int(self.filters)
        if wants & _Filter.Dirs and not wants & _Filter.Files:
            path = QtWidgets.QFileDialog.getExistingDirectory(self, self.label or "Select directory", self.currentPath)
        elif wants & _Filter.Writable:
            path = QtWidgets.QFileDialog.getSaveFileName(
                self, self.label, self.currentPath, ";;".join(self.nameFilters)
            )
        else:
            path = QtWidgets.QFileDialog.getOpenFileName(
                self, self.label, self.currentPath, ";;".join(self.nameFilters)
            )
        if path:
            self.currentPath = path

    def _history_key(self) -> str:
        return f"ctkPathLineEdit/{self.settingKey}"

    def addCurrentPathToHistory(self) -> None:
        """Remembers the path under ``settingKey``."""
        if not self.settingKey or not self.currentPath:
            return
        settings = QtCore.QSettings()
        history = [path for path in settings.value(self._history_key()) or [] if path != self.currentPath]
        settings.setValue(self._history_key(), [self.currentPath, *history][:5])

    def retrieveHistory(self) -> None:
        """Offers the remembered paths."""
        path = self.currentPath
        blocked = state(self).combo.blockSignals(True)
        state(self).combo.clear()
        state(self).combo.addItems(list(QtCore.QSettings().value(self._history_key()) or []))
        state(self).combo.blockSignals(blocked)
        self.currentPath = path


@offered("ctk", ("directoryChanged(QString)", "directorySelected(QString)"))
class ctkDirectoryButton(QtWidgets.QWidget):
    """A button that shows a directory and asks for another."""

    Option = Options = _DialogOption

    def __init__(self, *arguments: Any) -> None:
        super().__init__(next((item for item in arguments if isinstance(item, QtWidgets.QWidget)), None))
        own = state(self)
        start = next((item for item in arguments if isinstance(item, str)), QtCore.QDir.currentPath())
        own.directory = QtCore.QDir(start).absolutePath()
        icon = self.style().standardIcon(QtWidgets.QStyle.StandardPixmap.SP_DirIcon)
        own.button = QtWidgets.QPushButton(icon, own.directory, self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(own.button)
        own.button.connect("clicked()", self.browse)

    def _set_directory(self, path: str) -> None:
        own = state(self)
        path = QtCore.QDir(path).absolutePath()
        changed, own.directory = path != own.directory, path
        own.button.text = self.text or path
        emit(self, "directorySelected(QString)", path)
        if changed:
            emit(self, "directoryChanged(QString)", path)

    directory = prop("QString", lambda self: state(self).directory, _set_directory)
    caption = stored("QString", "caption", "")
    text = stored("QString", "text", "", lambda self: setattr(state(self).button, "text", self.text))
    options = stored("Options", "options", _DialogOption.ShowDirsOnly)

    def browse(self) -> None:
        """Asks for a directory."""
        path = QtWidgets.QFileDialog.getExistingDirectory(self, self.caption or "Select directory", self.directory)
        if path:
            self.directory = path


@offered("ctk", ("colorChanged(QColor)", "colorNameChanged(QString)"))
class ctkColorPickerButton(QtWidgets.QPushButton):
    """A button that shows a colour and asks for another."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(next((item for item in arguments if isinstance(item, QtWidgets.QWidget)), None))
        state(self).color = next((item for item in arguments if isinstance(item, QtGui.QColor)), QtGui.QColor(0, 0, 0))
        self.connect("clicked()", self.changeColor)
        self._show()

    def _show(self) -> None:
        pixmap = QtGui.QPixmap(16, 16)
        pixmap.fill(state(self).color)
        self.setIcon(QtGui.QIcon(pixmap))
        self.setText(raw(QtGui.QColor, "name")(state(self).color) if self.displayColorName else "")

    def _set_color(self, color: QtGui.QColor) -> None:
        if color == state(self).color:
            return
        state(self).color = QtGui.QColor(color)
        self._show()
        emit(self, "colorChanged(QColor)", state(self).color)

    color = prop("QColor", lambda self: state(self).color, _set_color)
    colorName = stored(
        "QString", "color_name", "", lambda self: emit(self, "colorNameChanged(QString)", self.colorName)
    )
    displayColorName = stored("bool", "display_name", True, _show)

    def setColor(self, color: QtGui.QColor) -> None:
        """Sets the colour."""
        self.color = color

    def setDisplayColorName(self, display: bool) -> None:
        """Shows or hides the colour's name."""
        self.displayColorName = display

    def changeColor(self) -> None:
        """Asks for a colour."""
        from . import qtlayer

        if not qtlayer.dialog_answers:
            raise RuntimeError("A colour dialog waits for an answer. Add it to slicer_standin.dialog_answers first.")
        self.color = qtlayer.dialog_answers.pop(0)


@offered("ctk")
class ctkSearchBox(QtWidgets.QLineEdit):
    """A line edit for searching."""

    showSearchIcon = stored("bool", "show_icon", False)


@offered("ctk")
class ctkFittedTextBrowser(QtWidgets.QTextBrowser):
    """A text browser as high as its text, whose details may fold away."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.setVerticalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self.connect("textChanged()", self._fit)

    def _fit(self) -> None:
        document = self.document
        document.setTextWidth(max(self.width - 10, 50))
        self.setFixedHeight(int(document.size.height()) + 2 * self.frameWidth + 2)

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        """Fits the height to the new width."""
        QtWidgets.QTextBrowser.resizeEvent(self, event)
        if event.oldSize().width() != event.size().width():
            self._fit()

    def _show_text(self) -> None:
        teaser, details = getattr(state(self), "teaser", ""), getattr(state(self), "details", "")
        link = self.showDetailsText if self.collapsed else self.hideDetailsText
        body = teaser if self.collapsed else teaser + details
        self.setHtml(f'{body} <a href="#">{link}</a>')

    collapsed = stored("bool", "collapsed", True, _show_text)
    showDetailsText = stored("QString", "show_details", "Show details...", _show_text)
    hideDetailsText = stored("QString", "hide_details", "Hide details.", _show_text)
    disableMouseScroll = stored("bool", "no_scroll", False)

    def setCollapsibleText(self, text: str) -> None:
        """Sets text whose part after the first line folds away."""
        teaser, _, details = text.partition("\n")
        state(self).teaser, state(self).details = teaser, details
        self._show_text()

    def collapsibleText(self) -> str:
        """Returns the whole text."""
        return getattr(state(self), "teaser", "") + "\n" + getattr(state(self), "details", "")


@offered("ctk")
class ctkMessageBox(QtWidgets.QMessageBox):
    """A message box that can be told not to come again."""

    dontShowAgain = stored("bool", "dont_show", False)
    dontShowAgainVisible = stored("bool", "dont_show_visible", False)
    dontShowAgainSettingsKey = stored("QString", "dont_show_key", "")

    def setDontShowAgain(self, value: bool) -> None:
        """Ticks or clears the box that suppresses the message from now on."""
        self.dontShowAgain = value


@offered("ctk")
class ctkWidgetsUtils(QtCore.QObject):
    """Functions on widgets."""

    @staticmethod
    def grabWidget(widget: QtWidgets.QWidget, *rectangle: Any) -> QtGui.QImage:
        """Returns a picture of a widget."""
        return widget.grab().toImage()
