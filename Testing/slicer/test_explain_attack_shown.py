"""The attack in MLI Explainability: before, after and what was added, the slider that it follows, and its records."""

import json

import numpy as np
import pytest
import slicer
from clicks import errors, finish
from explain_panel import composite, ready, record
from scenes import add_segmentation, add_volume


@pytest.fixture
def panel(explain_panel):
    return explain_panel


class TestAttack:
    def attack(self, panel, standin):
        panel.ui.attackButton.click()
        finish(panel, standin)

    def test_before_after_and_what_was_added(self, panel, standin, pictures):
        volume = ready(panel)
        panel.ui.attackCollapsibleButton.collapsed = False
        assert panel.ui.attackBrowser.isHidden()
        assert panel.ui.beforeButton.isHidden()
        panel.ui.epsilonSlider.value = 3.0
        self.attack(panel, standin)
        assert errors(standin) == []
        node = panel._parameterNode
        assert set(np.unique(slicer.util.arrayFromVolume(node.attackedVolume))) == {103.0}
        assert set(np.unique(slicer.util.arrayFromVolume(node.attackDifference))) == {3.0}
        names = [node.attackAfter.GetSegmentation().GetNthSegment(n).GetName() for n in range(2)]
        assert names == ["anterior", "posterior"]
        red = composite("Red")
        assert red.GetBackgroundVolumeID() == node.attackedVolume.GetID()
        assert node.attackAfter.GetDisplayNode().GetVisibility()
        assert not node.attackBefore.GetDisplayNode().GetVisibility()
        panel.ui.beforeButton.click()
        assert red.GetBackgroundVolumeID() == volume.GetID()
        assert node.attackBefore.GetDisplayNode().GetVisibility()
        assert not panel.ui.afterButton.checked
        panel.ui.addedButton.click()
        assert red.GetForegroundVolumeID() == node.attackDifference.GetID()
        panel.ui.attackSideBySideButton.click()
        assert composite("MLI2").GetBackgroundVolumeID() == node.attackedVolume.GetID()
        assert composite("MLI3").GetForegroundVolumeID() == node.attackDifference.GetID()
        first = slicer.app.layoutManager().sliceWidget("MLI1").mrmlSliceNode()
        second = slicer.app.layoutManager().sliceWidget("MLI2").mrmlSliceNode()
        before, after = node.attackBefore.GetDisplayNode(), node.attackAfter.GetDisplayNode()
        assert before.IsDisplayableInView(first.GetID())
        assert not before.IsDisplayableInView(second.GetID())
        assert after.IsDisplayableInView(second.GetID())
        assert not after.IsDisplayableInView(first.GetID())
        panel.ui.attackSideBySideButton.click()
        assert after.IsDisplayableInView("vtkMRMLSliceNodeRed")
        panel.ui.showAttackButton.click()
        selection = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSelectionNode")
        assert selection.GetActivePlotChartID() == node.attackChart.GetID()
        text = panel.ui.attackBrowser.plainText
        assert "Dice 1.000 \N{RIGHTWARDS ARROW} 0.250 at epsilon 3" in text
        assert "Small changes add up." in text
        assert record(panel, "attackRecord")["epsilon"] == 3.0
        standin.check_slots()
        standin.picture.grab(panel, pictures / "MLIExplainability_attack.png", width=420)

    def test_the_next_attack_fills_the_same_nodes(self, panel, standin):
        ready(panel)
        self.attack(panel, standin)
        node = panel._parameterNode
        first, count = node.attackedVolume, slicer.mrmlScene.GetNumberOfNodes()
        panel.ui.epsilonSlider.value = 1.0
        self.attack(panel, standin)
        assert node.attackedVolume is first
        assert slicer.mrmlScene.GetNumberOfNodes() == count
        assert set(np.unique(slicer.util.arrayFromVolume(first))) == {101.0}
        node.inputVolume = add_volume("other", size=(20, 18, 16))
        self.attack(panel, standin)
        assert node.attackedVolume is not first
        assert set(np.unique(slicer.util.arrayFromVolume(first))) == {101.0}

    def test_an_attack_follows_the_slider(self, panel, standin):
        ready(panel)
        node = panel._parameterNode
        panel.ui.followCheckBox.checked = True
        panel.ui.epsilonSlider.value = 2.0
        assert panel.job is None  # there has been no attack yet
        self.attack(panel, standin)
        for value in (2.5, 3.0, 3.5):
            panel.ui.epsilonSlider.value = value

        def followed():
            return panel.job is None and json.loads(node.attackSummary)["epsilon"] == 3.5

        standin.process_events_until(followed, 20)
        standin.check_slots()
        assert set(np.unique(slicer.util.arrayFromVolume(node.attackedVolume))) == {103.5}

    def test_a_reference_says_what_is_right(self, panel, standin):
        volume = ready(panel)
        panel._parameterNode.attackReference = add_segmentation("expert", volume, ("anterior", "posterior"))
        panel._parameterNode.aim = "posterior"
        self.attack(panel, standin)
        assert errors(standin) == []
        asked = record(panel, "attackRecord")
        assert (asked["truth"], asked["aim"]) == ("expert.nrrd", "posterior")
        assert "right is the given labels" in panel.ui.attackBrowser.plainText

    def test_a_model_of_several_channels_is_not_attacked_here(self, panel):
        volume = ready(panel)
        node = panel._parameterNode
        node.model = "three-channels"
        node.inputVolume2 = node.inputVolume3 = volume
        assert panel.ui.applyButton.enabled
        assert not panel.ui.attackButton.enabled
        assert "mli attack" in panel.ui.attackButton.toolTip
