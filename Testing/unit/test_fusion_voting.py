"""Votes against SimpleITK's LabelVoting, against loops that follow the definitions, and in closed forms."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from rater_maps import drawn, images, people, truth

from MLILib.errors import BadInput
from MLILib.fusion.raters import raters
from MLILib.fusion.voting import global_weights, local, majority, weighted

SHAPES = [(5, 7, 8), (11, 13)]


def pictures(shape: tuple[int, ...], count: int, seed: int = 3) -> tuple[npt.NDArray[np.float32], ...]:
    """A target, and atlases' images that look less and less like it, in other units."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=shape)
    warped = [100 + 7 * i + (1 + i) * (target + 0.3 * i * rng.normal(size=shape)) for i in range(count)]
    return target.astype(np.float32), np.stack(warped).astype(np.float32)


class TestMajority:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("labels", "count"), [(1, 5), (1, 4), (3, 5), (37, 7), (2, 1)])
    def test_is_label_voting(self, shape: tuple[int, ...], labels: int, count: int) -> None:
        """Where SimpleITK is undecided there is a tie, and we take the lowest of the labels that have most votes."""
        stack = drawn(shape, labels, np.linspace(0.3, 0.6, count).tolist())
        method = sitk.LabelVotingImageFilter()
        method.SetLabelForUndecidedPixels(999)
        expected = sitk.GetArrayFromImage(method.Execute(images(stack)))
        found = majority(people(stack))
        values = people(stack).values
        decided = expected != 999
        np.testing.assert_array_equal(values[found.indices][decided], expected[decided])
        assert found.ties == np.count_nonzero(~decided)
        for place in zip(*np.nonzero(~decided), strict=True):
            votes = np.bincount(stack[(slice(None), *place)], minlength=labels + 1)
            assert values[found.indices[place]] == np.flatnonzero(votes == votes.max())[0]

    @pytest.mark.parametrize("shape", SHAPES)
    def test_weights_and_shares(self, shape: tuple[int, ...]) -> None:
        stack = drawn(shape, 3)
        weights = [0.3, 0.0, 1.5, 0.7, 0.6]
        found = majority(people(stack), weights=weights, probabilities=True)
        assert found.probabilities is not None
        for place in np.ndindex(shape):
            shares = np.bincount(stack[(slice(None), *place)], weights, minlength=4) / sum(weights)
            np.testing.assert_allclose(found.probabilities[(slice(None), *place)], shares, atol=1e-7)
        np.testing.assert_array_equal(found.indices, found.probabilities.argmax(axis=0))

    def test_ties_go_to_the_lowest_value(self) -> None:
        """Two say 5, two say 9: 5; two say nothing, two say 9: background."""
        stack = np.array([[[5, 0, 9]], [[5, 0, 9]], [[9, 9, 9]], [[9, 9, 5]]], dtype=np.uint16)
        people_ = raters([sitk.GetImageFromArray(one) for one in stack])
        found = majority(people_)
        assert people_.values[found.indices].tolist() == [[5, 0, 9]]
        assert found.ties == 2
        assert "2 voxels" in found.notes[0]

    def test_one_rater_is_right(self) -> None:
        stack = drawn((5, 7, 8), 3, [0.2])
        found = majority(people(stack), probabilities=True)
        np.testing.assert_array_equal(found.indices, stack[0])
        assert found.ties == 0

    @pytest.mark.parametrize("weights", [[1.0, 2.0], [0.0] * 5, [1, 1, 1, 1, -1], [1, 1, 1, 1, np.nan]])
    def test_bad_weights(self, weights: list[float]) -> None:
        with pytest.raises(BadInput, match="do not fit"):
            majority(people(drawn((5, 7, 8))), weights=weights)


class TestWeighted:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
    def test_weights_follow_the_correlation(self, shape: tuple[int, ...], power: float) -> None:
        target, warped = pictures(shape, 4)
        region = tuple(slice(1, n - 1) for n in shape)
        r = [np.corrcoef(target[region].ravel(), one[region].ravel())[0, 1] for one in warped]
        expected = np.maximum(1 - np.array(r), 1e-3) ** -power
        np.testing.assert_allclose(global_weights(target, warped, region, power=power), expected / expected.sum())

    def test_units_do_not_matter(self) -> None:
        target, warped = pictures((5, 7, 8), 4)
        scaled = (warped * np.array([2.0, 0.1, 50.0, 3.0])[:, None, None, None] - 40).astype(np.float32)
        np.testing.assert_allclose(global_weights(target, warped), global_weights(target, scaled), rtol=1e-4)

    def test_image_without_contrast(self) -> None:
        target, warped = pictures((5, 7, 8), 2)
        warped[1] = 12.0
        found = global_weights(target, warped, power=1.0)
        assert found[1] / found[0] == pytest.approx(1e-3, rel=1e-6)  # correlations 0 and 1: 1 against 1 / 1e-3
        np.testing.assert_allclose(global_weights(np.zeros_like(target), warped), [0.5, 0.5])

    def test_vote_is_the_majority_with_these_weights(self) -> None:
        stack = drawn((5, 7, 8), 2)
        target, warped = pictures((5, 7, 8), 5)
        weights = global_weights(target, warped, people(stack).box(5))
        expected = majority(people(stack), weights=weights.tolist(), probabilities=True)
        found = weighted(people(stack), target, warped, probabilities=True)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
        np.testing.assert_array_equal(found.weights, weights)

    def test_an_atlas_that_is_the_target_wins(self) -> None:
        right = truth((5, 7, 8), 2)
        stack = np.stack([right, *drawn((5, 7, 8), 2, [0.9] * 4)])
        target, warped = pictures((5, 7, 8), 5)
        warped[1:] = np.random.default_rng(0).normal(size=warped[1:].shape)
        np.testing.assert_array_equal(weighted(people(stack), target, warped).indices, right)

    def test_voxels_that_are_no_numbers(self) -> None:
        target, warped = pictures((5, 7, 8), 5)
        warped[3, 0, 0, 0] = np.nan
        with pytest.raises(BadInput, match="image of the atlas 4 has voxels that are not numbers"):
            weighted(people(drawn((5, 7, 8))), target, warped)


