"""Trainings that are cut short or shared: resumed ones end with the same weights, two processes with one model."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_dataset import write_dataset

torch = pytest.importorskip("torch")

from MLILib.checkpoint import write_state  # noqa: E402
from MLILib.errors import BadInput  # noqa: E402
from MLILib.progress import Progress  # noqa: E402
from MLILib.segmentation import training  # noqa: E402
from MLILib.segmentation.dataset import Split, chosen_cases, read_dataset, split_cases  # noqa: E402
from MLILib.segmentation.distributed import Team  # noqa: E402
from MLILib.segmentation.plan import read_plan  # noqa: E402
from MLILib.segmentation.requests import SegmentRequest, TrainSegmentationRequest  # noqa: E402
from MLILib.segmentation.training import Trainer, _identity  # noqa: E402
from MLILib.tasks import run  # noqa: E402

LIBRARY = Path(__file__).resolve().parents[2] / "MLIModules"

#: One epoch in each of the processes; every process writes what it ended with.
WORKER = """
import sys
from pathlib import Path
import torch
from MLILib.progress import Progress
from MLILib.segmentation.dataset import Split, read_dataset
from MLILib.segmentation.distributed import team
from MLILib.segmentation.requests import TrainSegmentationRequest
from MLILib.segmentation.training import Trainer
folder = Path(sys.argv[1])
dataset = read_dataset(folder / "dataset.json")
request = TrainSegmentationRequest(str(folder / "dataset.json"), "", epochs=3, filters=2, batch=2, amp=False,
                                   augment=("none",), ema=0.0, steps=1, learning_rate=0.01)
with team(torch.device("cpu")) as crew:
    trainer = Trainer(request, dataset, Split(dataset.cases[:2], (), ()), torch.device("cpu"), crew=crew)
    trainer.read_cases(Progress())
    trainer.run_epoch(Progress())
    torch.save(trainer.network.state_dict(), folder / f"rank_{crew.rank}_of_{crew.size}.pt")
"""


#: Teams that train, one after the other; each network is freed when its team is gone.
MANY = """
import os
import sys
import torch
from MLILib.segmentation.distributed import team
for port in sys.argv[1:]:
    os.environ["MASTER_PORT"] = port
    with team(torch.device("cpu")) as crew:
        network = crew.wrapped(torch.nn.Linear(2, 2), torch.device("cpu"))
        network(torch.ones(1, 2)).sum().backward()
        assert crew.agreed(crew.rank) == 0
        crew.wait()
    del network, crew
