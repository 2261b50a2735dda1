"""Registration networks: they start at the identity, stay invertible, and can learn a transform that is known."""

from __future__ import annotations

import dataclasses
import math

import pytest

torch = pytest.importorskip("torch")

from MLILib.registration.atlas_istn import AtlasISTN  # noqa: E402
from MLILib.registration.cascade import Cascade  # noqa: E402
from MLILib.registration.demons import demons  # noqa: E402
from MLILib.registration.fields import compose, resize, smooth  # noqa: E402
from MLILib.registration.istn import ISTN  # noqa: E402
from MLILib.registration.jacobian import determinant  # noqa: E402
from MLILib.registration.networks import (  # noqa: E402
    AffineNet,
    Prediction,
    UNet,
    VoxelMorph,
    about_middle,
    depth_to_space,
    displacement,
    space_to_depth,
)
from MLILib.registration.objectives import objective, overlap_loss  # noqa: E402
from MLILib.registration.pairs import Batch  # noqa: E402
from MLILib.registration.requests import TrainRegistrationRequest  # noqa: E402
from MLILib.registration.sampling import identity_grid, positions, warp  # noqa: E402

SIDE = 32


def networks(d: int) -> list[torch.nn.Module]:
    """One of each, small."""
    small = {"features": (4, 6)}
    torch.manual_seed(0)
    return [
        AffineNet(d, 1, **small),
        VoxelMorph(d, 1, **small),
        VoxelMorph(d, 1, **small, diffeomorphic=False),
        Cascade(d, 1, **small),
        ISTN(d, 1, 2, structure_features=(4, 6), **small),
        AtlasISTN((SIDE,) * d, 1, 2, structure_features=(4, 6), **small),
    ]


def roughened(network: torch.nn.Module, size: float) -> torch.nn.Module:
    """The network with last layers large enough that it answers with a real deformation."""
    for module in network.modules():
        if isinstance(module, UNet):
            torch.nn.init.normal_(module.last.weight, std=size)
    return network


def blob(centre: tuple[float, float], shape: tuple[int, int] = (SIDE, SIDE)) -> torch.Tensor:
    """A smooth disc, (1, 1, *shape)."""
    at = torch.tensor(centre).view(1, 2, 1, 1)
    distance = (identity_grid(shape) - at).square().sum(1, keepdim=True).sqrt()
    return torch.sigmoid(6.0 - distance)


