"""What is explained: classes, labels over regions, voxels and numbers, read from outputs written by hand."""

import pytest
import torch
from torch import nn

from MLILib.errors import BadInput
from MLILib.explanation import ClassScore, LabelSum, Output, Voxel
from MLILib.explanation.targets import held

#: Two images, two labels, 1 x 3 voxels: label 1 wins at the first two voxels of one, at the last of the other.
SCORES = torch.tensor([[[[0.0, 1.0, 5.0]], [[2.0, 4.0, 3.0]]], [[[7.0, 7.0, 1.0]], [[1.0, 2.0, 6.0]]]])


class TestScores:
    def test_a_class_score_is_its_column(self) -> None:
        assert ClassScore(2)(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist() == [3.0, 6.0]

    def test_a_label_is_summed_where_it_is_predicted(self) -> None:
        assert LabelSum(1)(SCORES).tolist() == [6.0, 6.0]

    def test_a_label_is_summed_over_a_given_region(self) -> None:
        region = torch.tensor([[0, 1, 3]])
        assert LabelSum(1, region)(SCORES).tolist() == [7.0, 8.0]

    @pytest.mark.parametrize("shape", [(2, 1, 3), (2, 1, 1, 3)])
    def test_each_image_may_have_its_region(self, shape: tuple[int, ...]) -> None:
        region = torch.tensor([1, 0, 0, 0, 0, 1]).reshape(shape)
        assert LabelSum(0, region)(SCORES).tolist() == [0.0, 1.0]

    def test_a_lone_channel_is_label_1_where_it_is_positive(self) -> None:
        assert LabelSum(1)(torch.tensor([[[-1.0, 2.0, 3.0]]])).tolist() == [5.0]

    def test_a_voxel_is_one_number(self) -> None:
        assert Voxel(0, (0, 2))(SCORES).tolist() == [5.0, 1.0]

    def test_a_regression_may_have_one_axis(self) -> None:
        assert Output()(torch.tensor([3.0, 4.0])).tolist() == [3.0, 4.0]

    def test_a_regression_may_have_several_numbers(self) -> None:
        assert Output(1)(torch.tensor([[3.0, 4.0]])).tolist() == [4.0]

    def test_no_gradient_flows_through_the_choice_of_the_region(self) -> None:
        scores = SCORES.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(LabelSum(1)(scores).sum(), scores)
        assert gradient[:, 1, 0].tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        assert gradient[:, 0].abs().sum() == 0


class TestHeld:
    def test_the_region_stays_where_it_was_predicted(self) -> None:
        target = held(LabelSum(1), nn.Identity(), SCORES)
        assert target(SCORES.flip(1)).tolist() == [1.0, 1.0]

    def test_other_targets_stay_themselves(self) -> None:
        target = Voxel(0, (0, 0))
        assert held(target, nn.Identity(), SCORES) is target


class TestErrors:
    @pytest.mark.parametrize(
        ("target", "words"),
        [
            (LabelSum(2), "no label 2. It has 2"),
            (LabelSum(-1), "no label -1"),
            (LabelSum(1, torch.ones(3, 3)), "another grid"),
            (LabelSum(1, torch.zeros(1, 3)), "empty"),
            (Voxel(1, (0, 3)), "no voxel (0, 3) in a grid of 1 x 3"),
            (Voxel(1, (0, -1)), "outside"),
            (Voxel(1, (0,)), "outside"),
            (ClassScore(0), "cannot be read"),
            (Output(0), "cannot be read"),
        ],
    )
    def test_what_does_not_fit_a_segmentation_is_said(self, target: LabelSum, words: str) -> None:
        with pytest.raises(BadInput) as caught:
            target(SCORES)
        assert words in str(caught.value)

    @pytest.mark.parametrize("target", [ClassScore(2), Output(2), LabelSum(0), Voxel(0, ())])
    def test_what_does_not_fit_a_classification_is_said(self, target: ClassScore) -> None:
        with pytest.raises(BadInput):
            target(torch.zeros(1, 2))

    def test_a_label_that_is_predicted_nowhere_in_one_image_is_an_error(self) -> None:
        with pytest.raises(BadInput, match="predicts no voxel of label 1"):
            LabelSum(1)(torch.cat([SCORES, torch.tensor([[[[1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]]]])]))
