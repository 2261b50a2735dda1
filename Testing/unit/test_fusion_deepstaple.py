"""DeepSTAPLE: theta and network leave each other alone, bad raters are found, and a broken run goes on as it was."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")

from MLILib.bundle_parts import instantiate  # noqa: E402
from MLILib.errors import Cancelled  # noqa: E402
from MLILib.fusion import deepstaple as module  # noqa: E402
from MLILib.fusion.deepstaple import Learner, Settings, deepstaple, learn, vote, working_shape  # noqa: E402
from MLILib.fusion.noisy_patches import NoisyTarget, Variation, view  # noqa: E402
from MLILib.fusion.raters import Raters, raters  # noqa: E402
from MLILib.progress import Progress  # noqa: E402
from MLILib.segmentation.lraspp import LRASPP3D  # noqa: E402
from MLILib.segmentation.plan import unet  # noqa: E402

CPU = torch.device("cpu")
STILL = Variation(turn=0, scale=0, shift=0, bend=0, noise=0, brightness=0, contrast=0)


def disc(centre: tuple[float, ...], radius: float, shape: tuple[int, ...]) -> np.ndarray:
    """A disc or ball as 0 and 1."""
    axes = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    return (sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < radius**2).astype(np.uint8)


def planted(
    targets: int, good: int, bad: int, shape: tuple[int, ...] = (32, 32), seed: int = 0
) -> list[tuple[NoisyTarget, np.ndarray]]:
    """Images of a bright disc with `good` raters off by a voxel or so and `bad` ones by a radius; and the truth."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(targets):
        centre = np.array(shape) / 2 + rng.uniform(-4, 4, len(shape))
        radius = rng.uniform(5, 7)
        truth = disc(tuple(centre), radius, shape)
        image = truth + rng.normal(0, 0.3, shape)
        off = rng.normal(size=(good + bad, len(shape)))
        off *= np.array([1.0] * good + [6.0] * bad)[:, None] / np.linalg.norm(off, axis=1, keepdims=True)
        stack = np.stack([disc(tuple(centre + o), radius, shape) for o in off])
        image = (image - image.mean()) / image.std()
        picture = torch.from_numpy(image.astype(np.float32))[None]
        out.append((NoisyTarget(f"{i}", picture, torch.from_numpy(stack)), truth))
    return out


def small_network(seed: int = 0, shape: tuple[int, ...] = (32, 32)) -> torch.nn.Module:
    torch.manual_seed(seed)
    return instantiate(unet(1, 2, shape, 4))


def learner(steps: int = 4, network: torch.nn.Module | None = None, **settings: Any) -> Learner:
    targets = [one for one, _ in planted(3, 2, 1)]
    chosen = Settings(**({"steps": steps, "batch": 2, "learning_rate": 0.003} | settings))
    return Learner(targets, 2, network or small_network(), (32, 32), chosen, CPU)


def state_of(one: Learner) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in one.network.state_dict().items()}


class TestApart:
    def test_theta_has_no_part_in_the_networks_training(self) -> None:
        """With and without theta being learned, the network comes out the same, bit by bit; batch norm's means too."""
        found = []
        for alone in (0, 100):
            torch.manual_seed(0)
            targets = [one for one, _ in planted(2, 2, 1, (16, 16, 16))]
            one = Learner(targets, 2, LRASPP3D(1, 2), (16, 16, 16), Settings(steps=3, batch=2, alone=alone), CPU)
            learn(one, Progress())
            found.append((state_of(one), one.theta()))
        (with_theta, moved), (without, still) = found
        assert all(torch.equal(with_theta[k], without[k]) for k in without)
        assert all((t != 0).all() for t in moved)
        assert all((t == 0).all() for t in still)

    def test_in_line_it_has(self) -> None:
        one, other = learner(scheme="in-line"), learner(scheme="in-line", alone=100)
        learn(one, Progress())
        learn(other, Progress())
        assert any(not torch.equal(a, b) for a, b in zip(state_of(one).values(), state_of(other).values(), strict=True))

    def test_a_step_of_theta_leaves_the_network_alone(self) -> None:
        """A network that does not learn stays as it was made while theta moves."""
        network = small_network()
        before = {k: v.clone() for k, v in network.state_dict().items()}
        one = learner(network=network, learning_rate=0.0)
        learn(one, Progress())
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
        assert all((t != 0).all() for t in one.theta())

    def test_the_first_step_of_theta_is_as_long_as_its_rate(self) -> None:
        """Adam's first step has the length of the learning rate, whatever the gradient; its sign is the loss's."""
        one = learner(steps=1, batch=3)
        one.step()
        assert np.abs(np.concatenate(one.theta())) == pytest.approx(0.1, rel=1e-2)


