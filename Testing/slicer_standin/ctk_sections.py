"""CTK's foldable sections and buttons: ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkExpandButton, ctkPushButton,
ctkMenuButton, ctkCheckablePushButton, ctkCheckBox.
"""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from .declare import offered, prop, state, stored
from .signals import emit

_NO_LIMIT = 16777215  # QWIDGETSIZE_MAX


class _Folding(QtCore.QObject):
    """Hides and shows the children of a foldable widget, and remembers which of them were hidden anyway."""

    def __init__(self, widget: QtWidgets.QWidget) -> None:
        super().__init__(widget)
        self.widget = widget
        self.collapsed = False
        self.hidden_by_others: dict[int, bool] = {}
        self._busy = False

    def _children(self) -> list[QtWidgets.QWidget]:
        return [
            child for child in self.widget.children() if isinstance(child, QtWidgets.QWidget) and not child.isWindow()
        ]

    def _hide(self, child: QtWidgets.QWidget, hidden: bool) -> None:
        self._busy = True
        child.setVisible(not hidden)
        if hidden:  # as in CTK: not an explicit hiding, so that one that follows is told apart
            child.setAttribute(QtCore.Qt.WidgetAttribute.WA_WState_ExplicitShowHide, False)
        self._busy = False

    def fold(self, collapsed: bool) -> None:
        """Hides all children, or shows those that were visible."""
        self.collapsed = collapsed
        for child in self._children():
            if collapsed:
                self.hidden_by_others[id(child)] = self._explicitly_hidden(child)
                child.installEventFilter(self)
                self._hide(child, True)
            else:
                child.removeEventFilter(self)
                self._hide(child, self.hidden_by_others.get(id(child), False))
        self.hidden_by_others = self.hidden_by_others if collapsed else {}

    def added(self, child: QtCore.QObject) -> None:
        """Hides a child that arrives while the widget is folded."""
        if self.collapsed and isinstance(child, QtWidgets.QWidget) and id(child) not in self.hidden_by_others:
            self.hidden_by_others[id(child)] = self._explicitly_hidden(child)
            child.installEventFilter(self)
            self._hide(child, True)

    def _explicitly_hidden(self, child: QtWidgets.QWidget) -> bool:
        return child.isHidden() and child.testAttribute(QtCore.Qt.WidgetAttribute.WA_WState_ExplicitShowHide)

    def eventFilter(self, watched: QtCore.QObject, event: QtCore.QEvent) -> bool:
        """Keeps a child hidden that someone shows while the widget is folded, and remembers who is hidden meanwhile."""
        if self.collapsed and not self._busy and event.type() == QtCore.QEvent.Type.ShowToParent:
            self.hidden_by_others[id(watched)] = False
            self._hide(watched, True)
        elif self.collapsed and not self._busy and event.type() == QtCore.QEvent.Type.HideToParent:
            self.hidden_by_others[id(watched)] = True
        return False


