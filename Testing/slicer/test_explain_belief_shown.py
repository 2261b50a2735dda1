"""Whether a method can be believed, as MLI Explainability shows it: the table, the curves and the badges."""

import pytest
import slicer
from clicks import choose, errors, finish
from explain_panel import ready


@pytest.fixture
def panel(explain_panel):
    return explain_panel


class TestBelief:
    def test_methods_are_tested_beside_the_controls(self, panel, standin, pictures):
        ready(panel)
        node = panel._parameterNode
        node.compare = ["guided-backpropagation", "activations"]
        panel.ui.beliefCollapsibleButton.collapsed = False
        assert "Activation maps" not in panel.ui.beliefButton.toolTip
        panel.ui.beliefButton.click()
        assert panel.ui.applyButton.text == "Cancel"
        finish(panel, standin)
        assert errors(standin) == []
        table = node.beliefTable
        headings = [table.GetColumnName(c) for c in range(table.GetNumberOfColumns())]
        assert headings == ["Method", "Verdict", "Left", "Like edges", "Deletion", "Insertion", "Under noise"]
        rows = [[table.GetCellText(row, c) for c in (0, 1, 4)] for row in range(table.GetNumberOfRows())]
        assert rows == [
            ["Integrated-gradients", "reacts to the model", "0.200"],
            ["Guided-backpropagation", "edge detector", "0.300"],
            ["random map", "control", "0.500"],
            ["edge detector", "control", "0.500"],
        ]
        assert panel.ui.badgeLabel.text == "reacts to the model"
        assert "integrated-gradients was looked at." in panel.ui.badgeLabel.toolTip
        choose(panel.ui.methodComboBox, "guided-backpropagation")
        assert panel.ui.badgeLabel.text == "edge detector"
        node.model = "tiny-second"
        assert panel.ui.badgeLabel.text == "not tested"  # it was another model
        node.model = "tiny"
        selection = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        for button, chart, series in (
            (panel.ui.showDeletionButton, node.deletionChart, 4),
            (panel.ui.showInsertionButton, node.insertionChart, 4),
            (panel.ui.showCascadeButton, node.cascadeChart, 2),
        ):
            button.click()
            assert selection.GetActivePlotChartID() == chart.GetID()
            assert chart.GetNumberOfPlotSeriesNodes() == series
        assert "One image says little." in panel.ui.beliefBrowser.plainText
        standin.check_slots()
        standin.picture.grab(panel, pictures / "MLIExplainability_belief.png", width=420)

    def test_verdicts_of_further_methods_are_added(self, panel, standin):
        ready(panel)
        panel.ui.beliefButton.click()
        finish(panel, standin)
        choose(panel.ui.methodComboBox, "guided-backpropagation")
        panel.ui.beliefButton.click()
        finish(panel, standin)
        found = panel.badgesOf("tiny")
        assert found["integrated-gradients"]["badge"] == "reacts to the model"
        assert found["guided-backpropagation"]["badge"] == "edge detector"

    def test_a_method_without_a_map_cannot_be_tested(self, panel):
        ready(panel)
        choose(panel.ui.methodComboBox, "inversion")
        assert not panel.ui.beliefButton.enabled
        assert "None of the chosen methods can be tested" in panel.ui.beliefButton.toolTip