@pytest.fixture(scope="module")
def learned() -> tuple[list[tuple[NoisyTarget, np.ndarray]], list[np.ndarray]]:
    """Eight images with three good raters and three bad ones each, and what theta came out."""
    made = planted(8, 3, 3)
    settings = Settings(steps=60, batch=4, learning_rate=0.003)
    one = Learner([t for t, _ in made], 2, small_network(), (32, 32), settings, CPU)
    learn(one, Progress())
    return made, one.theta()


class TestPlantedRaters:
    def test_bad_ones_have_the_lowest_theta_of_each_target(self, learned: Any) -> None:
        _, theta = learned
        found = [set(np.argsort(values)[:3]) == {3, 4, 5} for values in theta]
        assert sum(found) >= 7

    def test_the_consensus_is_better_than_the_majority(self, learned: Any) -> None:
        made, theta = learned
        ours, theirs = [], []
        for (target, truth), values in zip(made, theta, strict=True):
            found = as_raters(target.labels.numpy())
            whole = found.whole()
            for values_, out in ((values, ours), (np.zeros(6), theirs)):
                indices = vote(found, values_, whole).indices
                out.append(2 * (indices & truth).sum() / (indices.sum() + truth.sum()))
        assert np.mean(ours) > np.mean(theirs) + 0.05