def by_definition(
    stack: npt.NDArray, target: npt.NDArray, warped: npt.NDArray, radius: int, power: float
) -> npt.NDArray[np.float64]:
    """Shares of the locally weighted vote, voxel by voxel, patch by patch: (levels, ...)."""
    shape, levels = target.shape, int(stack.max()) + 1
    disputed = (stack != stack[0]).any(axis=0)
    out = np.stack([stack[0] == level for level in range(levels)]).astype(np.float64)
    at = np.argwhere(disputed)
    box = tuple(
        slice(max(low - radius, 0), min(high + radius + 1, n))
        for low, high, n in zip(at.min(axis=0), at.max(axis=0), shape, strict=True)
    )
    spread = [image[box].astype(np.float64).var() for image in (target, *warped)]
    for place in map(tuple, at):
        patch = tuple(slice(max(x - radius, 0), x + radius + 1) for x in place)
        ours = target[patch].astype(np.float64)
        weights = []
        for image, own in zip(warped, spread[1:], strict=True):
            theirs = image[patch].astype(np.float64)
            cov = ((ours - ours.mean()) * (theirs - theirs.mean())).mean()
            r = cov / np.sqrt((ours.var() + 1e-3 * spread[0]) * (theirs.var() + 1e-3 * own))
            weights.append(max(1 - r, 1e-3) ** -power)
        out[(slice(None), *place)] = np.bincount(stack[(slice(None), *place)], weights, levels) / sum(weights)
    return out


class TestLocal:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("radius", "power"), [(1, 1.0), (2, 2.0), (4, 3.0)])
    def test_is_the_definition(self, shape: tuple[int, ...], radius: int, power: float) -> None:
        stack = drawn(shape, 3)
        target, warped = pictures(shape, 5)
        expected = by_definition(stack, target, warped, radius, power)
        found = local(people(stack), target, warped, patch_radius=radius, power=power, probabilities=True)
        assert found.probabilities is not None
        np.testing.assert_allclose(found.probabilities, expected, atol=2e-5)
        clear = np.sort(expected, axis=0)
        clear = clear[-1] - clear[-2] > 1e-4
        np.testing.assert_array_equal(found.indices[clear], expected.argmax(axis=0)[clear])

    def test_in_small_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stack = drawn((5, 7, 8), 3)
        target, warped = pictures((5, 7, 8), 5)
        expected = local(people(stack), target, warped, probabilities=True)
        monkeypatch.setattr("MLILib.fusion.voting._BLOCK", 7)
        found = local(people(stack), target, warped, probabilities=True)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-7)

    def test_trusts_the_atlas_that_looks_like_the_target_there(self) -> None:
        """One atlas is the target on the left and noise elsewhere, another on the right: each wins there."""
        rng = np.random.default_rng(0)
        target = rng.normal(size=(12, 12, 40)).astype(np.float32)
        warped = rng.normal(size=(2, 12, 12, 40)).astype(np.float32)
        warped[0, ..., :20] = target[..., :20]
        warped[1, ..., 20:] = target[..., 20:]
        stack = np.zeros((2, 12, 12, 40), dtype=np.uint16)
        stack[0], stack[1] = 1, 2
        found = local(people(stack), target, warped)
        assert (found.indices[..., :17] == 1).all()
        assert (found.indices[..., 23:] == 2).all()

    def test_without_contrast_it_is_the_majority(self) -> None:
        stack = drawn((5, 7, 8), 3)
        flat = np.full((5, 7, 8), 3.0, dtype=np.float32)
        expected = majority(people(stack), probabilities=True)
        found = local(people(stack), flat, pictures((5, 7, 8), 5)[1], probabilities=True)
        np.testing.assert_array_equal(found.indices, expected.indices)
        assert found.ties == expected.ties
        np.testing.assert_allclose(found.weights, 0.2, atol=1e-6)

    def test_raters_who_agree(self) -> None:
        stack = np.stack([truth((5, 7, 8), 3)] * 3)
        found = local(people(stack), *pictures((5, 7, 8), 3), probabilities=True)
        np.testing.assert_array_equal(found.indices, stack[0])
        np.testing.assert_allclose(found.weights, 1 / 3)

    def test_one_rater(self) -> None:
        stack = drawn((5, 7, 8), 3, [0.2])
        np.testing.assert_array_equal(local(people(stack), *pictures((5, 7, 8), 1)).indices, stack[0])

    def test_patch_of_one_voxel(self) -> None:
        with pytest.raises(BadInput, match="patch of one voxel"):
            local(people(drawn((5, 7, 8))), *pictures((5, 7, 8), 5), patch_radius=0)

    def test_images_of_another_shape(self) -> None:
        with pytest.raises(ValueError, match="shape"):
            local(people(drawn((5, 7, 8))), *pictures((5, 7, 9), 5))
