"""Regularisation: each setting changes what it says it changes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_dataset import write_dataset

torch = pytest.importorskip("torch")

from MLILib.bundle_parts import instantiate  # noqa: E402
from MLILib.errors import BadInput  # noqa: E402
from MLILib.progress import Progress  # noqa: E402
from MLILib.segmentation.augmentation import Sampler  # noqa: E402
from MLILib.segmentation.batch_statistics import renew  # noqa: E402
from MLILib.segmentation.dataset import Split, read_dataset  # noqa: E402
from MLILib.segmentation.losses import (  # noqa: E402
    SegmentationLoss,
    balanced_weights,
    l1_norm,
    mixup_share,
)
from MLILib.segmentation.requests import TrainSegmentationRequest  # noqa: E402
from MLILib.segmentation.shape_prior import ShapeAutoencoder, learn_shapes, oddity  # noqa: E402
from MLILib.segmentation.train_request import AUGMENTATIONS  # noqa: E402
from MLILib.segmentation.training import Diverged, Trainer  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("planes"), 6, size=(20, 18))


def trainer(data: Path, *, cases: int = 4, **settings: Any) -> Trainer:
    settings = {"epochs": 4, "filters": 2, "batch": 2, "device": "cpu", "amp": False, "augment": ("none",)} | settings
    request = TrainSegmentationRequest(str(data), str(data.parent / "model"), **settings)
    request.check_task()
    dataset = read_dataset(data)
    made = Trainer(request, dataset, Split(dataset.cases[:cases], dataset.cases[4:], ()), torch.device("cpu"))
    made.read_cases(Progress())
    return made


def size_of_weights(made: Trainer) -> float:
    return float(sum(p.square().sum() for p in made.network.parameters() if p.ndim > 1))


class TestWeights:
    def test_weight_decay_makes_them_smaller(self, data: Path) -> None:
        """One step with decay d multiplies a weight by 1 - rate * d before anything else (Loshchilov 2019)."""
        without, with_decay = (trainer(data, weight_decay=d) for d in (0.0, 5.0))
        before = [p.clone() for p in without.network.parameters()]
        for made in (without, with_decay):
            made.run_epoch(Progress())
        assert size_of_weights(with_decay) < size_of_weights(without)
        assert all(
            torch.equal(a, b) for a, b in zip(before, trainer(data, weight_decay=5.0).network.parameters(), strict=True)
        )

    def test_l1_is_the_sum_of_absolute_weights_and_lowers_it(self, data: Path) -> None:
        assert float(l1_norm([torch.tensor([[1.0, -2.0], [0.5, 0.0]]), torch.tensor([9.0])])) == 3.5
        without, with_l1 = trainer(data, weight_decay=0.0), trainer(data, weight_decay=0.0, l1=0.1)
        for made in (without, with_l1):
            made.run_epoch(Progress())
        assert float(l1_norm(with_l1.network.parameters())) < float(l1_norm(without.network.parameters()))

    def test_without_a_moving_average_the_weights_themselves_are_kept(self, data: Path) -> None:
        plain, averaged = trainer(data, ema=0.0), trainer(data)
        for made in (plain, averaged):
            made.run_epoch(Progress())
        same = [
            torch.allclose(a, b) for a, b in zip(plain.average.parameters(), plain.network.parameters(), strict=True)
        ]
        other = [
            torch.equal(a, b) for a, b in zip(averaged.average.parameters(), averaged.network.parameters(), strict=True)
        ]
        assert all(same)
        assert not all(other)

    def test_dropout_makes_training_random_but_repeatable(self, data: Path) -> None:
        losses = [trainer(data, dropout=p).run_epoch(Progress())["loss"] for p in (0.0, 0.5, 0.5)]
        assert losses[0] != losses[1] == losses[2]


class TestBatchStatistics:
    def test_they_are_those_of_the_batches(self) -> None:
        """Two batches of the means 1 and 3 have the mean 2; the momentum comes back."""
        network = torch.nn.Sequential(torch.nn.BatchNorm1d(1, momentum=0.01), torch.nn.Dropout(0.5))
        batches = [torch.tensor([[0.0], [2.0]]), torch.tensor([[2.0], [4.0]])]
        renew(network, iter(batches))
        assert float(network[0].running_mean) == pytest.approx(2.0)
        assert float(network[0].running_var) == pytest.approx(2.0)
        assert network[0].momentum == 0.01
        assert not network[0].training

    def test_averaged_weights_know_theirs_after_few_steps(self, data: Path) -> None:
        """MobileNet's running variances move by 1 % a step: after ten they are still nearer to 1 than to the truth."""
        made = trainer(data, network="lraspp", epochs=5, augment=AUGMENTATIONS, amp=True)
        for _ in range(5):
            made.run_epoch(Progress())  # the last one validates
        trained, averaged = (
            next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_var
            for network in (made.network, made.average)
        )
        seen = torch.cat(list(made._training_batches()))
        with torch.no_grad():
            true = made.average.stem[0](seen).var(dim=(0, 2, 3))
        late = ((trained - true).abs() / (1 - true).abs()).median()
        assert float(late) > 0.5
        assert float(((averaged - true).abs() / (1 - true).abs()).max()) < 0.1

    def test_networks_without_them_draw_nothing(self) -> None:
        def never() -> Any:
            raise AssertionError
            yield

        renew(torch.nn.Conv2d(1, 1, 1), never())


