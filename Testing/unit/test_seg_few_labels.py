"""Few labels and absent channels: a mean teacher on unlabelled images, and models that do without a channel."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_dataset import write_dataset

torch = pytest.importorskip("torch")

from MLILib.errors import BadInput  # noqa: E402
from MLILib.progress import Progress  # noqa: E402
from MLILib.segmentation import training_memory, unlabelled  # noqa: E402
from MLILib.segmentation.augmentation import Sampler  # noqa: E402
from MLILib.segmentation.dataset import chosen_cases, read_dataset, split_cases  # noqa: E402
from MLILib.segmentation.requests import SegmentRequest, TrainSegmentationRequest  # noqa: E402
from MLILib.segmentation.training import Trainer  # noqa: E402
from MLILib.tasks import run  # noqa: E402

SETTINGS: dict[str, Any] = {"epochs": 4, "filters": 2, "batch": 2, "device": "cpu", "amp": False, "folds": 3}


def two_channels(folder: Path, n: int = 6) -> Path:
    """The ellipsoids with a second channel that shows them as well, with the contrast turned round."""
    data = json.loads(write_dataset(folder, n, size=(20, 18)).read_text(encoding="utf-8"))
    for case in data["training"]:
        image = sitk.ReadImage(str(folder / case["image"]))
        second = case["image"].replace("image", "second")
        sitk.WriteImage(200.0 - image, str(folder / second))
        case["image"] = [case["image"], second]
    data["modality"] = {"0": "T1", "1": "T2"}
    (folder / "dataset.json").write_text(json.dumps(data), encoding="utf-8")
    return folder / "dataset.json"


class TestMeanTeacher:
    def test_the_weight_grows_from_e_to_the_minus_5_to_1(self) -> None:
        """Laine 2017: exp(-5 (1 - t)^2)."""
        assert unlabelled.ramp(0.0) == pytest.approx(math.exp(-5))
        assert unlabelled.ramp(unlabelled.RAMP / 2) == pytest.approx(math.exp(-1.25))
        assert unlabelled.ramp(1.0) == 1.0

    def test_those_who_agree_do_not_disagree(self) -> None:
        logits = torch.randn(2, 3, 5, 5)
        assert float(unlabelled.disagreement(logits, torch.softmax(logits, dim=1))) == 0.0
        certain = torch.tensor([[[50.0]], [[0.0]]])[None]
        apart = unlabelled.disagreement(certain, torch.softmax(-certain, dim=1))
        assert float(apart) == pytest.approx(2.0)  # (1 - 0)^2 + (0 - 1)^2

    def test_what_the_teacher_believes_is_the_mean_over_mirrored_images(self) -> None:
        teacher = torch.nn.Conv2d(1, 3, 3, padding=1)
        plain = torch.randn(2, 1, 8, 6)
        whole, first, second = (torch.softmax(teacher(plain.flip(axes)), dim=1).flip(axes) for axes in ((), (2,), (3,)))
        for axes, wanted in (((), whole), ((1,), (whole + second) / 2), ((0, 1), (whole + first + second) / 3)):
            found = unlabelled.believed(teacher, plain, axes)
            torch.testing.assert_close(found, wanted)
            assert not found.requires_grad  # no gradient reaches the teacher

    def test_boxes_are_pasted_both_ways(self) -> None:
        rng = np.random.default_rng(0)
        shares = []
        for shape in ((12, 10, 8), (20, 16)):
            for _ in range(50):
                inside = unlabelled.box(shape, rng)
                shares.append(float(inside.float().mean()))
                for axis in range(len(shape)):  # a box: along each axis it is one run
                    along = inside.any(dim=tuple(a for a in range(len(shape)) if a != axis)).int()
                    assert int(along.diff().abs().sum()) + int(along[0]) + int(along[-1]) == 2
                    assert int(inside.sum()) % int(along.sum()) == 0
        assert 0.15 < min(shares) < 0.4
        assert 0.6 < max(shares) < 0.85
        ones, others = torch.ones(2, 1, 20, 16), torch.zeros(2, 1, 20, 16)
        both = unlabelled.pasted(ones, others, inside)
        assert torch.equal(both[:2], inside.float().expand(2, 1, -1, -1))
        assert torch.equal(both[2:], 1 - both[:2])

    def test_what_is_pasted_is_learned_with_what_the_teacher_says(self, tmp_path: Path) -> None:
        """The loss is that of the labelled images plus, weighted, that of the pasted ones with pasted labels."""
        data = write_dataset(tmp_path, 6, size=(20, 18))
        settings = SETTINGS | {"augment": ("none",)}
        request = TrainSegmentationRequest(str(data), str(tmp_path / "x"), mean_teacher=3.0, labelled=1, **settings)
        dataset = read_dataset(data)
        split, images = chosen_cases(split_cases(dataset, 0, 3), 1, 0)
        made = Trainer(request, dataset, split, torch.device("cpu"), images=images)
        image, label = torch.randn(2, 1, 24, 24), torch.randint(0, 2, (2, 1, 24, 24))
        other, believed = torch.randn(2, 1, 24, 24), torch.softmax(torch.randn(2, 2, 24, 24), dim=1)
        seen: list[tuple[Any, Any]] = []
        wanted = made.loss.forward
        made.loss.forward = lambda found, truth, *rest: (seen.append((found, truth)), wanted(found, truth, *rest))[1]
        inputs: list[Any] = []
        made.network.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
        said = believed.argmax(dim=1, keepdim=True)
        loss = made._step(image, label, 0, (), (other, believed))
        pasted, drawn = inputs[0][2:], seen[1][1]
        of_label = (pasted[:2] == image).all(dim=1, keepdim=True)
        assert torch.equal(drawn[:2], torch.where(of_label, label, said))
        assert torch.equal(drawn[2:], torch.where(of_label, said, label))
        parts = [float(wanted(found.detach(), truth)) for found, truth in seen]
        assert loss == pytest.approx(parts[0] + 3 * math.exp(-5) * parts[1], rel=1e-5)

    def test_the_teacher_sees_the_image_as_it_is_and_the_network_sees_it_changed(self, tmp_path: Path) -> None:
        """A teacher that believes a voxel's intensity: its labels move with the image."""
        data = write_dataset(tmp_path, 6, size=(20, 18))
        dataset = read_dataset(data)
        split, images = chosen_cases(split_cases(dataset, 0, 3), 1, 0)
        settings = SETTINGS | {"augment": ("affine", "flip", "contrast")}
        request = TrainSegmentationRequest(str(data), str(tmp_path / "x"), mean_teacher=1.0, labelled=1, **settings)
        made = Trainer(request, dataset, split, torch.device("cpu"), images=images)
        made.read_cases(Progress())
        looked: list[Any] = []

        class Teacher(torch.nn.Module):
            def forward(self, image: Any) -> Any:
                looked.append(image)
                assert self.training  # with the statistics of its batch
                return torch.cat([-8 * image, 8 * image], dim=1)

        made.average = Teacher().eval()
        other = made._sampler(made._unlabelled, labelled=False)
        moved = agree = 0
        for number in range(12):
            at = other.visited(number, 2)
            shown, believed = made._taught(other, at, number)
            plain, *mirrored = looked
            looked.clear()
            for patch, (_, i) in zip(plain, at, strict=True):
                image = made._unlabelled[i][0]
                rows, columns = (
                    slice((n - m) // 2, (n + m) // 2) for n, m in zip(patch[0].shape, image[0].shape, strict=True)
                )
                assert torch.equal(patch[:, rows, columns], image)  # padded alike on both sides
            assert [torch.equal(m, plain.flip(a + 2)) for m, a in zip(mirrored, made.plan.mirror_axes, strict=True)]
            moved += not torch.equal(shown, plain)
            torch.testing.assert_close(believed.sum(dim=1), torch.ones(2, *made.plan.patch))
            sure = (shown[:, 0].abs() > 0.3) & ((believed[:, 1] - 0.5).abs() > 0.4)
            agree += float(((believed[:, 1] > 0.5) == (shown[:, 0] > 0))[sure].float().mean()) > 0.95
        assert moved > 8
        assert agree == 12

    def test_a_patch_of_a_large_image_is_seen_by_both(self) -> None:
        image = torch.arange(40.0 * 30).reshape(1, 40, 30)
        sampler = Sampler([(image, torch.zeros(1, 40, 30))], (16, 8), (), 2, 0, augment=("none",))
        seen = [sampler.plain(epoch, 0) for epoch in range(5)]
        assert all(patch.shape == (1, 16, 8) for patch in seen)
        assert len({float(patch[0, 0, 0]) for patch in seen}) > 1
        assert torch.equal(sampler.plain(1, 0), seen[1])  # a resumed training looks at the same places
        soft = torch.rand(2, 16, 8)
        soft /= soft.sum(dim=0)
        shown, believed = sampler.changed(seen[0], soft, 0, 0)
        assert torch.equal(shown, seen[0])
        torch.testing.assert_close(believed, soft)
        louder = Sampler([(image, torch.zeros(1, 40, 30))], (16, 8), (), 2, 0, augment=("noise",))
        several = [louder.changed(seen[0], soft, epoch, 0) for epoch in range(30)]
        assert 0 < sum(not torch.equal(shown, seen[0]) for shown, _ in several) < 30
        for _, believed in several:
            torch.testing.assert_close(believed, soft)

    @pytest.mark.parametrize(
        ("settings", "patches"),
        [({}, 1), ({"mean_teacher": 1.0}, 3), ({"mean_teacher": 1.0, "paste": False}, 2)],
    )
    def test_every_patch_of_a_step_counts_in_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], patches: int
    ) -> None:
        asked = []
        wanted = training_memory.at_hand
        monkeypatch.setattr(training_memory, "at_hand", lambda device, n: asked.append(n) or wanted(device, n))
        data = write_dataset(tmp_path, 6, size=(20, 18))
        request = TrainSegmentationRequest(str(data), str(tmp_path / "x"), labelled=1, **SETTINGS | settings)
        dataset = read_dataset(data)
        split, images = chosen_cases(split_cases(dataset, 0, 3), 1, 0)
        made = Trainer(request, dataset, split, torch.device("cpu"), images=images)
        assert asked == [patches]
        one, many = (wanted(made.device, n).need(made.plan.network, made.plan.patch) for n in (1, patches))
        assert many == (one[0], patches * one[1])

    @pytest.mark.parametrize("paste", [True, False])
    def test_the_images_without_labels_are_looked_at(self, tmp_path: Path, paste: bool) -> None:
        data = write_dataset(tmp_path, 6, size=(20, 18))
        dataset = read_dataset(data)
        split, images = chosen_cases(split_cases(dataset, 0, 3), 1, 0)
        assert len(split.training) == 1
        assert len(images) == 2
        losses = {}
        for weight in (0.0, 5.0):
            request = TrainSegmentationRequest(
                str(data), str(tmp_path / "x"), mean_teacher=weight, paste=paste or not weight, labelled=1, **SETTINGS
            )
            trainer = Trainer(request, dataset, split, torch.device("cpu"), images=images)
            trainer.read_cases(Progress())
            for _ in range(3):
                row = trainer.run_epoch(Progress())
            losses[weight] = row["loss"]
            assert len(trainer._unlabelled) == (2 if weight else 0)
        assert losses[0.0] != losses[5.0]

    def test_a_training_with_a_folder_of_images(self, tmp_path: Path) -> None:
        data = write_dataset(tmp_path, 6, size=(20, 18))
        more = tmp_path / "more"
        more.mkdir()
        for i in range(3):
            sitk.WriteImage(sitk.ReadImage(str(tmp_path / f"image_0{i}.nii.gz")), str(more / f"{i}.nii.gz"))
        request = TrainSegmentationRequest(
            str(data), str(tmp_path / "model"), mean_teacher=1.0, labelled=2, unlabelled=str(more), **SETTINGS
        )
        result = run(request)
        assert result["test"]["mean"]["dice"]["mean"] >= 0
        card = (tmp_path / "model" / "docs" / "README.md").read_text(encoding="utf-8")
        assert "--mean-teacher" in card
        assert "2 cases to train on" in card
        assert str(tmp_path) not in card

    def test_what_is_missing_is_said(self, tmp_path: Path) -> None:
        data = write_dataset(tmp_path, 6, size=(20, 18))
        plain = TrainSegmentationRequest(str(data), str(tmp_path / "model"), **SETTINGS)
        with pytest.raises(BadInput, match="no unlabelled images"):
            run(dataclasses.replace(plain, mean_teacher=1.0))
        with pytest.raises(BadInput, match="--no-paste is for a mean teacher"):
            run(dataclasses.replace(plain, paste=False))
        with pytest.raises(BadInput, match="nothing learns from them"):
            run(dataclasses.replace(plain, unlabelled=str(tmp_path)))
        with pytest.raises(BadInput, match="moving average"):
            run(dataclasses.replace(plain, mean_teacher=1.0, labelled=2, ema=0.0))
        with pytest.raises(BadInput, match="there are 3 to train on"):
            run(dataclasses.replace(plain, labelled=40))
        (tmp_path / "empty").mkdir()
        with pytest.raises(BadInput, match="holds no images"):
            run(dataclasses.replace(plain, mean_teacher=1.0, unlabelled=str(tmp_path / "empty")))

    def test_after_an_image_that_cannot_be_used_the_same_folder_can(self, tmp_path: Path) -> None:
        data = write_dataset(tmp_path, 6, size=(20, 18))
        more = tmp_path / "more"
        more.mkdir()
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "image_00.nii.gz")), str(more / "a.nii.gz"))
        sitk.WriteImage(sitk.GaussianSource(size=(8, 8, 8), mean=(4, 4, 4)), str(more / "b.nii.gz"))
        settings = SETTINGS | {"epochs": 1, "mean_teacher": 1.0, "labelled": 2, "unlabelled": str(more)}
        request = TrainSegmentationRequest(str(data), str(tmp_path / "model"), **settings)
        with pytest.raises(BadInput, match=r"b\.nii\.gz is 3-D, and the labelled cases are 2-D"):
            run(request)
        (more / "b.nii.gz").unlink()
        assert run(request)["bundle"] == str(tmp_path / "model")

    def test_unlabelled_cases_of_several_channels_are_folders(self, tmp_path: Path) -> None:
        for case in ("a", "b"):
            (tmp_path / case).mkdir()
            for channel in ("t1", "t2"):
                (tmp_path / case / f"{channel}.nii.gz").touch()
        assert [len(files) for files in unlabelled.find_images(str(tmp_path), 2)] == [2, 2]
        (tmp_path / "b" / "t2.nii.gz").unlink()
        with pytest.raises(BadInput, match="channels: b"):
            unlabelled.find_images(str(tmp_path), 2)


