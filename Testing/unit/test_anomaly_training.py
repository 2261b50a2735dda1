"""Models of normal: they train, resume, repeat, stop, notice what goes wrong, and their bundles load and score."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from tiny_anomaly import discs, write_discs  # noqa: E402

from MLILib import bundles, stop_file, tasks, weights  # noqa: E402
from MLILib.anomaly import loading, scoring, sources, training  # noqa: E402
from MLILib.anomaly.models import NormalModel  # noqa: E402
from MLILib.anomaly.requests import METHODS_OF, MODELS, TrainAnomalyRequest  # noqa: E402
from MLILib.errors import BadInput  # noqa: E402
from MLILib.progress import Progress  # noqa: E402

CPU = torch.device("cpu")


def request(folder: Path, model: str = "fanogan", **more: Any) -> TrainAnomalyRequest:
    data = folder / "normal.npz"
    if not data.exists():
        write_discs(data)
    settings: dict[str, Any] = {"filters": 4, "latent": 4, "steps": 2, "batch": 4, "critic_steps": 1, "device": "cpu"}
    return TrainAnomalyRequest(str(data), str(folder / "bundle"), model=model, **(settings | more))


def trainer(asked: TrainAnomalyRequest) -> training.Trainer:
    return training.Trainer(asked, sources.read(asked, Progress()), CPU)


def state(made: training.Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in made.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_becomes_a_bundle_that_scores(kind: str, tmp_path: Path) -> None:
    result = tasks.run(request(tmp_path, kind))
    assert result["images"] + result["validation"] == 60
    folder = tmp_path / "bundle"
    assert not (folder / "training" / "checkpoint.pt").exists()
    assert {"samples.png", "training_curve.csv", "training_curve.png"} <= {
        p.name for p in (folder / "training").iterdir()
    }
    first = (folder / "docs" / "README.md").read_text(encoding="utf-8").splitlines()[0]
    assert "Must not be used" in first
    assert bundles.find(str(folder)).labels == ()
    loaded = loading.load(str(folder), CPU)
    x = torch.from_numpy(sources.fitted(discs(3).astype(np.float32) / 255 - 0.5, 20))[:, None]
    for method in METHODS_OF[kind]:
        scorer = scoring.Scorer(loaded.network, loaded.knowledge, method, CPU, scoring.Search(steps=2))
        found = scorer.images(x)
        assert found.map.shape == x.shape
        assert bool(torch.isfinite(found.map).all())
        assert bool(torch.isfinite(found.score).all())
        if not method.startswith("anogan"):
            assert method in loaded.calibration


class TestResuming:
    def test_a_fixed_seed_repeats(self, tmp_path: Path) -> None:
        states = []
        for _ in range(2):
            made = trainer(request(tmp_path))
            for _ in range(2):
                made._train_step()
            states.append(state(made))
        assert same(*states)

    def test_another_seed_is_another_model(self, tmp_path: Path) -> None:
        assert not same(*(state(trainer(request(tmp_path, seed=seed))) for seed in (0, 1)))

    @pytest.mark.parametrize("kind", ["fanogan", "adversarial-ae", "dcgan"])
    def test_a_checkpoint_goes_on_as_if_nothing_had_happened(self, kind: str, tmp_path: Path) -> None:
        asked = request(tmp_path, kind, steps=4)
        whole = trainer(asked)
        whole.fit(_state_file(tmp_path / "whole"), Progress())
        killed = trainer(asked)
        for _ in range(2):
            killed._train_step()
            killed.step += 1
            killed._check(_state_file(tmp_path / "part").parent, Progress())
        killed.save(tmp_path / "part" / "checkpoint.pt")
        again = trainer(asked)
        again.load(tmp_path / "part" / "checkpoint.pt")
        again.fit(tmp_path / "part" / "checkpoint.pt", Progress())
        assert same(state(whole), state(again))

    def test_other_settings_are_refused(self, tmp_path: Path) -> None:
        made = trainer(request(tmp_path))
        made.save(tmp_path / "checkpoint.pt")
        other = trainer(request(tmp_path, kappa=2.0))
        with pytest.raises(BadInput, match=r"kappa = 1.0, not 2.0"):
            other.load(tmp_path / "checkpoint.pt")


def _state_file(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / "checkpoint.pt"


class TestWhatGoesWrong:
    def test_nan_stops_says_the_step_and_keeps_the_last_good_checkpoint(self, tmp_path: Path) -> None:
        made = trainer(request(tmp_path, "ae", steps=50))
        made._train_step()
        made.step = 1
        made.save(tmp_path / "checkpoint.pt")
        with torch.no_grad():
            made.model.encoder.last.bias[0] = float("nan")
        with pytest.raises(BadInput, match=r"diverged in step 2") as caught:
            made._train_step()
        assert "checkpoint was kept" in caught.value.cause
        with pytest.raises(BadInput, match=r"not a finite number"):
            made.save(tmp_path / "checkpoint.pt")
        kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert int(kept["step"]) == 1
        assert all(bool(torch.isfinite(t).all()) for t in kept["model"].values())

    def test_too_few_images_says_how_many_are_needed(self, tmp_path: Path) -> None:
        write_discs(tmp_path / "normal.npz", count=12)
        with pytest.raises(BadInput, match=r"only 12 normal images") as caught:
            trainer(request(tmp_path))
        assert "at least 32" in caught.value.cause

    def test_a_constant_image_is_named(self, tmp_path: Path) -> None:
        stack = discs(40)
        stack[7] = 9
        np.savez(tmp_path / "normal.npz", images=stack)
        with pytest.raises(BadInput, match=r"Image 7 of images .* is constant"):
            trainer(request(tmp_path))

    def test_objects_are_never_unpickled(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "normal.npz", images=np.array([{"a": 1}], dtype=object))
        with pytest.raises(BadInput, match=r"cannot be read") as caught:
            trainer(request(tmp_path))
        assert "never loaded" in caught.value.cause

    def test_an_npz_without_images_says_what_it_holds(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "normal.npz", pictures=discs(40))
        with pytest.raises(BadInput, match=r"neither images nor train_images") as caught:
            trainer(request(tmp_path))
        assert "pictures" in caught.value.cause

    def test_nothing_is_written_where_the_data_are_bad(self, tmp_path: Path) -> None:
        write_discs(tmp_path / "normal.npz", count=12)
        with pytest.raises(BadInput):
            tasks.run(request(tmp_path))
        assert not (tmp_path / "bundle").exists()


def test_only_the_normal_rows_of_a_labelled_npz_are_learned(tmp_path: Path) -> None:
    stack = discs(50)
    labels = np.zeros((50, 1), np.uint8)
    labels[::5] = 1
    np.savez(tmp_path / "normal.npz", train_images=stack, train_labels=labels)
    made = sources.read(request(tmp_path), Progress())
    assert len(made.training) + len(made.validation) == 40


def test_lesions_among_the_training_images_are_told(tmp_path: Path) -> None:
    stack = discs(120).astype(np.float32)
    rng = np.random.default_rng(3)
    stack[:24] = rng.uniform(0, 255, (24, 20, 20))  # a fifth is noise that no small code describes
    np.savez(tmp_path / "normal.npz", images=stack)
    result = tasks.run(request(tmp_path, "ae", steps=30, batch=16))
    assert any("two heaps" in warning for warning in result["warnings"])


def test_the_encoder_learns_alone(tmp_path: Path) -> None:
    made = trainer(request(tmp_path))
    made._begin("encoder")
    before = state(made)
    made._train_step()
    after = state(made)
    changed = {k.partition(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"encoder"}


def test_a_file_called_stop_ends_a_phase_with_the_best_so_far(tmp_path: Path) -> None:
    asked = request(tmp_path, "ae", steps=500)
    folder = tmp_path / "training"
    folder.mkdir()
    made = trainer(asked)
    step = made._train_step
    made._train_step = lambda: (stop_file.ask(folder), step())[1]  # type: ignore[method-assign]
    made.fit(folder / "checkpoint.pt", Progress())
    assert made.steps_done == {"model": 1}
    assert made.best_step == 1


def test_weights_load_as_weights_only(tmp_path: Path) -> None:
    tasks.run(request(tmp_path, "vae"))
    for name in ("model.pt", "baselines.pt"):
        assert weights.load(tmp_path / "bundle" / "models" / name)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    from tiny_bundle import write_tiny_bundle

    folder = write_tiny_bundle(tmp_path / "segmenter")
    with pytest.raises(BadInput, match=r"not for anomaly detection"):
        loading.load(str(folder), CPU)


def test_codes_of_normal_images_are_a_distance_of_one_on_average() -> None:
    model = NormalModel("ae", 16, 3, 4)
    z = torch.randn(4000, 3) @ torch.diag(torch.tensor([1.0, 5.0, 0.2])) + 7.0
    model.fit_codes(z)
    # The covariance C is shrunk to 0.95 C + 0.05 mean(diag C); with variances v that leaves v / (0.95 v + 0.05 mean v).
    v = z.var(dim=0)
    wanted = float((v / (0.95 * v + 0.05 * v.mean())).mean())
    assert float(model.code_distance(z).mean()) == pytest.approx(wanted, rel=0.01)
    far = z.mean(dim=0, keepdim=True) + torch.tensor([[4.0, 0.0, 0.0]])
    assert float(model.code_distance(far)) > 3.0


def test_request_refuses_planes_that_cut_what_is_kept_aside(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"patches of three planes"):
        dataclasses.replace(request(tmp_path), plane="patch-3").check()