class TestLoss:
    logits = torch.tensor([[[[2.0, -1.0]], [[0.0, 3.0]]]])
    labels = torch.tensor([[[[0, 1]]]])

    def cross_entropy(self, **settings: Any) -> float:
        loss = SegmentationLoss(**settings)
        return float(loss.dice_ce.cross_entropy(self.logits, self.labels[:, 0]))

    def test_label_smoothing_asks_for_less_than_certainty(self) -> None:
        """With smoothing e the target of two classes is 1 - e/2 and e/2 (Szegedy 2016)."""
        p = torch.log_softmax(self.logits, dim=1)[0, :, 0]
        expected = -np.mean([0.9 * p[0, 0] + 0.1 * p[1, 0], 0.9 * p[1, 1] + 0.1 * p[0, 1]])
        assert self.cross_entropy(label_smoothing=0.2) == pytest.approx(expected, rel=1e-5)

    def test_a_weighted_class_counts_as_often_as_it_weighs(self) -> None:
        p = torch.log_softmax(self.logits, dim=1)[0, :, 0]
        expected = -(p[0, 0] + 3 * p[1, 1]) / 4
        assert self.cross_entropy(weights=[1.0, 3.0]) == pytest.approx(float(expected), rel=1e-5)

    def test_balanced_weights_are_inverse_to_the_counts(self) -> None:
        """Counts 8, 2: inverse 1/8 and 1/2, of mean 1: 0.4 and 1.6."""
        assert balanced_weights([8, 2]) == pytest.approx([0.4, 1.6])
        assert balanced_weights([8, 0, 2])[1] == balanced_weights([8, 0, 2])[2]

    def test_mixup_weighs_both_labels(self) -> None:
        loss = SegmentationLoss()
        other = 1 - self.labels
        parts = [float(loss(self.logits, x)) for x in (self.labels, other)]
        assert float(loss(self.logits, self.labels, other, 0.7)) == pytest.approx(0.7 * parts[0] + 0.3 * parts[1])

    def test_mixup_shares_come_from_beta(self) -> None:
        """Beta(1, 1) is even: the larger of the two shares is 0.75 on average."""
        rng = np.random.default_rng(0)
        shares = [mixup_share(1.0, rng) for _ in range(4000)]
        assert min(shares) >= 0.5
        assert np.mean(shares) == pytest.approx(0.75, abs=0.01)

    def test_the_settings_reach_the_training(self, data: Path) -> None:
        first = {name: trainer(data, **s).run_epoch(Progress())["loss"] for name, s in {
            "plain": {}, "smoothing": {"label_smoothing": 0.3}, "weights": {"class_weights": (1.0, 5.0, 5.0)},
            "balance": {"balance": True}, "mixup": {"mixup": 1.0}, "prior": {"shape_prior": 0.0}}.items()}  # fmt: skip
        assert first["prior"] == first["plain"]
        for name in ("smoothing", "weights", "balance", "mixup"):
            assert first[name] != first["plain"], name

    def test_a_wrong_number_of_weights_is_refused(self, data: Path) -> None:
        with pytest.raises(BadInput, match="2 class weights are given for 3 classes"):
            trainer(data, class_weights=(1.0, 2.0))


