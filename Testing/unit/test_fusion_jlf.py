"""Joint label fusion beside a loop over patches written from the paper, beside ANTs', and on cases known by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import gaussian_filter, map_coordinates

from MLILib.errors import BadInput, Cancelled
from MLILib.fusion import jlf as module
from MLILib.fusion.jlf import jlf
from MLILib.fusion.patch_search import joint_error, solve
from MLILib.fusion.raters import Consensus, Raters, box_around
from MLILib.geometry import Grid
from MLILib.labels import label
from MLILib.progress import Progress


def stacked(stack: npt.NDArray) -> Raters:
    """Raters whose label values are the indices."""
    dims = stack.ndim - 1
    grid = Grid(stack.shape[:0:-1], (1.0,) * dims, (0.0,) * dims, tuple(np.eye(dims).ravel()))
    labels = tuple(label(value, str(value), {}) for value in range(1, int(stack.max()) + 1))
    return Raters(grid, tuple(f"atlas {i}" for i in range(len(stack))), labels, stack)


def scene(shape: tuple[int, ...], atlases: int = 4, seed: int = 0, radius: float = 4.0) -> tuple[npt.NDArray, ...]:
    """A target with two labels within `radius` of its middle, and atlases that are it, warped and noisy."""
    random = np.random.default_rng(seed)
    points = np.indices(shape).astype(float)
    middle = np.array(shape).reshape(-1, *[1] * len(shape)) / 2
    drawn = (((points - middle) ** 2).sum(0) < radius**2) * (1 + (points[-1] > middle[-1]))
    picture = gaussian_filter(random.normal(size=shape), 1.5)
    picture = picture / picture.std() + drawn
    images, labels = [], []
    for _ in range(atlases):
        warp = np.stack([gaussian_filter(random.normal(size=shape), 3) for _ in shape])
        where = points + 2.0 * warp / np.abs(warp).max()
        images.append(map_coordinates(picture, where, order=1, mode="nearest") + random.normal(size=shape) * 0.3)
        labels.append(map_coordinates(drawn, where, order=0, mode="nearest"))
    target = picture + random.normal(size=shape) * 0.3
    return target.astype(np.float32), np.stack(images).astype(np.float32), np.stack(labels).astype(np.uint8), drawn


def by_loops(
    stack: npt.NDArray,
    target: npt.NDArray,
    warped: npt.NDArray,
    patch: int,
    reach: int,
    beta: float,
    alpha: float,
    similarity: str,
) -> npt.NDArray:
    """Shares (labels + 1, ...) by the formulas of Wang 2013 and the vote of patches, one voxel after the other."""
    dims, count, shape = target.ndim, len(stack), target.shape
    offsets = list(itertools.product(range(-patch, patch + 1), repeat=dims))
    shifts = list(itertools.product(range(-reach, reach + 1), repeat=dims))
    said = [np.pad(one, patch + reach, mode="edge") for one in stack]

    def patches(image: npt.NDArray, margin: int) -> tuple[npt.NDArray, npt.NDArray]:
        """The patches around each voxel, as they are and normalised."""
        image = np.pad((image - image.mean()) / image.std(), patch + margin, mode="edge")
        found = sliding_window_view(image, (2 * patch + 1,) * dims).reshape(*(n + 2 * margin for n in shape), -1)
        centred = found - found.mean(-1, keepdims=True)
        return found, centred / np.maximum(found.std(-1, ddof=1, keepdims=True), 0.01)

    plain, normal = patches(target, 0)
    theirs = [patches(one, reach) for one in warped]
    support = np.zeros((int(stack.max()) + 1, *shape))
    for centre in np.ndindex(shape):
        moved, apart = [], []
        for images in theirs:
            near = tuple(slice(c, c + 2 * reach + 1) for c in centre)
            candidates, normal_candidates = (image[near].reshape(len(shifts), -1) for image in images)
            if similarity == "squares":
                best = int(np.argmin(((candidates - plain[centre]) ** 2).sum(1)))
            else:
                best = int(np.argmax(normal_candidates @ normal[centre]))
            moved.append(shifts[best])
            apart.append(np.abs(normal_candidates[best] - normal[centre]))
        errors = np.array([[a @ b / (len(offsets) - 1) for b in apart] for a in apart]) ** beta
        weights = np.linalg.solve(errors + alpha * np.eye(count), np.ones(count)).clip(min=0)
        for offset in offsets:
            voxel = tuple(np.add(centre, offset))
            if all(0 <= v < n for v, n in zip(voxel, shape, strict=True)):
                for one, shift, weight in zip(said, moved, weights / weights.sum(), strict=True):
                    source = tuple(v + k + patch + reach for v, k in zip(voxel, shift, strict=True))
                    support[(one[source], *voxel)] += weight
    return support / support.sum(0)


class TestOracle:
    @pytest.mark.parametrize(
        ("shape", "patch", "reach", "beta", "alpha", "similarity"),
        [
            ((22, 27), 2, 3, 2.0, 0.1, "correlation"),
            ((22, 27), 2, 3, 2.0, 0.1, "squares"),
            ((21, 18), 1, 2, 1.5, 0.01, "squares"),
            ((9, 11, 10), 1, 1, 2.0, 0.01, "correlation"),
            ((9, 11, 10), 1, 1, 2.0, 0.01, "squares"),
        ],
    )
    def test_is_the_paper_s_formulas(
        self, shape: tuple[int, ...], patch: int, reach: int, beta: float, alpha: float, similarity: str
    ) -> None:
        # The first label map differs from the others everywhere, so that the vote is open in the whole image, up to its
        # border, and all of it is brought to mean 0 and standard deviation 1, as the loop does.
        target, warped, stack, _ = scene(shape)
        stack[0] = 3 - stack[0]
        found = jlf(stacked(stack), target, warped, patch_radius=patch, search_radius=reach, beta=beta, alpha=alpha,
                    similarity=similarity, probabilities=True, device="cpu")  # fmt: skip
        wanted = by_loops(stack, target, warped, patch, reach, beta, alpha, similarity)
        open_vote = (stack != stack[0]).any(0)
        assert open_vote.mean() > 0.9
        assert found.probabilities is not None
        # Of two matches that are equally good but for 1e-6, float32 can take the other: in a voxel of a hundred.
        apart = np.abs(found.probabilities - wanted)[:, open_vote].max(0)
        assert np.quantile(apart, 0.99) < 1e-4
        assert (found.indices == wanted.argmax(0))[open_vote].mean() > 0.995

    @pytest.mark.parametrize("similarity", ["squares", "correlation"])
    def test_is_what_ants_computes(self, similarity: str) -> None:
        ants = pytest.importorskip("ants", reason="antspyx, an oracle of joint label fusion, is not installed")
        target, warped, stack, _ = scene((50, 46), atlases=5, radius=9.0)
        found = jlf(stacked(stack), target, warped, beta=2.0, alpha=0.05, similarity=similarity, probabilities=True,
                    device="cpu")  # fmt: skip
        # Images are brought to one scale in the box that holds all patches; to a standard deviation of 100 there,
        # because ANTs takes no patch's to be below 1.
        open_vote = (stack != stack[0]).any(0)
        box = box_around(open_vote, 2 + 2 + 3)
        pictures = [ants.from_numpy((one - one[box].mean()) / one[box].std() * 100) for one in (target, *warped)]
        theirs = ants.joint_label_fusion(
            pictures[0], ants.from_numpy(np.ones(target.shape, np.float32)), pictures[1:],
            label_list=[ants.from_numpy(one.astype(np.float32)) for one in stack],
            beta=2, rho=0.05, rad=2, r_search=3, usecor=similarity == "correlation",
        )  # fmt: skip
        assert open_vote.sum() > 50
        assert found.probabilities is not None
        for value, image in zip(theirs["segmentation_numbers"], theirs["probabilityimages"], strict=True):
            apart = np.abs(found.probabilities[value] - image.numpy())[open_vote]
            assert apart.max() < 1e-4


class TestWeights:
    def test_atlases_that_err_alike_share_a_weight(self) -> None:
        # (M + a I) w ~ 1 of M = [[e, e, 0], [e, e, 0], [0, 0, e]] has w1 = w2 = 1 / (2 e + a) and w3 = 1 / (e + a).
        e, a = 0.5, 0.1
        errors = torch.tensor([[[e, e, 0], [e, e, 0], [0, 0, e]]])
        wanted = np.array([1 / (2 * e + a), 1 / (2 * e + a), 1 / (e + a)])
        assert solve(errors, a)[0].numpy() == pytest.approx(wanted / wanted.sum(), rel=1e-6)

    def test_are_those_of_lapack_without_negative_ones(self) -> None:
        random = np.random.default_rng(1)
        apart = np.abs(random.normal(size=(200, 6, 27))) * random.uniform(0.2, 2, size=(200, 6, 1))
        errors = joint_error(torch.from_numpy(apart).float(), 2.0)
        exact = (np.einsum("vik,vjk->vij", apart, apart) / 26) ** 2 + 0.01 * np.eye(6)
        wanted = np.linalg.solve(exact, np.ones((200, 6, 1)))[..., 0]
        assert (wanted < 0).any()
        wanted = wanted.clip(min=0)
        assert solve(errors, 0.01).numpy() == pytest.approx(wanted / wanted.sum(1, keepdims=True), abs=1e-4)

    def test_one_atlas_twice_has_the_weight_of_one_without_regularisation(self) -> None:
        errors = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        found = solve(errors, 0.0)[0].numpy()
        assert found[2] == pytest.approx(0.5, abs=1e-4)

    def test_all_alike_where_nothing_is_known(self) -> None:
        assert solve(torch.zeros(2, 4, 4), 0.0).numpy() == pytest.approx(0.25)


class TestSearch:
    def test_shifted_atlases_are_put_right(self) -> None:
        # Three atlases are the target, each moved by another whole number of voxels: matching undoes it.
        target, _, _, drawn = scene((40, 36), radius=9.0)
        moves = [(2, 0), (-1, 3), (0, -3)]
        warped = np.stack([np.roll(target, move, (0, 1)) for move in moves])
        stack = np.stack([np.roll(drawn, move, (0, 1)) for move in moves]).astype(np.uint8)
        found = jlf(stacked(stack), target, warped, device="cpu")
        assert (stack != drawn).any(axis=(1, 2)).all()
        np.testing.assert_array_equal(found.indices, drawn)
        still = jlf(stacked(stack), target, warped, search_radius=0, device="cpu")
        assert (still.indices != drawn).any()

    def test_a_flat_target_keeps_atlases_in_place(self) -> None:
        # Left the target is flat, so that no shift is better than none and the atlases' own labels vote.
        target, warped, _, _ = scene((30, 40), radius=9.0)
        target[:, :24] = 0.0
        stack = np.zeros((4, 30, 40), np.uint8)
        stack[0, 10, 10] = stack[1, 10, 11] = stack[2:, 10, 38] = 1
        found, still = (
            jlf(stacked(stack), target, warped, patch_radius=1, search_radius=reach, similarity="correlation",
                probabilities=True, device="cpu")
            for reach in (3, 0)
        )  # fmt: skip
        for place in ((1, 10, 10), (1, 10, 11)):
            assert found.probabilities[place] == pytest.approx(still.probabilities[place], abs=1e-6)
            assert 0 < found.probabilities[place] < 1

    @pytest.mark.parametrize(("gain", "offset"), [(-0.0 + 3.0, 700.0), (1e-3, 0.0)])
    def test_brightness_and_contrast_do_not_matter(self, gain: float, offset: float) -> None:
        target, warped, stack, _ = scene((30, 28), radius=7.0)
        one = jlf(stacked(stack), target, warped, probabilities=True, device="cpu")
        warped = warped.copy()
        warped[1] = gain * warped[1] + offset
        two = jlf(stacked(stack), target, warped, probabilities=True, device="cpu")
        assert np.quantile(np.abs(one.probabilities - two.probabilities), 0.999) < 1e-3


class TestVote:
    def test_a_majority_that_errs_alike_does_not_win(self) -> None:
        # Three of five atlases are one and the same, two voxels off: they outvote the two that are right.
        target, warped, stack, drawn = scene((50, 54), atlases=5, radius=14.0)
        warped[:3], stack[:3] = np.roll(target, 2, 0), np.roll(drawn, 2, 0)
        found = jlf(stacked(stack), target, warped, search_radius=0, device="cpu")
        votes = np.stack([(stack == value).sum(0) for value in range(3)]).argmax(0)
        assert (found.indices != drawn).sum() < 0.5 * (votes != drawn).sum()
        assert found.weights[:3].sum() < found.weights[3:].sum()

    def test_shares_are_the_label_s_and_sum_to_1(self) -> None:
        target, warped, stack, _ = scene((14, 16, 13))
        found = jlf(stacked(stack.astype(np.uint16)), target, warped, probabilities=True, device="cpu")
        shares = found.probabilities
        assert shares is not None
        assert shares.dtype == np.float32
        assert shares.sum(0) == pytest.approx(1, abs=1e-5)
        assert found.indices.dtype == np.uint16
        np.testing.assert_array_equal(found.indices, shares.argmax(0))

    def test_what_all_say_stays(self) -> None:
        target, warped, stack, _ = scene((30, 28), radius=7.0)
        found = jlf(stacked(stack), target, warped, device="cpu")
        agreed = (stack == stack[0]).all(0)
        np.testing.assert_array_equal(found.indices[agreed], stack[0][agreed])
        assert found.voxels == (~agreed).sum()

    def test_all_agree(self) -> None:
        target, warped, stack, _ = scene((16, 15))
        same = np.repeat(stack[:1], 3, axis=0)
        found = jlf(stacked(same), target, warped[:3], probabilities=True, device="cpu")
        np.testing.assert_array_equal(found.indices, stack[0])
        np.testing.assert_array_equal(found.probabilities.argmax(0), stack[0])
        assert found.voxels == 0

    def test_one_atlas(self) -> None:
        target, warped, stack, _ = scene((16, 15))
        found = jlf(stacked(stack[:1]), target, warped[:1], device="cpu")
        np.testing.assert_array_equal(found.indices, stack[0])
        assert found.weights.tolist() == [1.0]

    def test_ties_go_to_the_lowest_value_and_are_counted(self) -> None:
        # Two atlases with one image are as good as each other wherever they disagree.
        target, warped, _, _ = scene((24, 24))
        stack = np.zeros((2, 24, 24), np.uint8)
        stack[0, 5:15, 5:15], stack[1, 5:15, 5:15] = 2, 1
        found = jlf(stacked(stack), target, np.stack([warped[0]] * 2), search_radius=0, device="cpu")
        assert found.ties == 100
        np.testing.assert_array_equal(found.indices, stack[1])
        assert "100 voxels" in found.notes[0]

    def test_labels_at_the_border(self) -> None:
        target, _, _, _ = scene((20, 22))
        drawn = np.zeros((20, 22), np.uint8)
        drawn[:6], drawn[:6, 17:] = 1, 2
        stack = np.stack([drawn, np.roll(drawn, 1, axis=0), np.roll(drawn, -1, axis=0)])
        warped = np.stack([target] * 3)
        found = jlf(stacked(stack), target, warped, search_radius=0, device="cpu")
        np.testing.assert_array_equal(found.indices[1:-1], drawn[1:-1])


class TestBlocks:
    def test_cutting_and_threads_do_not_change_the_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        target, warped, stack, _ = scene((60, 56), radius=18.0)

        def run(block: int, threads: int) -> Consensus:
            monkeypatch.setattr(module, "_CPU_BLOCK", block)
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                found = jlf(stacked(stack), target, warped, search_radius=1, probabilities=True, device="cpu")
                assert torch.get_num_threads() == threads
            finally:
                torch.set_num_threads(before)
            return found

        whole = run(1 << 20, 1)
        for other in (run(14**2, 1), run(14**2, 3)):
            # Sums may be rounded otherwise where a vector register ends.
            assert np.quantile(np.abs(whole.probabilities - other.probabilities), 0.999) < 1e-5
            assert (whole.indices != other.indices).sum() <= 1

    def test_cancel(self) -> None:
        target, warped, stack, _ = scene((30, 28), radius=7.0)
        with pytest.raises(Cancelled):
            jlf(stacked(stack), target, warped, device="cpu", progress=Progress(cancelled=lambda: True))

    def test_progress_reaches_1(self) -> None:
        target, warped, stack, _ = scene((30, 28), radius=7.0)
        told: list[float] = []
        progress = Progress(lambda event: told.append(event["value"]), interval=0.0)
        jlf(stacked(stack), target, warped, device="cpu", progress=progress)
        assert told == sorted(told)
        assert told[-1] == 1.0

    def test_gpu(self) -> None:
        if not torch.cuda.is_available():
            pytest.skip("no NVIDIA GPU")
        target, warped, stack, _ = scene((20, 24, 22), radius=8.0)
        here = jlf(stacked(stack), target, warped, probabilities=True, device="cpu")
        there = jlf(stacked(stack), target, warped, probabilities=True, device="cuda")
        assert np.quantile(np.abs(here.probabilities - there.probabilities), 0.999) < 1e-4


class TestBadInput:
    @pytest.mark.parametrize(
        "setting",
        [
            {"similarity": "mutual information"},
            {"patch_radius": 0},
            {"search_radius": -1},
            {"beta": 0.0},
            {"alpha": -0.1},
            {"alpha": np.nan},
        ],
    )
    def test_settings(self, setting: dict[str, Any]) -> None:
        target, warped, stack, _ = scene((16, 15))
        with pytest.raises(BadInput):
            jlf(stacked(stack), target, warped, device="cpu", **setting)

    def test_a_target_without_contrast(self) -> None:
        _, warped, stack, _ = scene((16, 15))
        with pytest.raises(BadInput, match="no contrast"):
            jlf(stacked(stack), np.ones((16, 15), np.float32), warped, device="cpu")

    def test_an_atlas_without_contrast_counts_less_than_one_like_the_target(self) -> None:
        target, _, stack, _ = scene((26, 25), radius=7.0)
        warped = np.stack([target, np.ones_like(target)])
        found = jlf(stacked(stack[:2]), target, warped, device="cpu")
        assert found.weights[0] > 0.8

    def test_voxels_that_are_not_numbers(self) -> None:
        target, warped, stack, _ = scene((16, 15))
        warped[2, 3, 3] = np.nan
        with pytest.raises(BadInput, match="atlas 2"):
            jlf(stacked(stack), target, warped, device="cpu")
