"""Linear maps: parameters to matrices and back, against scipy, SimpleITK and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation

from MLILib.geometry import Grid
from MLILib.registration import linear

CENTRES = {2: np.array([10.0, -20.0]), 3: np.array([10.0, -20.0, 35.0])}
SCALE = 50.0


def random_parameters(kind: str, d: int, n: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(d)
    return 15 * torch.randn(n, linear.count(kind, d), dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", linear.KINDS)
class TestEveryKind:
    def test_zero_is_the_identity(self, kind: str, d: int) -> None:
        zero = torch.zeros(2, linear.count(kind, d))
        got = linear.matrix(kind, zero, torch.from_numpy(CENTRES[d]), SCALE)
        assert torch.equal(got, torch.eye(d + 1).expand(2, -1, -1))

    def test_there_and_back(self, kind: str, d: int) -> None:
        given = random_parameters(kind, d, 3)
        whole = linear.matrix(kind, given, torch.from_numpy(CENTRES[d]), SCALE)
        assert torch.allclose(linear.parameters_of(kind, whole, CENTRES[d], SCALE), given, atol=1e-9)

    def test_gradients_also_at_the_identity(self, kind: str, d: int) -> None:
        centre = torch.from_numpy(CENTRES[d])
        for given in (random_parameters(kind, d), 0 * random_parameters(kind, d)):
            assert torch.autograd.gradcheck(lambda p: linear.matrix(kind, p, centre, SCALE), given.requires_grad_())

    def test_the_centre_moves_by_the_translation(self, kind: str, d: int) -> None:
        given = random_parameters(kind, d)
        whole = linear.matrix(kind, given, torch.from_numpy(CENTRES[d]), SCALE)[0].numpy()
        assert np.allclose(whole[:d, :d] @ CENTRES[d] + whole[:d, d] - CENTRES[d], given[0, -d:])

    def test_a_small_unit_moves_a_point_at_the_scale_by_a_unit(self, kind: str, d: int) -> None:
        """Each parameter moves some point at distance `scale` by as much as it counts, and none by more."""
        centre = torch.from_numpy(CENTRES[d])
        sphere = np.random.default_rng(0).normal(size=(4000, d))
        sphere *= SCALE / np.linalg.norm(sphere, axis=1, keepdims=True)
        for which in torch.eye(linear.count(kind, d), dtype=torch.float64):
            whole = linear.matrix(kind, 0.01 * which[None], centre, SCALE)[0].numpy()
            points = sphere + CENTRES[d]
            moved = np.linalg.norm(points @ whole[:d, :d].T + whole[:d, d] - points, axis=1)
            assert moved.max() == pytest.approx(0.01, rel=2e-3)


class TestRotation:
    def test_is_scipys(self) -> None:
        vector = np.array([[0.3, -1.2, 0.7], [0.0, 0.0, 3.0], [1e-9, 0.0, 0.0]])
        expected = Rotation.from_rotvec(vector).as_matrix()
        assert np.allclose(linear.rotation(torch.from_numpy(vector)).numpy(), expected, atol=1e-12)

    def test_in_the_plane(self) -> None:
        quarter = linear.rotation(torch.tensor([[np.pi / 2]], dtype=torch.float64))[0]
        assert torch.allclose(
            quarter @ torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double(), atol=1e-12
        )

    def test_rigid_is_simpleitks_versor(self) -> None:
        degrees, axis = 25.0, np.array([1.0, 2.0, -1.0]) / np.sqrt(6)
        theirs = sitk.VersorRigid3DTransform()
        theirs.SetCenter(CENTRES[3].tolist())
        theirs.SetRotation(axis.tolist(), np.radians(degrees))
        theirs.SetTranslation((4.0, 5.0, 6.0))
        given = torch.tensor([[*(SCALE * np.radians(degrees) * axis), 4.0, 5.0, 6.0]], dtype=torch.float64)
        whole = linear.matrix("rigid", given, torch.from_numpy(CENTRES[3]), SCALE)[0].numpy()
        point = np.array([3.0, 70.0, -12.0])
        assert np.allclose(whole[:3, :3] @ point + whole[:3, 3], theirs.TransformPoint(point.tolist()))


class TestParametersOf:
    def test_affine_gives_the_rotation_nearest_to_it(self) -> None:
        turn = Rotation.from_rotvec([0.2, 0.4, -0.3])
        whole = np.eye(4)
        whole[:3, :3] = turn.as_matrix() @ np.diag([1.1, 0.8, 1.3])  # its polar rotation is `turn`
        rigid = linear.parameters_of("rigid", whole, CENTRES[3], SCALE)[0].numpy()
        assert np.allclose(rigid[:3] / SCALE, turn.as_rotvec())
        similarity = linear.parameters_of("similarity", whole, CENTRES[3], SCALE)[0].numpy()
        assert np.exp(similarity[3] / SCALE) == pytest.approx((1.1 * 0.8 * 1.3) ** (1 / 3))

    def test_a_mirror_has_none(self) -> None:
        with pytest.raises(ValueError, match="mirrors"):
            linear.parameters_of("rigid", np.diag([-1.0, 1, 1, 1]), CENTRES[3], SCALE)
        whole = np.diag([-1.0, 1, 1, 1])
        back = linear.matrix(
            "affine", linear.parameters_of("affine", whole, CENTRES[3], SCALE), torch.from_numpy(CENTRES[3]), SCALE
        )
        assert np.allclose(back[0].numpy(), whole)

    def test_wrong_number_and_kind(self) -> None:
        with pytest.raises(ValueError, match="has 12 parameters"):
            linear.matrix("affine", torch.zeros(1, 6), torch.zeros(3), SCALE)
        with pytest.raises(ValueError, match="unknown kind"):
            linear.count("projective", 3)


class TestLengthScale:
    def test_is_the_rms_distance_of_a_boxs_points(self) -> None:
        grid = Grid((60, 40, 20), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
        points = np.random.default_rng(1).uniform(-0.5, 0.5, (200_000, 3)) * (60, 80, 60)
        assert linear.length_scale(grid) == pytest.approx(np.sqrt((points**2).sum(1).mean()), rel=5e-3)


class TestDecompose:
    def test_parts_come_back(self) -> None:
        turn = Rotation.from_rotvec(np.radians([5.0, -20.0, 12.0]))
        scales, shears = np.array([1.2, 0.9, 1.05]), (0.1, -0.2, 0.05)
        upper = np.diag(scales)
        upper[0, 1], upper[0, 2], upper[1, 2] = np.array(shears) * (1.2, 1.2, 0.9)
        whole = np.eye(4)
        whole[:3, :3] = turn.as_matrix() @ upper
        whole[:3, 3] = CENTRES[3] + (1.0, 2.0, 2.0) - whole[:3, :3] @ CENTRES[3]
        found = linear.decompose(whole, CENTRES[3])
        assert np.allclose(found.rotation_degrees, (5.0, -20.0, 12.0))
        assert np.allclose(found.scales, scales)
        assert np.allclose(found.shears, shears)
        assert np.allclose(found.translation, (1.0, 2.0, 2.0))
        assert found.distance == pytest.approx(3.0)
        assert found.angle == pytest.approx(np.sqrt(25 + 400 + 144))
        assert "moves by 3 mm, scales by 1.2 x 0.9 x 1.05, shears by 0.1, -0.2, 0.05" in str(found)

    def test_rigid_says_nothing_of_scales(self) -> None:
        whole = np.eye(3)
        whole[:2, :2] = [[0.0, -1.0], [1.0, 0.0]]
        found = linear.decompose(whole, np.zeros(2))
        assert found.rotation_degrees == pytest.approx((90.0,))
        assert str(found) == "turns by 90 degrees, moves by 0 mm"

    def test_a_mirror_has_a_negative_scale(self) -> None:
        found = linear.decompose(np.diag([1.0, -2.0, 1.0, 1.0]), np.zeros(3))
        assert np.prod(found.scales) == pytest.approx(-2.0)
        assert found.scales[0] < 0