class TestAbsentChannel:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("channels")
        data = two_channels(folder, 8)
        settings = SETTINGS | {"epochs": 25, "filters": 4, "learning_rate": 0.02}
        run(TrainSegmentationRequest(str(data), str(folder / "model"), modality_dropout=0.4, **settings))
        return folder

    def dice(self, folder: Path, images: tuple[str, ...], missing: tuple[str, ...] = ()) -> float:
        out = folder / f"out_{len(images)}_{'_'.join(missing)}.nii.gz"
        run(SegmentRequest(tuple(str(folder / i) for i in images), (str(folder / "model"),), str(out),
                           missing=missing, device="cpu"))  # fmt: skip
        a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(p))) > 0 for p in (out, folder / "label_00.nii.gz"))
        return float(2 * (a & b).sum() / (a.sum() + b.sum()))

    def test_it_works_with_either_alone(self, folder: Path) -> None:
        """A disc fills a fifth of the image: whoever labels everything has a Dice of about 0.4."""
        assert self.dice(folder, ("image_00.nii.gz", "second_00.nii.gz")) > 0.7
        assert self.dice(folder, ("image_00.nii.gz",), ("T2",)) > 0.7
        assert self.dice(folder, ("second_00.nii.gz",), ("T1",)) > 0.7

    def test_what_cannot_be_missing_is_said(self, folder: Path) -> None:
        with pytest.raises(BadInput, match="FLAIR cannot be missing"):
            self.dice(folder, ("image_00.nii.gz",), ("FLAIR",))
        with pytest.raises(BadInput, match="T1, T2 cannot be missing"):
            self.dice(folder, ("image_00.nii.gz",), ("T1", "T2"))
        with pytest.raises(BadInput, match="2 images are given for 1 channels"):
            self.dice(folder, ("image_00.nii.gz", "second_00.nii.gz"), ("T2",))

    def test_a_model_that_needs_all_says_so(self, folder: Path) -> None:
        about = folder / "model" / "configs" / "metadata.json"
        text = about.read_text(encoding="utf-8")
        metadata = json.loads(text)
        assert metadata["mli"].pop("modality_dropout") == 0.4
        about.write_text(json.dumps(metadata), encoding="utf-8")
        try:
            with pytest.raises(BadInput, match="needs all of its channels"):
                self.dice(folder, ("image_00.nii.gz",), ("T2",))
        finally:
            about.write_text(text, encoding="utf-8")

    def test_a_case_with_too_few_channels_is_refused(self, tmp_path: Path) -> None:
        data = json.loads(two_channels(tmp_path, 3).read_text(encoding="utf-8"))
        data["training"][1]["image"] = data["training"][1]["image"][:1]
        (tmp_path / "dataset.json").write_text(json.dumps(data), encoding="utf-8")
        with pytest.raises(BadInput, match="has 1 images, and the data set names 2 channels"):
            read_dataset(tmp_path / "dataset.json")


def test_labels_of_the_chosen_cases_only_are_used(tmp_path: Path) -> None:
    dataset = read_dataset(write_dataset(tmp_path, 8, size=(4, 4)))
    split = split_cases(dataset, 0, 4)
    few, images = chosen_cases(split, 2, 0)
    assert few.training == split.training[:2]
    assert images == [case.images for case in split.training[2:]]
    drawn, _ = chosen_cases(split, 0, 3)
    assert len(drawn.training) == len(split.training)
    assert set(drawn.training) < set(split.training)
    assert chosen_cases(split, 0, 3)[0] == drawn
    assert np.any([chosen_cases(split, 0, k)[0] != drawn for k in (1, 2, 4)])