class TestResume:
    def test_a_restored_learner_ends_as_an_unbroken_one(self) -> None:
        whole = learner(steps=6)
        learn(whole, Progress())
        broken = learner(steps=6)
        learn(broken, Progress(), until=3)
        state = broken.state()
        again = learner(steps=6, network=small_network(seed=9))
        again.restore(state)
        learn(again, Progress())
        assert all(torch.equal(a, b) for a, b in zip(state_of(whole).values(), state_of(again).values(), strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(whole.theta(), again.theta(), strict=True))

    def test_every_target_is_seen_once_an_epoch(self) -> None:
        one = learner()
        for epoch in range(3):
            assert sorted(one._drawn(3 * epoch + i) for i in range(3)) == [0, 1, 2]


class TestViews:
    def test_without_variation_it_is_the_target(self) -> None:
        target, _ = planted(1, 2, 1)[0]
        image, labels = view(target, (32, 32), STILL, torch.Generator().manual_seed(0))
        assert torch.allclose(image, target.image, atol=1e-5)
        assert torch.equal(labels, target.labels)

    def test_a_smaller_target_lies_in_the_middle(self) -> None:
        target, _ = planted(1, 2, 1)[0]
        image, labels = view(target, (40, 36), STILL, torch.Generator().manual_seed(0))
        assert torch.allclose(image[:, 4:-4, 2:-2], target.image, atol=1e-5)
        assert torch.equal(labels[:, 4:-4, 2:-2], target.labels)
        assert not labels[:, :4].any()

    def test_image_and_labels_move_together(self) -> None:
        """An image that is its own label still is, up to interpolation at the border."""
        truth = torch.from_numpy(disc((16, 15, 17), 8, (32, 32, 32)))
        target = NoisyTarget("", truth[None].float(), truth[None])
        still = dataclasses.replace(Variation(), noise=0, brightness=0, contrast=0)
        for seed in range(5):
            image, labels = view(target, (32, 32, 32), still, torch.Generator().manual_seed(seed))
            found = image[0] > 0.5
            assert float(2 * (found & (labels[0] == 1)).sum() / (found.sum() + labels.sum())) > 0.96


def as_raters(stack: np.ndarray, spacing: float = 1.0) -> Raters:
    images = [sitk.GetImageFromArray(one) for one in stack]
    for image in images:
        image.SetSpacing([spacing] * stack[0].ndim)
    return raters(images)


class TestVote:
    def test_weights_are_the_softmax_of_theta(self) -> None:
        stack = np.array([[[1, 1, 0]], [[1, 0, 0]], [[0, 1, 0]]], dtype=np.uint8)
        theta = np.log([3.0, 2.0, 1.0])
        found = vote(as_raters(stack), theta, (slice(0, 1), slice(0, 3)), probabilities=True)
        assert found.probabilities is not None
        assert found.probabilities[1].ravel().tolist() == pytest.approx([5 / 6, 4 / 6, 0])
        assert found.indices.ravel().tolist() == [1, 1, 0]

    def test_one_trusted_rater_outvotes_two(self) -> None:
        stack = np.array([[[1, 0]], [[0, 1]], [[0, 1]]], dtype=np.uint8)
        found = vote(as_raters(stack), np.array([math.log(2.5), 0.0, 0.0]), (slice(0, 1), slice(0, 2)))
        assert found.indices.tolist() == [[1, 0]]

    def test_outside_the_region_is_background(self) -> None:
        stack = np.ones((2, 4, 4), dtype=np.uint8)
        found = vote(as_raters(stack), np.zeros(2), (slice(1, 3), slice(0, 4)), probabilities=True)
        assert found.indices.sum(axis=1).tolist() == [0, 4, 4, 0]
        assert found.probabilities is not None
        assert np.allclose(found.probabilities.sum(axis=0), 1)


class TestOneImage:
    @pytest.mark.parametrize("shape", [(32, 32), (18, 20, 22)])
    def test_bad_raters_get_the_lowest_theta(self, shape: tuple[int, ...]) -> None:
        target, truth = planted(1, 5, 2, shape, seed=3)[0]
        found = deepstaple(as_raters(target.labels.numpy()), target.image[0].numpy(), steps=40, device="cpu")
        assert found.weights is not None
        assert set(np.argsort(found.weights)[:2]) == {5, 6}
        assert 2 * (found.indices & truth).sum() / (found.indices.sum() + truth.sum()) > 0.9
        assert any("this image alone" in note for note in found.notes)

    def test_the_seed_decides_and_nothing_outside_is_disturbed(self) -> None:
        target, _ = planted(1, 3, 1, seed=3)[0]
        args = as_raters(target.labels.numpy()), target.image[0].numpy()
        torch.manual_seed(5)
        one = deepstaple(*args, steps=4, device="cpu", seed=1).weights
        after = torch.rand(1)
        torch.manual_seed(5)
        assert torch.equal(after, torch.rand(1)), "a script's random numbers are its own"
        assert one is not None
        assert np.array_equal(one, deepstaple(*args, steps=4, device="cpu", seed=1).weights)
        assert not np.array_equal(one, deepstaple(*args, steps=4, device="cpu", seed=2).weights)

    def test_one_rater_is_taken_at_his_word(self) -> None:
        target, _ = planted(1, 1, 0)[0]
        stack = target.labels.numpy()
        found = deepstaple(as_raters(stack), target.image[0].numpy(), steps=5, device="cpu")
        assert np.array_equal(found.indices, stack[0])
        assert found.iterations == 0

    def test_it_can_be_cancelled(self) -> None:
        target, _ = planted(1, 3, 1)[0]
        progress = Progress(cancelled=lambda: True)
        with pytest.raises(Cancelled):
            deepstaple(as_raters(target.labels.numpy()), target.image[0].numpy(), steps=5, progress=progress)

    def test_a_large_image_is_looked_at_on_a_coarser_grid(self) -> None:
        shape = working_shape((200, 160, 3), 48**3)
        assert math.prod(shape) <= 48**3 * 1.05
        assert shape[2] == 3
        assert working_shape((20, 30, 40), 48**3) == (20, 30, 40)


def test_the_schemes_are_those_of_the_request() -> None:
    from MLILib.fusion.requests import TrainDeepStapleRequest

    setting = next(s for s in TrainDeepStapleRequest.settings() if s.name == "scheme")
    assert setting.choices == module.SCHEMES
