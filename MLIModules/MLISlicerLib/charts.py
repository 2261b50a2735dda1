"""Tables of the scene and the charts that show their columns, as bars or as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import slicer
import vtk

from .nodes import node_or_new

#: Colours of the series of a chart.
_PALETTE = ((0.22, 0.49, 0.72), (0.90, 0.55, 0.18), (0.30, 0.65, 0.42), (0.58, 0.40, 0.74))


def chart_or_new(given: Any, name: str) -> slicer.vtkMRMLPlotChartNode:
    """As :func:`node_or_new` for a chart; the series that the given one showed are removed from the scene."""
    chart = node_or_new(given, "vtkMRMLPlotChartNode", name)
    remove_series(chart)
    return chart


def remove_series(chart: slicer.vtkMRMLPlotChartNode) -> None:
    """Remove the series that a chart shows from the scene."""
    for old in [chart.GetNthPlotSeriesNode(n) for n in range(chart.GetNumberOfPlotSeriesNodes())]:
        slicer.mrmlScene.RemoveNode(old)


def fill_table(node: slicer.vtkMRMLTableNode, columns: Mapping[str, Sequence[str] | Sequence[float]]) -> None:
    """Replace a table's columns: texts become string columns, numbers double columns."""
    table = vtk.vtkTable()
    for name, values in columns.items():
        text = all(isinstance(value, str) for value in values)
        column = vtk.vtkStringArray() if text else vtk.vtkDoubleArray()
        column.SetName(name)
        for value in values:
            column.InsertNextValue(value if text else float(value))
        table.AddColumn(column)
    node.SetAndObserveTable(table)


def fill_bar_plot(
    chart: slicer.vtkMRMLPlotChartNode,
    table: slicer.vtkMRMLTableNode,
    columns: Mapping[str, slicer.vtkMRMLPlotSeriesNode],
    *,
    title: str,
    labels: str,
    y_title: str,
    y_range: tuple[float, float] | None = (0.0, 1.0),
) -> None:
    """Show columns of a table as bars beside each other.

    Args:
        chart: the chart.
        table: its numbers.
        columns: series node for each column to show.
        title: of the chart.
        labels: column with the text under each group of bars.
        y_title: of the vertical axis.
        y_range: of the vertical axis; None fits it to the numbers.
    """
    _show_columns(chart, table, columns)
    for series in columns.values():
        series.SetLabelColumnName(labels)
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeBar)
    _title(chart, title, "", y_title)
    chart.SetYAxisRangeAuto(y_range is None)
    if y_range is not None:
        chart.SetYAxisRange(*y_range)


def fill_line_plot(
    chart: slicer.vtkMRMLPlotChartNode,
    table: slicer.vtkMRMLTableNode,
    columns: Mapping[str, slicer.vtkMRMLPlotSeriesNode],
    *,
    x: str,
    title: str,
    y_title: str,
) -> None:
    """Show columns of a table as lines over another.

    Args:
        chart: the chart.
        table: its numbers.
        columns: series node for each column to show.
        x: the column along the horizontal axis, and its title.
        title: of the chart.
        y_title: of the vertical axis.
    """
    _show_columns(chart, table, columns)
    for series in columns.values():
        series.SetXColumnName(x)
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone)
        series.SetLineWidth(2)
    _title(chart, title, x, y_title)


def _show_columns(
    chart: slicer.vtkMRMLPlotChartNode,
    table: slicer.vtkMRMLTableNode,
    columns: Mapping[str, slicer.vtkMRMLPlotSeriesNode],
) -> None:
    """Let a chart show columns of a table, each in a colour of its own, and nothing else."""
    chart.RemoveAllPlotSeriesNodeIDs()
    for index, (name, series) in enumerate(columns.items()):
        series.SetName(name)
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetYColumnName(name)
        series.SetColor(*_PALETTE[index % len(_PALETTE)])
        chart.AddAndObservePlotSeriesNodeID(series.GetID())


def _title(chart: slicer.vtkMRMLPlotChartNode, title: str, x_title: str, y_title: str) -> None:
    chart.SetTitle(title)
    chart.SetXAxisTitle(x_title)
    chart.SetYAxisTitle(y_title)
