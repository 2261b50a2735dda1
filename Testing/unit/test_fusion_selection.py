"""Choosing atlases: the ones that look like the target are found, whatever their place, brightness and order."""

from __future__ import annotations

from typing import Any

import atlas_scenes
import numpy as np
import pytest
import SimpleITK as sitk
from atlas_scenes import Registrar

from MLILib.fusion import propagate, propagation, selection
from MLILib.fusion.cache import Cache
from MLILib.geometry import from_array


def test_the_highest_in_their_own_order() -> None:
    assert selection.most_alike([0.1, 0.9, 0.5, 0.9], 3) == [1, 2, 3]
    assert selection.most_alike([0.5, 0.5, 0.5], 2) == [0, 1]
    assert selection.most_alike([0.1], 5) == [0]


class Several:
    """A target, and atlases that show it with more and more of its voxels replaced by others' values."""

    def __init__(self, dims: int = 3) -> None:
        where = atlas_scenes.grid(100, dims)
        zero = np.zeros(dims)
        self.target = atlas_scenes.image(where, zero, 1)
        rng = np.random.default_rng(0)
        self.atlases = []
        for number, share in enumerate((0.5, 0.0, 0.2)):
            own = atlas_scenes.grid(number, dims)
            array = sitk.GetArrayFromImage(atlas_scenes.image(own, zero, number + 2))
            flat = array.ravel()
            chosen = rng.permutation(flat.size)[: int(share * flat.size)]
            flat[chosen] = flat[rng.permutation(chosen)]
            image = from_array(flat.reshape(array.shape) * (number + 1) + 10, own)  # another brightness and contrast
            self.atlases.append((image, atlas_scenes.labels(own, zero)))
        self.register = Registrar([(image, zero) for image, _ in self.atlases] + [(self.target, zero)])


@pytest.fixture(params=[2, 3])
def several(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Several:
    made = Several(request.param)
    monkeypatch.setattr(selection, "register", made.register)
    monkeypatch.setattr(propagation, "register", made.register)
    return made


def test_likeness_falls_as_images_differ(several: Several) -> None:
    much, none, some = (selection.likeness(several.target, image) for image, _ in several.atlases)
    assert none > some > much


def test_what_an_atlas_does_not_show_counts_as_unlike(several: Several) -> None:
    image, _ = several.atlases[1]
    part = image[tuple(slice(n // 2 - 2, n // 2 + 3) for n in image.GetSize())]
    register = Registrar([(part, np.zeros(part.GetDimension())), (several.target, np.zeros(part.GetDimension()))])
    apart = Registrar([(image, np.full(part.GetDimension(), 15.0)), (several.target, np.zeros(part.GetDimension()))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "register", register)
        assert np.isfinite(selection.likeness(several.target, part))
        patch.setattr(selection, "register", apart)
        shifted = selection.likeness(several.target, image)
    assert shifted < selection.likeness(several.target, image)


@pytest.mark.parametrize(("count", "used"), [(1, {"atlas 2"}), (2, {"atlas 2", "atlas 3"}), (0, None), (9, None)])
def test_only_the_chosen_are_registered(several: Several, count: int, used: set[str] | None) -> None:
    found = propagate(several.target, several.atlases, select=count)
    everyone = {"atlas 1", "atlas 2", "atlas 3"}
    assert set(found.raters.names) == (used or everyone)
    left = [one for one in found.outcomes if one.name not in (used or everyone)]
    assert all(one.status == "not selected" and "more like the target" in one.reason for one in left)
    presets = [settings["preset"] for settings in several.register.settings]
    assert presets.count("deformable") == len(used or everyone)
    assert presets.count(selection.PRESET) == (3 if used else 0)


def test_choosing_again_costs_nothing(several: Several, tmp_path: Any) -> None:
    kept = Cache(tmp_path)
    propagate(several.target, several.atlases, select=1, kept=kept)
    before = len(several.register.calls)
    assert before == 4
    propagate(several.target, several.atlases, select=1, kept=kept)
    assert len(several.register.calls) == before
    propagate(several.target, several.atlases, select=2, kept=kept)
    assert len(several.register.calls) == before + 1