class TestEnd:
    def test_it_stops_when_nothing_gets_better(self, data: Path) -> None:
        """With a rate that moves nothing the first validation is the best: at 5 epochs, and 10 without a better one."""
        made = trainer(data, epochs=60, learning_rate=1e-7, patience=10)
        made.best_dice, made.best_epoch = 1.1, 5  # no Dice is above 1
        while not made.finished:
            made.run_epoch(Progress())
        assert made.epoch == 15

    def test_a_loss_that_is_no_number_names_the_case(self, data: Path) -> None:
        made = trainer(data)
        image, label = made._training[2]
        made._training[2] = (image * math.nan, label)
        with pytest.raises(Diverged, match="image_02"):
            made.run_epoch(Progress())


class TestAugmentation:
    @staticmethod
    def sampler(augment: tuple[str, ...], size: tuple[int, ...] = (24, 24, 24), **settings: Any) -> Sampler:
        axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij")
        image = torch.stack([axes[0] + axes[1] ** 2])
        label = (sum(a**2 for a in axes) < 0.3)[None].to(torch.uint8)
        return Sampler([(image, label)], size, (0,), 2, 0, augment=augment, **settings)

    def changed(self, name: str, size: tuple[int, ...]) -> tuple[bool, bool]:
        """Whether image, and label, change in one of many samples."""
        plain = self.sampler(("none",), size).sample(0, 0)
        drawn = [self.sampler((name,), size).sample(epoch, 0) for epoch in range(25)]
        return tuple(any(not torch.equal(s[i], plain[i]) for s in drawn) for i in (0, 1))  # type: ignore[return-value]

    @pytest.mark.parametrize(("name", "size"), list(itertools.product(AUGMENTATIONS, [(16, 16, 16), (32, 32)])))
    def test_each_changes_what_it_should(self, name: str, size: tuple[int, ...]) -> None:
        image, label = self.changed(name, size)
        assert image
        assert label == (name in ("elastic", "affine"))  # the ball is its own mirror image

    def test_none_gives_the_case_itself(self) -> None:
        sampler = self.sampler(("none",))
        assert torch.equal(sampler.sample(0, 0)[0], sampler.sample(7, 0)[0])

    def test_blur_makes_an_image_smoother_and_noise_rougher(self) -> None:
        torch.manual_seed(0)
        image = torch.randn(1, 40, 40)
        label = torch.zeros(1, 40, 40, dtype=torch.uint8)

        def roughness(name: str) -> float:
            sampler = Sampler([(image, label)], (40, 40), (), 2, 0, augment=(name,))
            drawn = [sampler.sample(epoch, 0)[0] for epoch in range(20)]
            return float(np.mean([float(x.diff(dim=1).square().mean()) for x in drawn]))

        assert roughness("blur") < roughness("none") < roughness("noise")
        assert roughness("lowres") < roughness("none")

    def test_foreground_sampling_centres_on_rare_labels(self) -> None:
        """A patch of 8 among 64 positions an axis rarely shows a label of 2 x 2; centred ones always do."""
        image = torch.zeros(1, 64, 64)
        label = torch.zeros(1, 64, 64, dtype=torch.uint8)
        label[:, 50:52, 10:12] = 1

        def share(foreground: float) -> float:
            sampler = Sampler([(image, label)], (8, 8), (), 2, 0, augment=("none",), foreground=foreground)
            return float(np.mean([bool(sampler.sample(epoch, 0)[1].any()) for epoch in range(60)]))

        assert share(1.0) == 1.0
        assert share(0.5) == pytest.approx(0.5, abs=0.2)
        assert share(0.0) < 0.2

    def test_modality_dropout_leaves_one_channel_at_least(self) -> None:
        image = torch.ones(3, 8, 8)
        sampler = Sampler([(image, torch.zeros(1, 8, 8, dtype=torch.uint8))], (8, 8), (), 2, 0,
                          augment=("none",), modality_dropout=0.6)  # fmt: skip
        kept = torch.stack([sampler.sample(epoch, 0)[0][:, 0, 0] for epoch in range(200)])
        assert kept.sum(dim=1).min() >= 1
        assert set(kept.unique().tolist()) == {0.0, 1.0}
        # each is kept with 0.4; all three are dropped with 0.6^3, and then one of them comes back
        assert float(kept.mean()) == pytest.approx(0.4 + 0.6**3 / 3, abs=0.06)