"""


def free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in found]


def torchrun(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(LIBRARY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
               "--master-port", *free_ports(1), *words]  # fmt: skip
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )


class TestResume:
    def test_every_option_at_once_ends_with_the_same_weights(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training, "_SHAPE_STEPS", 10)
        data = write_dataset(tmp_path, 8, size=(20, 18))
        dataset = read_dataset(data)
        split, images = chosen_cases(split_cases(dataset, 0, 4), 3, 1)
        request = TrainSegmentationRequest(
            str(data), str(tmp_path / "m"), epochs=4, filters=2, batch=2, device="cpu", amp=False, steps=3, folds=4,
            dropout=0.2, mixup=0.4, label_smoothing=0.1, l1=1e-5, balance=True, foreground=0.5, shape_prior=0.5,
            mean_teacher=1.0, labelled=3, draw=1, network="unet",
        )  # fmt: skip

        def fresh() -> Trainer:
            return Trainer(request, dataset, split, torch.device("cpu"), images=images)

        whole = fresh()
        whole.fit(tmp_path / "whole.pt", Progress())
        broken = fresh()
        broken.read_cases(Progress())
        broken._learn_shapes(Progress())
        for _ in range(2):
            broken.run_epoch(Progress())
        broken.save(tmp_path / "broken.pt")
        torch.manual_seed(99)  # whatever happened between
        again = Trainer(request, dataset, split, torch.device("cpu"), read_plan(tmp_path / "broken.pt"), images=images)
        again.load(tmp_path / "broken.pt")
        again.fit(tmp_path / "broken.pt", Progress())
        for part in ("network", "average"):
            ended = [getattr(t, part).state_dict() for t in (whole, again)]
            for name in ended[0]:
                assert torch.equal(ended[0][name], ended[1][name]), name

    def test_the_plan_is_the_checkpoint_s(self, tmp_path: Path) -> None:
        data = write_dataset(tmp_path, 4, size=(20, 18))
        dataset = read_dataset(data)
        request = TrainSegmentationRequest(str(data), "", epochs=4, filters=2, device="cpu", patch=(32,))
        trainer = Trainer(request, dataset, Split(dataset.cases, (), ()), torch.device("cpu"))
        trainer.save(tmp_path / "state.pt")
        assert read_plan(tmp_path / "state.pt").patch == (32, 32)

    def test_no_setting_that_matters_may_change(self) -> None:
        kept = set(_identity(TrainSegmentationRequest("d", "o")))
        every = {s.name for s in TrainSegmentationRequest.settings()}
        assert every - kept == {"resume", "output", "device", "threads", "dataset", "describe"}

    def test_a_full_disk_is_said_and_the_checkpoint_before_stays(self, tmp_path: Path) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full, a disk without room")
        write_state(tmp_path / "state.pt", {"epoch": 1})
        (tmp_path / "state.partial").symlink_to("/dev/full")
        with pytest.raises(BadInput, match="is full"):
            write_state(tmp_path / "state.pt", {"epoch": 2})
        assert torch.load(tmp_path / "state.pt", weights_only=True) == {"epoch": 1}
        assert not (tmp_path / "state.partial").is_symlink()


class TestStart:
    def test_it_begins_with_another_model_s_weights(self, tmp_path: Path) -> None:
        data = write_dataset(tmp_path, 6, size=(20, 18))
        settings: dict[str, Any] = {"epochs": 1, "filters": 2, "folds": 2, "device": "cpu", "batch": 2}
        run(TrainSegmentationRequest(str(data), str(tmp_path / "first"), **settings))
        dataset = read_dataset(data)

        def begun(**more: Any) -> Trainer:
            request = TrainSegmentationRequest(str(data), "", start=str(tmp_path / "first"), **(settings | more))
            return Trainer(request, dataset, Split(dataset.cases, (), ()), torch.device("cpu"))

        weights = torch.load(tmp_path / "first" / "models" / "model.pt", weights_only=True)
        for part in ("network", "average"):
            for name, value in getattr(begun(), part).state_dict().items():
                assert torch.equal(value, weights[name]), name
        with pytest.raises(BadInput, match="do not fit its network"):
            begun(filters=4)


class TestTwoProcesses:
    def test_gradients_are_averaged(self, tmp_path: Path) -> None:
        """A step of two processes is one on the mean of the losses of their cases."""
        write_dataset(tmp_path, 2, size=(20, 18))
        (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
        done = torchrun(["worker.py", str(tmp_path)], tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        first, second = (torch.load(tmp_path / f"rank_{k}_of_2.pt", weights_only=True) for k in (0, 1))
        for name in first:
            assert torch.equal(first[name], second[name]), name

        dataset = read_dataset(tmp_path / "dataset.json")
        request = TrainSegmentationRequest(str(tmp_path / "dataset.json"), "", epochs=3, filters=2, batch=2, amp=False,
                                           augment=("none",), ema=0.0, steps=1, learning_rate=0.01)  # fmt: skip
        alone = Trainer(request, dataset, Split(dataset.cases, (), ()), torch.device("cpu"))
        alone.read_cases(Progress())
        losses = alone.loss.forward

        def apart(logits: Any, labels: Any, *_: Any) -> Any:
            return (losses(logits[:1], labels[:1]) + losses(logits[1:], labels[1:])) / 2

        alone.loss.forward = apart  # type: ignore[method-assign]
        alone.run_epoch(Progress())
        for name, value in alone.network.state_dict().items():
            assert torch.allclose(value, first[name], atol=1e-5), name

    def test_a_bundle_comes_out(self, tmp_path: Path) -> None:
        write_dataset(tmp_path, 6, size=(20, 18))
        done = torchrun(["-m", "MLILib.cli", "train", "segmentation", "dataset.json", "-o", "model", "--epochs", "2",
                         "--filters", "2", "--folds", "2", "--device", "cpu"], tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        image, out = str(tmp_path / "image_00.nii.gz"), str(tmp_path / "out.nii.gz")
        run(SegmentRequest((image,), (str(tmp_path / "model"),), out, device="cpu"))

    def test_a_process_ends_whose_network_outlives_its_team(self) -> None:
        """Torch 2.13 waits for itself, once in a few dozen times."""
        environment = os.environ | {"PYTHONPATH": str(LIBRARY), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2",
                                    "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
        command = [sys.executable, "-c", MANY, *free_ports(30)]
        both = [subprocess.Popen(command, env=environment | {"RANK": rank}, stderr=subprocess.PIPE) for rank in "01"]
        try:
            for process in both:
                _, said = process.communicate(timeout=180)
                assert process.returncode == 0, said[-3000:]
        finally:
            for process in both:
                process.kill()

    def test_each_takes_its_share(self) -> None:
        assert [Team(rank, 2).share([1, 2, 3, 4]) for rank in (0, 1)] == [[1, 3], [2, 4]]
        assert [Team(rank, 2).share([1, 2, 3]) for rank in (0, 1)] == [[1, 3], [2, 1]]
        assert [Team(rank, 3).share([7]) for rank in range(3)] == [[7]] * 3


class TestBadInput:
    def test_all_faults_are_listed_at_once(self, tmp_path: Path) -> None:
        import SimpleITK as sitk

        data = write_dataset(tmp_path, 5, size=(20, 18))
        empty = sitk.ReadImage(str(tmp_path / "label_01.nii.gz")) * 0
        sitk.WriteImage(empty, str(tmp_path / "label_01.nii.gz"))
        moved = sitk.ReadImage(str(tmp_path / "label_02.nii.gz"))
        moved.SetOrigin((50.0, 0.0))
        sitk.WriteImage(moved, str(tmp_path / "label_02.nii.gz"))
        high = sitk.ReadImage(str(tmp_path / "label_03.nii.gz")) * 4
        sitk.WriteImage(high, str(tmp_path / "label_03.nii.gz"))
        (tmp_path / "label_04.nii.gz").write_bytes(b"not an image")
        with pytest.raises(BadInput) as caught:
            run(TrainSegmentationRequest(str(data), str(tmp_path / "model"), folds=2))
        said = str(caught.value)
        for words in (
            "image_01: its label is empty",
            "image_02: its label lies on another grid",
            "image_03: its label holds the values 4, 8",
            "image_04: a file of it cannot be read",
        ):
            assert words in said
        assert "image_00" not in said
        assert not (tmp_path / "model").exists()

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"fold": 7}, "no fold 7 among 5"),
            ({"folds": 40}, "3 cases cannot be split into 40 folds"),
            ({"class_weights": (0.0, 0.0, 0.0)}, "All class weights are 0"),
            ({"augment": ("none", "flip")}, "names none and others"),
            ({"patience": 5, "fold": -1}, "without validation cases"),
            ({"calibrate": True, "fold": -1}, "without validation cases"),
            ({"dropout": 2.0}, "from 0 to 0.9"),
            ({"augment": ("sepia",)}, "Choose one of"),
        ],
    )
    def test_what_cannot_work_is_said(self, tmp_path: Path, settings: dict[str, Any], said: str) -> None:
        data = write_dataset(tmp_path, 3, size=(20, 18))
        with pytest.raises(BadInput, match=said):
            run(TrainSegmentationRequest(str(data), str(tmp_path / "model"), **settings))

    def test_one_case_only(self, tmp_path: Path) -> None:
        data = write_dataset(tmp_path, 1, size=(20, 18))
        with pytest.raises(BadInput, match="1 case cannot be split"):
            run(TrainSegmentationRequest(str(data), str(tmp_path / "model")))

    def test_slices_of_a_patient_stay_together(self, tmp_path: Path) -> None:
        import json

        path = write_dataset(tmp_path, 12, size=(4, 4))
        data = json.loads(path.read_text(encoding="utf-8"))
        for i, case in enumerate(data["training"]):
            case["group"] = f"patient {i % 6}"
        path.write_text(json.dumps(data), encoding="utf-8")
        for fold in range(3):
            split = split_cases(read_dataset(path), fold, 3)
            parts = [{c.group for c in part} for part in (split.training, split.validation, split.test)]
            assert sum(len(p) for p in parts) == 6
            assert not any(parts[i] & parts[j] for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_diverged_training_keeps_its_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_dataset(tmp_path, 6, size=(20, 18))
    real = Trainer._step

    def step(self: Trainer, images: Any, labels: Any, number: int, *rest: Any) -> float:
        return real(self, images * float("nan") if self.epoch >= 5 else images, labels, number, *rest)

    monkeypatch.setattr(Trainer, "_step", step)
    request = TrainSegmentationRequest(str(data), str(tmp_path / "model"), epochs=10, filters=2, folds=2, device="cpu")
    result = run(request)
    assert result["ok"] is False
    assert "diverged" in result["error"]
    assert "after epoch 5 were kept" in result["error"]
    assert (tmp_path / "model" / "models" / "model.pt").exists()