@offered("ctk", ("contentsCollapsed(bool)",))
class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A titled section whose contents fold away."""

    def __init__(self, *arguments: Any) -> None:
        parent = next((item for item in arguments if isinstance(item, QtWidgets.QWidget)), None)
        super().__init__(parent)
        state(self).folding = _Folding(self)
        for text in arguments:
            if isinstance(text, str):
                self.setText(text)
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Preferred)
        self.setContentsMargins(0, self._header_height(), 0, 0)
        self.setMinimumWidth(80)
        self.connect("toggled(bool)", self._on_toggled)

    collapsed = prop("bool", lambda self: state(self).folding.collapsed, lambda self, value: self.setChecked(not value))
    collapsedHeight = stored("int", "collapsed_height", 0)
    contentsFrameShape = stored("QFrame::Shape", "frame_shape", QtWidgets.QFrame.NoFrame)
    contentsFrameShadow = stored("QFrame::Shadow", "frame_shadow", QtWidgets.QFrame.Plain)
    contentsLineWidth = stored("int", "line_width", 1)
    contentsMidLineWidth = stored("int", "mid_line_width", 0)
    buttonTextAlignment = stored("Qt::Alignment", "text_alignment", QtCore.Qt.AlignLeft | QtCore.Qt.AlignVCenter)
    indicatorAlignment = stored("Qt::Alignment", "indicator_alignment", QtCore.Qt.AlignLeft | QtCore.Qt.AlignVCenter)
    flat = stored("bool", "flat", False)

    def _header_height(self) -> int:
        return self.fontMetrics().height() + 8

    def _on_toggled(self, checked: bool) -> None:
        folding = state(self).folding
        if folding.collapsed == (not checked):
            return
        folding.fold(not checked)
        limit = self._header_height() + self.collapsedHeight if folding.collapsed else _NO_LIMIT
        self.setMaximumHeight(limit)
        self.updateGeometry()
        emit(self, "contentsCollapsed(bool)", folding.collapsed)

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        """Children that are added while the section is folded are hidden."""
        if event.type() == QtCore.QEvent.Type.ChildPolished and "folding" in vars(state(self)):
            state(self).folding.added(event.child())

    def hitButton(self, position: QtCore.QPoint) -> bool:
        """Only the title folds and unfolds."""
        return position.y() < self._header_height()

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        """Draws the title bar with its triangle."""
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width, self._header_height())
        option.state |= (
            QtWidgets.QStyle.StateFlag.State_Sunken if self.down else QtWidgets.QStyle.StateFlag.State_Raised
        )
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, option)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(8, (self._header_height() - 9) // 2, 9, 9)
        element = QtWidgets.QStyle.PrimitiveElement
        painter.drawPrimitive(
            element.PE_IndicatorArrowRight if self.collapsed else element.PE_IndicatorArrowDown, arrow
        )
        text = option.rect.adjusted(24, 0, -4, 0)
        painter.drawItemText(
            text,
            int(QtCore.Qt.AlignLeft | QtCore.Qt.AlignVCenter | QtCore.Qt.TextShowMnemonic),
            self.palette,
            self.enabled,
            self.text,
            QtGui.QPalette.ColorRole.ButtonText,
        )
        painter.end()


@offered("ctk")
class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    """A group box whose contents fold away with its check box."""

    def __init__(self, *arguments: Any) -> None:
        parent = next((item for item in arguments if isinstance(item, QtWidgets.QWidget)), None)
        super().__init__(parent)
        state(self).folding = _Folding(self)
        for text in arguments:
            if isinstance(text, str):
                self.setTitle(text)
        self.setCheckable(True)
        self.setChecked(True)
        self.connect("toggled(bool)", self._on_toggled)

    collapsed = prop("bool", lambda self: state(self).folding.collapsed, lambda self, value: self.setChecked(not value))
    collapsedHeight = stored("int", "collapsed_height", 14)

    def _on_toggled(self, checked: bool) -> None:
        folding = state(self).folding
        if folding.collapsed == (not checked):
            return
        folding.fold(not checked)
        title = self.fontMetrics().height() + 6
        self.setMaximumHeight(title + self.collapsedHeight if folding.collapsed else _NO_LIMIT)
        self.updateGeometry()

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        """Children that are added while the box is folded are hidden."""
        if event.type() == QtCore.QEvent.Type.ChildPolished and "folding" in vars(state(self)):
            state(self).folding.added(event.child())


@offered("ctk")
class ctkExpandButton(QtWidgets.QToolButton):
    """A small button with an arrow that stands for expanded or not."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.setCheckable(True)
        self.connect("toggled(bool)", self._show_arrow)
        self._show_arrow(False)

    mirrorOnExpand = stored("bool", "mirror", True, lambda self: self._show_arrow(self.checked))
    orientation = stored(
        "Qt::Orientation", "orientation", QtCore.Qt.Horizontal, lambda self: self._show_arrow(self.checked)
    )

    def _show_arrow(self, expanded: bool) -> None:
        mirrored = expanded and self.mirrorOnExpand
        horizontal = self.orientation == QtCore.Qt.Horizontal
        arrows = ("LeftArrow", "RightArrow") if horizontal else ("UpArrow", "DownArrow")
        self.arrowType = getattr(QtCore.Qt, arrows[0] if mirrored else arrows[1])


@offered("ctk")
class ctkPushButton(QtWidgets.QPushButton):
    """A push button with alignment of its own."""

    buttonTextAlignment = stored("Qt::Alignment", "text_alignment", QtCore.Qt.AlignHCenter | QtCore.Qt.AlignVCenter)
    iconAlignment = stored("Qt::Alignment", "icon_alignment", QtCore.Qt.AlignLeft | QtCore.Qt.AlignVCenter)
    elideMode = stored("Qt::TextElideMode", "elide", QtCore.Qt.ElideNone)


@offered("ctk")
class ctkMenuButton(QtWidgets.QPushButton):
    """A push button whose arrow opens a menu."""


@offered("ctk")
class ctkCheckBox(QtWidgets.QCheckBox):
    """A check box with an icon in the place of its tick."""

    indicatorIcon = stored("QIcon", "icon", QtGui.QIcon())
    indicatorIconSize = stored("QSize", "icon_size", QtCore.QSize())


@offered("ctk", ("checkBoxToggled(bool)", "checkStateChanged(Qt::CheckState)"))
class ctkCheckablePushButton(ctkPushButton):
    """A push button with a check box beside its text."""

    indicatorAlignment = stored("Qt::Alignment", "indicator", QtCore.Qt.AlignLeft | QtCore.Qt.AlignVCenter)
    checkBoxUserCheckable = stored("bool", "user_checkable", True)
    checkBoxControlsButton = stored("bool", "controls_button", True)
    checkBoxControlsButtonToggleState = stored("bool", "controls_toggle", True)

    def _set_check_state(self, value: Any) -> None:
        before = self.checkState
        state(self).check_state = QtCore.Qt.CheckState(int(value))
        if before != state(self).check_state:
            emit(self, "checkStateChanged(Qt::CheckState)", state(self).check_state)
            emit(self, "checkBoxToggled(bool)", state(self).check_state == QtCore.Qt.Checked)

    checkState = prop(
        "Qt::CheckState", lambda self: getattr(state(self), "check_state", QtCore.Qt.Unchecked), _set_check_state
    )