class TestShapePrior:
    def test_a_shape_like_the_training_labels_is_less_odd(self, data: Path) -> None:
        """Discs are learned; a disc is then nearer to its reconstruction than a chessboard of the same labels."""
        torch.manual_seed(0)
        y, x = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 24), indexing="ij")
        rng = np.random.default_rng(0)

        def discs(step: int) -> Any:
            made = []
            for _ in range(4):
                cx, cy = rng.uniform(-0.3, 0.3, 2)
                made.append(((x - cx) ** 2 + (y - cy) ** 2 < 0.25).long()[None])
            return torch.stack(made)

        autoencoder = ShapeAutoencoder(2, 2)
        first = learn_shapes(autoencoder, discs, 1, 0)
        autoencoder.requires_grad_(True)
        last = learn_shapes(autoencoder, discs, 150, 0)
        assert last < first
        disc = discs(0)[:1]
        board = ((torch.arange(24)[:, None] // 3 + torch.arange(24)[None] // 3) % 2)[None, None]
        odd = [float(oddity(autoencoder, 10.0 * torch.cat([1 - s, s], dim=1).float())) for s in (disc, board)]
        assert odd[0] < 0.5 * odd[1]

    def test_what_it_restores_has_a_tenth_of_its_voxels_exchanged(self) -> None:
        """Drawn evenly from two classes, half of the exchanged tenth stays as it was: a share of 0.05 differs."""
        autoencoder = ShapeAutoencoder(2, 2)
        seen: list[torch.Tensor] = []
        autoencoder.register_forward_pre_hook(lambda _module, args: seen.append(args[0].argmax(dim=1)))
        labels = torch.zeros(4, 1, 48, 48, dtype=torch.long)
        labels[..., 12:36, 12:36] = 1
        learn_shapes(autoencoder, lambda _step: labels, 2, 0)
        exchanged = torch.stack([(noisy != labels[:, 0]).float().mean() for noisy in seen])
        assert exchanged.numpy() == pytest.approx(0.05, abs=0.01)
        assert not torch.equal(seen[0], seen[1])

    def test_it_is_added_to_the_loss_with_its_weight(self, data: Path) -> None:
        made = trainer(data, shape_prior=2.0)
        made._shapes = ShapeAutoencoder(2, 3).requires_grad_(False)
        plain = trainer(data)
        image, label = (torch.stack(t) for t in zip(*plain._training[:2], strict=True))
        size = plain.plan.patch
        image, label = image[..., : size[0], : size[1]], label[..., : size[0], : size[1]].long()
        image, label = (torch.nn.functional.pad(t, (0, size[1] - t.shape[-1], 0, size[0] - t.shape[-2]))
                        for t in (image, label))  # fmt: skip
        made.network.load_state_dict(plain.network.state_dict())
        odd = float(oddity(made._shapes, plain.network.train()(image)).detach())
        assert made._step(image, label, 0) == pytest.approx(plain._step(image, label, 0) + 2 * odd, rel=1e-4)

    def test_the_autoencoder_takes_any_size(self) -> None:
        assert ShapeAutoencoder(3, 2)(torch.zeros(1, 2, 9, 17, 12)).shape == (1, 2, 9, 17, 12)


class TestDropoutInTheNetwork:
    def test_the_definition_carries_it(self, data: Path) -> None:
        made = trainer(data, dropout=0.3)
        assert "0.3" in str(made.plan.network)
        assert any(
            isinstance(m, torch.nn.Dropout | torch.nn.Dropout2d) for m in instantiate(made.plan.network).modules()
        )
