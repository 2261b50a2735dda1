"""How a model in training fares, in a panel: live curves, the picture drawn last, a plot, and how to stop it.

The .ui file names the widgets: trainButton, stopTrainingButton, trainPlotButton, trainCurveLabel, trainSamplesLabel,
trainResultBrowser.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MLILib.errors import MLIError

from . import charts, curve_picture, display, install, nodes, training_job
from .jobs import Point, Status, Steps
from .training_job import Trained

_CURVE_HEIGHT, _LEAST_WIDTH = 120, 240


class TrainingView:
    """Mixin for a :class:`MLISlicerLib.widget.MLIWidget` that trains models."""

    #: Title of the horizontal axis of the plot.
    CURVE_AXIS = "Step"
    #: What the worker is asked for.
    TRAIN_TASK = ""

    ui: Any
    job: Any
    moduleName: Any
    _parameterNode: Any
    startJob: Any
    showError: Any
    onModelAdded: Any
    moduleTitle: Any
    tellErrors: Any
    say: Any

    # -- what a module adds

    @abc.abstractmethod
    def whatTrainingMisses(self) -> str:
        """What must be chosen before Train can be pressed, a sentence; "" when nothing is."""

    @abc.abstractmethod
    def trainingSteps(self, replace: bool) -> Steps:
        """The steps of the training that is asked for; `replace` allows to replace a model of the user's."""

    @abc.abstractmethod
    def trainingSummary(self, trained: Trained) -> str:
        """What came of a training, HTML."""

    @abc.abstractmethod
    def showTrainingChoices(self) -> None:
        """Show what belongs to the choices of the training."""

    # -- what is shown

    def setupTrainingView(self) -> None:
        """Connect the widgets, and hide what is seen of a training alone."""
        self._training = ""
        self._trained = ""
        self._points: tuple[Point, ...] = ()
        self._shownSamples = 0
        self._chart: Any = None
        self.ui.trainButton.connect("clicked(bool)", self.onTrainButton)
        self.ui.stopTrainingButton.connect("clicked(bool)", self.onStopTrainingButton)
        self.ui.trainPlotButton.connect("clicked(bool)", self.onTrainPlotButton)
        for name in ("stopTrainingButton", "trainPlotButton", "trainCurveLabel", "trainSamplesLabel"):
            getattr(self.ui, name).visible = False
        self.ui.trainResultBrowser.visible = False

    def beginTraining(self, name: str) -> None:
        """A training of that name begins."""
        self._training = self._trained = name
        self._points, self._shownSamples, self._chart = (), 0, None
        for label in ("trainCurveLabel", "trainSamplesLabel", "trainResultBrowser"):
            getattr(self.ui, label).visible = False

    def onTrainingProgress(self, status: Status) -> None:
        """Show the curves and the picture drawn last."""
        if not self._training:
            return
        ui = self.ui
        width = max(_LEAST_WIDTH, ui.trainButton.parent().width - 20)
        if len(status.curve) != len(self._points):
            self._points = status.curve
            byCurve = sorted(self._points, key=lambda point: self.curveOrder(point.stage))
            ui.trainCurveLabel.setPixmap(curve_picture.draw(byCurve, width, _CURVE_HEIGHT))
            ui.trainCurveLabel.visible = ui.trainPlotButton.visible = True
            if self._chart is not None and self._chart.GetScene() is not None:
                fill_chart(self._chart, self._points, self._training, self.CURVE_AXIS)
        path, number = status.samples
        if number != self._shownSamples and Path(path).is_file():
            self._shownSamples = number
            picture = qt.QPixmap(path)
            ui.trainSamplesLabel.setPixmap(
                picture.scaledToWidth(min(picture.width(), width), qt.Qt.SmoothTransformation)
            )
            ui.trainSamplesLabel.visible = True

    def curveOrder(self, stage: str) -> Any:
        """What curves are drawn in order of, from their names."""
        return stage

    def onTrainPlotButton(self, checked: bool = False) -> None:
        """Show the curves as a plot of Slicer's, which goes on growing."""
        self._chart = charts.chart_or_new(self._chart, _("{name} training").format(name=self._trained))
        fill_chart(self._chart, self._points, self._trained, self.CURVE_AXIS)
        display.show_plot(self._chart)

    def showTraining(self) -> None:
        """Show what belongs to the choices, and whether a training can begin or go on."""
        node, ui = self._parameterNode, self.ui
        if node is None:
            return
        self.showTrainingChoices()
        missing, training = self.whatTrainingMisses(), bool(self._training)
        ui.trainButton.enabled = self.job is None and not missing
        resumes = not missing and not training and training_job.can_resume(self.TRAIN_TASK, node.trainName)
        ui.trainButton.text = _("Go on training") if resumes else _("Train")
        ui.trainButton.toolTip = missing or _("Train a model. This can take hours; Slicer can be used meanwhile.")
        ui.stopTrainingButton.visible = training
        ui.trainPlotButton.visible = bool(self._points)

    # -- the job

    def onTrainButton(self, checked: bool = False) -> None:
        """Train, or go on where a training of that name was stopped."""
        if self.job is not None or self.whatTrainingMisses():
            return
        name = self._parameterNode.trainName
        replace = training_job.is_taken(name)
        question = _("You already have a model called '{name}'. Replace it?").format(name=name)
        if replace and not slicer.util.confirmYesNoDisplay(question, self.moduleTitle()):
            return
        with self.tellErrors():
            install.ensure(self.moduleName)
            steps = self.trainingSteps(replace)
            self.beginTraining(name)
            self.startJob(steps, self.onTrained, self.onTrainingFailed)
            self.showTraining()

    def onStopTrainingButton(self, checked: bool = False) -> None:
        """End the training soon, with the best weights so far."""
        training_job.stop(self.TRAIN_TASK, self._training)
        self.ui.stopTrainingButton.enabled = False

    def onTrained(self, trained: Trained) -> None:
        """Offer the model, and say how it was."""
        self._endTraining()
        self.onModelAdded(trained.name)
        self.ui.trainResultBrowser.setHtml(self.trainingSummary(trained))
        self.ui.trainResultBrowser.visible = True
        self.showTraining()

    def onTrainingFailed(self, error: MLIError) -> None:
        """Tell why; what was learned until the last checkpoint is kept."""
        self._endTraining()
        self.showError(error)

    def onCancelled(self) -> None:
        """Called when a cancelled job has ended."""
        name = self._training
        self._endTraining()
        super().onCancelled()  # type: ignore[misc]
        if name and training_job.can_resume(self.TRAIN_TASK, name):
            self.say(_("Stopped. 'Go on training' continues from the last checkpoint."))

    def _endTraining(self) -> None:
        self._training = ""
        self.ui.stopTrainingButton.enabled = True
        self.showTraining()