class TestPacking:
    @pytest.mark.parametrize("shape", [(4, 6), (4, 6, 8)])
    def test_it_comes_back(self, shape: tuple[int, ...]) -> None:
        x = torch.arange(2 * 3 * math.prod(shape), dtype=torch.float32).view(2, 3, *shape)
        packed = space_to_depth(x)
        assert packed.shape == (2, 3 * 2 ** len(shape), *(n // 2 for n in shape))
        assert torch.equal(depth_to_space(packed), x)

    def test_a_cell_becomes_the_channels_of_its_place(self) -> None:
        x = torch.arange(24.0).view(1, 1, 4, 6)
        assert space_to_depth(x)[0, :, 1, 2].tolist() == x[0, 0, 2:4, 4:6].flatten().tolist()

    def test_a_u_net_takes_any_size(self) -> None:
        assert UNet(3, 2, 5, (4, 4, 4))(torch.randn(1, 2, 9, 7, 10)).shape == (1, 5, 9, 7, 10)


class TestStart:
    @pytest.mark.parametrize("d", [2, 3])
    @pytest.mark.parametrize("which", range(6))
    def test_an_untrained_network_is_the_identity(self, d: int, which: int) -> None:
        fixed, moving = torch.randn(2, 2, 1, *(SIDE,) * d)
        prediction = networks(d)[which](fixed, moving)
        assert isinstance(prediction, Prediction)
        assert prediction.displacement.shape == (2, d, *(SIDE,) * d)
        assert prediction.displacement.abs().max() < 0.1

    def test_labels_are_no_input(self) -> None:
        """What registers an image pair is called with the two images and nothing else."""
        for network in networks(2):
            assert network.forward.__code__.co_varnames[:3] == ("self", "fixed", "moving")
            assert network.forward.__code__.co_argcount == 3


class TestDiffeomorphic:
    def test_a_velocity_does_not_fold_where_the_same_displacement_does(self) -> None:
        torch.manual_seed(0)
        velocity = smooth(torch.randn(1, 2, SIDE // 2, SIDE // 2), 1.5)
        velocity = velocity * (2.5 / velocity.abs().max())
        shape = (SIDE, SIDE)
        assert determinant(resize(velocity, shape, align="edges")).min() < 0
        assert determinant(displacement(velocity, shape)).min() > 0

    @pytest.mark.parametrize("which", [1, 3, 4])
    def test_networks_answer_with_such_a_velocity(self, which: int) -> None:
        network = roughened(networks(2)[which], 0.05)
        with torch.no_grad():
            prediction = network(torch.randn(2, 1, SIDE, SIDE), torch.randn(2, 1, SIDE, SIDE))
        assert prediction.velocities[-1].abs().max() > 0.1
        assert torch.equal(prediction.displacement, displacement(prediction.velocities[-1], (SIDE, SIDE)))

    def test_the_opposite_velocity_is_the_inverse(self) -> None:
        bump = smooth(blob((15.0, 17.0)), 3.0)
        velocity = torch.cat([2.5 * bump, -2.0 * bump], 1)
        there, back = displacement(velocity, (SIDE, SIDE)), displacement(-velocity, (SIDE, SIDE))
        assert there.abs().max() > 1.0
        assert compose(there, back)[:, :, 6:-6, 6:-6].abs().max() < 0.05

    def test_a_pair_goes_through_the_atlas(self) -> None:
        """An image registered to itself by way of the atlas stays where it is."""
        network = roughened(networks(2)[5], 0.02)
        network.atlas.copy_(torch.cat([blob((14.0, 14.0)), blob((20.0, 20.0))], 1))
        image = smooth(torch.randn(1, 1, SIDE, SIDE), 3.0)
        with torch.no_grad():
            prediction = network(image, image)
        moved = prediction.atlas["to_fixed"].square().mean()
        assert moved > 0.01
        # what is left is the interpolation of two rough fields
        assert prediction.displacement[:, :, 4:-4, 4:-4].square().mean() < 0.02 * moved


class TestDemons:
    @staticmethod
    def logits(*centres: tuple[float, float]) -> torch.Tensor:
        """Two labels, discs, against a background, as a network that is not quite sure would answer."""
        parts = [3 * (blob(centre) - 0.5) for centre in centres]
        return torch.cat([torch.zeros_like(parts[0]), *parts], 1)

    def test_it_closes_what_a_network_left(self) -> None:
        fixed, moving = self.logits((10.0, 10.0), (22.0, 20.0)), self.logits((12.0, 10.0), (22.0, 22.5))
        u = demons(fixed, moving, torch.zeros(1, 2, SIDE, SIDE), 30)
        maps = [one.softmax(1)[:, 1:] for one in (fixed, moving)]
        before, after = overlap_loss(maps[1], maps[0]), overlap_loss(warp(maps[1], u), maps[0])
        assert after < 0.1 * before
        assert determinant(u).min() > 0

    def test_what_is_far_from_the_structures_stays(self) -> None:
        fixed, moving = self.logits((8.0, 8.0), (9.0, 8.0)), self.logits((9.0, 8.0), (9.0, 8.0))
        start = torch.full((1, 2, SIDE, SIDE), 0.25)
        u = demons(fixed, moving, start, 5)
        assert torch.equal(u[..., 24:, 24:], start[..., 24:, 24:])
        assert not torch.equal(u[..., :14, :14], start[..., :14, :14])

    def test_images_that_show_nothing_keep_the_start(self) -> None:
        nothing = torch.zeros(1, 3, SIDE, SIDE)
        nothing[:, 0] = 9.0
        start = torch.rand(1, 2, SIDE, SIDE)
        assert torch.equal(demons(nothing, nothing, start, 5), start)

    def test_it_is_left_out_while_the_network_is_trained(self) -> None:
        network = roughened(networks(2)[4], 0.3)
        pair = torch.randn(2, 1, 1, SIDE, SIDE)
        with torch.no_grad():
            trained = network(*pair)
            used = network.eval()(*pair)
        assert torch.equal(trained.displacement, displacement(trained.velocities[-1], (SIDE, SIDE)))
        assert not torch.equal(used.displacement, displacement(used.velocities[-1], (SIDE, SIDE)))


class Marks(torch.nn.Module):
    """In place of a network that marks structures: what it is told, whatever the images show."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


class Expert(torch.nn.Module):
    """An expert sure that the first label grows along its first spatial axis; it notes what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.25))
        self.seen: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(image)
        out = image.new_zeros(1, 3, *image.shape[2:])
        along = torch.arange(image.shape[2], dtype=image.dtype).view(-1, *[1] * (image.ndim - 3))
        out[:, 1] = self.slope * along
        return out


class TestExpert:
    SHAPE = (48, 64)
    #: Of each disc's 11 x 11 voxels with a margin of 4, grown to multiples of 8.
    BOXES = ((slice(8, 32), slice(18, 42)), (slice(12, 36), slice(30, 54)))

    def network(self, marked: bool = True) -> tuple[ISTN, Expert, torch.Tensor]:
        """It marks a disc of the first label about (20, 30) in the fixed image and about (24, 42) in the moving one."""
        discs = torch.cat([blob(centre, self.SHAPE) for centre in ((20.0, 30.0), (24.0, 42.0))])
        logits = torch.cat([torch.zeros_like(discs), 6 * (discs - 0.501), torch.full_like(discs, -5.0)], 1)
        if not marked:
            logits = torch.tensor([9.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, *self.SHAPE).clone()
        torch.manual_seed(0)
        expert = Expert()
        network = ISTN(2, 1, 2, structure_features=(4, 6), features=(4, 6), expert=expert).eval()
        network.structures = Marks(logits)
        return network, expert, logits

    def pair(self) -> torch.Tensor:
        return torch.randn(2, 1, 1, *self.SHAPE, generator=torch.Generator().manual_seed(2))

    def test_it_sees_the_box_of_each_image_in_the_axis_order_it_was_trained_in(self) -> None:
        network, expert, _ = self.network()
        pair = self.pair()
        with torch.no_grad():
            network(*pair)
        for seen, image, (rows, columns) in zip(expert.seen, pair, self.BOXES, strict=True):
            assert torch.equal(seen, image[:, :, rows, columns].transpose(2, 3))

    def test_maps_change_in_the_box_only_and_there_to_the_mean_of_both(self) -> None:
        network, _, logits = self.network()
        with torch.no_grad():
            found = network(*self.pair()).structures
        for one, before, (rows, columns) in zip(found, logits.log_softmax(1).split(1), self.BOXES, strict=True):
            outside = torch.ones(self.SHAPE, dtype=torch.bool)
            outside[rows, columns] = False
            assert torch.equal(one[..., outside], before[..., outside])
            # e^(x / 4) of the label against 1 + 1 of the others, x from the box's first column
            x = torch.arange(24.0).expand(24, 24)
            opinion = torch.stack([torch.zeros_like(x), x / 4, torch.zeros_like(x)]).log_softmax(0)
            torch.testing.assert_close(one[0, :, rows, columns], (before[0, :, rows, columns] + opinion) / 2)

    def test_the_cascade_registers_by_what_it_says(self) -> None:
        network, _, _ = self.network()
        roughened(network.cascade, 0.3)
        pair = self.pair()
        with torch.no_grad():
            told = network(*pair)
            network.expert = None
            alone = network(*pair)
        assert float((told.velocities[-1] - alone.velocities[-1]).abs().max()) > 0.01

    def test_it_is_not_asked_while_the_rest_is_trained_nor_trained_itself(self) -> None:
        network, expert, logits = self.network()
        network.train()
        prediction = network(*self.pair())
        assert expert.seen == []
        assert torch.equal(torch.cat(prediction.structures), logits)
        assert not any(p.requires_grad for p in expert.parameters())
        assert any(p.requires_grad for p in network.parameters())

    def test_it_is_not_asked_where_nothing_is_marked(self) -> None:
        network, expert, logits = self.network(marked=False)
        with torch.no_grad():
            found = network(*self.pair()).structures
        assert expert.seen == []
        assert torch.equal(torch.cat(found), logits.log_softmax(1))


class TestAffine:
    def test_a_rotation_turns_about_the_middle(self) -> None:
        angle = torch.tensor(0.3)
        turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
        matrix = about_middle(turn[None] - torch.eye(2), torch.zeros(1, 2), (9, 13))
        at = positions(None, matrix, (9, 13))
        assert at[0, :, 4, 6].tolist() == pytest.approx([4.0, 6.0], abs=1e-5)
        # one voxel along axis 0 from the middle lies at the first column of the rotation
        assert at[0, :, 5, 6].tolist() == pytest.approx([4 + math.cos(0.3), 6 + math.sin(0.3)], abs=1e-5)

    def test_a_shift_is_in_half_lengths(self) -> None:
        matrix = about_middle(torch.zeros(1, 2, 2), torch.tensor([[0.5, -1.0]]), (9, 13))
        assert (positions(None, matrix, (9, 13)) - identity_grid((9, 13)))[0, :, 3, 3].tolist() == [2.0, -6.0]

    def test_its_displacement_is_its_matrix(self) -> None:
        network = networks(2)[0]
        torch.nn.init.normal_(network.head[-1].bias, std=0.1)
        prediction = network(torch.randn(2, 1, 16, 20), torch.randn(2, 1, 16, 20))
        at = positions(None, prediction.linear, (16, 20)) - identity_grid((16, 20))
        assert torch.allclose(prediction.displacement, at, atol=1e-5)
        assert prediction.displacement.abs().max() > 0.3


class TestObjectives:
    def test_overlap_is_one_minus_dice_for_whole_maps(self) -> None:
        a = torch.zeros(1, 1, 8, 8)
        b = torch.zeros(1, 1, 8, 8)
        a[..., :4, :] = 1
        b[..., 2:6, :] = 1
        assert float(overlap_loss(a, b)) == pytest.approx(1 - 2 * 16 / (32 + 32))

    @pytest.mark.parametrize("d", [2, 3])
    def test_each_part_has_its_weight(self, d: int) -> None:
        """A ramp of slope 3 in one of d components costs 9 / d; beyond that only what is asked for is paid."""
        image = torch.rand(1, 1, *(8,) * d)
        labels = (image > 0.5).float()
        ramp = torch.zeros(1, d, *(8,) * d)
        ramp[:, 0] = 3.0 * identity_grid((8,) * d)[:, 0]
        batch = Batch(image, image, labels, labels)
        still = Prediction(torch.zeros_like(ramp), (ramp,))
        request = TrainRegistrationRequest("d", "o", labels=True, similarity="none", smoothness=0.5, label_weight=2.0)
        assert float(objective(still, batch, request)) == pytest.approx(0.5 * 9 / d, rel=1e-5)
        away = Prediction(torch.zeros_like(ramp), (torch.zeros_like(ramp),))
        batch = Batch(image, image, labels, 1 - labels)
        assert float(objective(away, batch, request)) == pytest.approx(2.0)
        alone = dataclasses.replace(request, labels=False, similarity="ssd")
        assert float(objective(away, batch, alone)) == pytest.approx(0.0)


class TestAtlas:
    def test_the_first_cases_make_it_and_later_ones_change_it(self) -> None:
        network = networks(2)[5]
        fixed, moving = torch.randn(2, 1, 1, SIDE, SIDE)
        a = torch.cat([blob((14.0, 14.0)), torch.zeros(1, 1, SIDE, SIDE)], 1)
        b = torch.cat([blob((18.0, 14.0)), torch.zeros(1, 1, SIDE, SIDE)], 1)
        with torch.no_grad():
            prediction = network(fixed, moving)
        network.learn_atlas(prediction, a, b)
        assert torch.allclose(network.atlas, (a + b) / 2, atol=0.02)
        first = network.atlas.clone()
        network.learn_atlas(prediction, a, a)
        assert torch.allclose(network.atlas - first, 0.02 * (a - first), atol=0.002)


class TestLearning:
    @pytest.mark.parametrize("which", [1, 3])
    def test_it_finds_a_shift(self, which: int) -> None:
        """Discs 4 voxels apart: after a few steps on this pair alone the warped one lies on the fixed one."""
        torch.manual_seed(0)
        network = (VoxelMorph if which == 1 else Cascade)(2, 1, features=(8, 8, 8))
        fixed, moving = blob((14.0, 16.0)), blob((18.0, 16.0))
        assert overlap_loss(moving, fixed) > 0.2
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(60):
            prediction = network(fixed, moving)
            loss = overlap_loss(warp(moving, prediction.displacement), fixed)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        u = network(fixed, moving).displacement.detach()
        assert overlap_loss(warp(moving, u), fixed) < 0.02
        # on the disc's rim; inside it nothing tells one voxel from another
        assert u[0, 0, [8, 20], 16].tolist() == pytest.approx([4.0, 4.0], abs=0.7)

    def test_labels_teach_both_parts_of_an_istn(self) -> None:
        network = networks(2)[4]
        fixed, moving = blob((14.0, 16.0)), blob((18.0, 16.0))
        prediction = network(fixed, moving)
        overlap_loss(warp(moving, prediction.displacement), fixed).backward()
        for part in (network.structures, network.cascade):
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