def fill_chart(chart: slicer.vtkMRMLPlotChartNode, points: Sequence[Point], name: str, axis: str) -> None:
    """Show the curves of a training, where all of them are known.

    Args:
        chart: whose series are used again where it has some.
        points: of all curves.
        name: of the model.
        axis: title of the horizontal axis.
    """
    curves: dict[str, dict[int, float]] = {}
    for point in points:
        curves.setdefault(point.stage, {})[point.iteration] = point.value
    places = sorted(set().union(*curves.values())) if curves else []
    shown = [chart.GetNthPlotSeriesNode(index) for index in range(chart.GetNumberOfPlotSeriesNodes())]
    table = shown[0].GetTableNode() if shown else None
    table = nodes.node_or_new(table, "vtkMRMLTableNode", _("{name} training").format(name=name))
    nan = float("nan")
    columns = {stage: [curve.get(place, nan) for place in places] for stage, curve in curves.items()}
    charts.fill_table(table, {axis: [float(place) for place in places], **columns})
    series = {
        stage: shown[index] if index < len(shown) else nodes.node_or_new(None, "vtkMRMLPlotSeriesNode", stage)
        for index, stage in enumerate(columns)
    }
    charts.fill_line_plot(chart, table, series, x=axis, title=_("Training of {name}").format(name=name), y_title="")
