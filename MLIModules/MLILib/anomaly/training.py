"""Training a model of normal: adversarial, autoencoding or denoising, then f-AnoGAN's encoder, into a MONAI bundle.

A training has one or two phases; each keeps the best of its checks, is written down as it goes and resumes after a kill
as if nothing had happened. A file called "stop" beside the checkpoint ends the phase early, with the best so far.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import charts, checkpoint, stop_file
from ..bundle_parts import read_words
from ..descent import copied
from ..device import resolve
from ..errors import BadInput
from ..progress import Progress
from . import bundle_writer, checks, objectives, pictures, sources
from .models import ADVERSARIAL, NormalModel
from .noise import blobs
from .requests import TrainAnomalyRequest

#: Checks (and possible bests) in a phase.
CHECKS = 40
#: Seconds between two checkpoints; one more is written at the end of a phase.
CHECKPOINT_SECONDS = 20.0
#: Seconds between two drawings of samples and curves; the last ones of a phase are always drawn.
PICTURE_SECONDS = 15.0
#: Images that samples are compared with, at most.
_COMPARED = 256
_RATES = {"fanogan": 1e-4, "wgan": 1e-4, "dcgan": 2e-4}
_AUTOENCODER_RATE = 1e-3
#: Weight of the code critic's term beside the mean square of the reconstruction.
_CODE_WEIGHT = 0.01


def run(request: TrainAnomalyRequest, progress: Progress) -> dict[str, Any]:
    """Train as `request` says; see :class:`MLILib.anomaly.requests.TrainAnomalyRequest` for the result.

    Raises:
        BadInput: images that cannot be used, an output folder that already holds something, or a training that
            diverged (the last good checkpoint stays).
    """
    charts.require_matplotlib()
    read_words(request.describe)  # a mistake in it is told now, not after the training
    folder = Path(request.output)
    state_file = folder / "training" / "checkpoint.pt"
    checkpoint.require_fresh(folder, state_file, request.resume)
    device = resolve(request.device)
    if request.threads:
        torch.set_num_threads(request.threads)
    source = sources.read(request, progress)
    trainer = Trainer(request, source, device)
    if request.resume and state_file.exists():
        trainer.load(state_file)
        progress.message(f"Going on after step {trainer.step} of the {trainer.phase}.")
    state_file.parent.mkdir(parents=True, exist_ok=True)
    trainer.fit(state_file, progress)
    result = bundle_writer.write_bundle(folder, trainer.outcome(), progress)
    state_file.unlink(missing_ok=True)
    return result


class Trainer:
    """The state of a training, and one step of it at a time.

    Args:
        request: the settings.
        source: what is learned from.
        device: where to compute.
    """

    def __init__(self, request: TrainAnomalyRequest, source: sources.Source, device: torch.device) -> None:
        torch.manual_seed(request.seed)
        self.request, self.source, self.device = request, source, device
        self.model = NormalModel(request.model, source.geometry.size, request.latent, request.filters).to(device)
        self.phases: dict[str, int] = {"model": request.steps}
        if request.model == "fanogan":
            self.phases["encoder"] = request.encoder_steps or request.steps
        self.phase = "model"
        self.step = 0
        self.steps_done: dict[str, int] = {}
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.figures: dict[str, float] = {}
        self.best_score = math.nan
        self.best_step = 0
        self._best: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(request.seed)
        self.optimizers = self._make_optimizers()
        self._sums: dict[str, list[float]] = {}
        self._drawn = time.monotonic()
        compared = source.validation[:_COMPARED]
        self._real = (compared if len(compared) >= 32 else source.training[:_COMPARED]).to(device)
        adversarial = request.model in ADVERSARIAL
        self._frechet = checks.Frechet(source.training[: 8 * _COMPARED]) if adversarial else None
        codes = torch.Generator().manual_seed(request.seed + 1)
        self._codes = torch.randn(len(self._real), request.latent, generator=codes).to(device)

    # -- one phase after the other

    def fit(self, state_file: Path, progress: Progress) -> None:
        """Train what is left; checkpoints, samples and curves go beside `state_file`."""
        stop_file.clear(state_file.parent)
        names = list(self.phases)
        for name in names[names.index(self.phase) :]:
            if name != self.phase:
                self._begin(name)
            progress.stage("Training the encoder" if name == "encoder" else "Training")
            self._run_phase(state_file, progress)
            self._restore_best()
            self.steps_done[name] = self.step
        self.save(state_file)

    def _run_phase(self, state_file: Path, progress: Progress) -> None:
        total = self.phases[self.phase]
        every = max(1, total // CHECKS)
        written = time.monotonic()
        while self.step < total:
            started = time.monotonic()
            self._train_step()
            self.step += 1
            self.seconds += time.monotonic() - started
            progress.fraction(self.step / total)
            if self.step % every == 0 or self.step == total:
                self._check(state_file.parent, progress)
            if stop_file.heard(state_file.parent):
                if not self._best:
                    self._check(state_file.parent, progress)
                progress.message(
                    f"Stopped after step {self.step} of {total}; the best, of step {self.best_step}, is kept."
                )
                return
            if time.monotonic() - written > CHECKPOINT_SECONDS:
                self.save(state_file)
                written = time.monotonic()

    def _begin(self, name: str) -> None:
        """Turn to the next phase."""
        self.phase, self.step = name, 0
        self.best_score, self.best_step, self._best = math.nan, 0, {}
        self._sums = {}
        self.optimizers = self._make_optimizers()

    def _make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        model, request = self.model, self.request
        if self.phase == "encoder":
            return {"encoder": torch.optim.Adam(model.encoder.parameters(), lr=_AUTOENCODER_RATE, betas=(0.5, 0.999))}
        if request.model in ADVERSARIAL:
            rate = request.learning_rate or _RATES[request.model]
            betas = (0.5, 0.999) if request.model == "dcgan" else (0.0, 0.9)
            return {
                name: torch.optim.Adam(part.parameters(), lr=rate, betas=betas)
                for name, part in (("generator", model.generator), ("critic", model.critic))
            }
        rate = request.learning_rate or _AUTOENCODER_RATE
        if request.model == "adversarial-ae":
            own = [p for name, p in model.named_parameters() if not name.startswith("code_critic")]
            return {
                "model": torch.optim.Adam(own, lr=rate, betas=(0.5, 0.999)),
                "critic": torch.optim.Adam(model.code_critic.parameters(), lr=rate / 2, betas=(0.5, 0.999)),
            }
        return {"model": torch.optim.Adam(model.parameters(), lr=rate)}

    # -- a step

    def _train_step(self) -> None:
        self.model.train()
        if self.phase == "encoder":
            self._encoder_step()
        elif self.request.model in ("fanogan", "wgan"):
            self._wasserstein_step()
        elif self.request.model == "dcgan":
            self._dcgan_step()
        else:
            self._autoencoder_step()

    def _images(self) -> Tensor:
        x, _ = self.source.draw(self.request.batch, self.generator)
        return self.model.placed(x.to(self.device))

    def _prior(self) -> Tensor:
        return torch.randn(self.request.batch, self.request.latent, generator=self.generator).to(self.device)

    def _wasserstein_step(self) -> None:
        model = self.model
        for _ in range(self.request.critic_steps):
            real = self._images()
            with torch.no_grad():
                fake = model.generator(self._prior())
            mix = torch.rand(len(real), generator=self.generator).to(self.device)
            estimate = objectives.wasserstein(model.critic(real), model.critic(fake))
            penalty = objectives.gradient_penalty(model.critic, real, fake, mix)
            self._descend("critic", -estimate + self.request.penalty * penalty)
            self._note("wasserstein", estimate)
            self._note("gradient penalty", penalty)
        fake = model.generator(self._prior())
        self._descend("generator", -model.critic(fake).mean())

    def _dcgan_step(self) -> None:
        model = self.model
        real, fake = self._images(), model.generator(self._prior())
        loss = objectives.discriminator_loss(model.critic(real), model.critic(fake.detach()))
        self._descend("critic", loss)
        self._note("discriminator loss", loss)
        loss = objectives.generator_loss(model.critic(fake))
        self._descend("generator", loss)
        self._note("generator loss", loss)

    def _autoencoder_step(self) -> None:
        model, kind = self.model, self.request.model
        self._anneal("model")
        x, weight = (t.to(self.device) for t in self.source.draw(self.request.batch, self.generator))
        if kind == "denoising-ae":
            loss = self._denoising_loss(x, weight)
        else:
            placed = model.placed(x)
            encoded = model.encoder(placed)
            z = encoded[:, : model.latent]
            if kind == "vae":
                noise = torch.randn(z.shape, generator=self.generator).to(self.device)
                spread = (0.5 * encoded[:, model.latent :]).exp()
                again = model.generator(z + spread * noise)
                kl = objectives.divergence(z, encoded[:, model.latent :])
                loss = objectives.negative_elbo(placed, again, kl, model.log_scale).mean() / placed[0].numel()
                self._note("divergence", kl.mean())
            else:
                loss = objectives.mean_square(placed - model.generator(z)).mean()
            if kind == "adversarial-ae":
                prior = self._prior()
                critic = objectives.discriminator_loss(model.code_critic(prior), model.code_critic(z.detach()))
                self._descend("critic", critic)
                self._note("code critic loss", critic)
                loss = loss + _CODE_WEIGHT * objectives.generator_loss(model.code_critic(z))
        self._descend("model", loss)
        self._note("loss", loss)

    def _denoising_loss(self, x: Tensor, weight: Tensor) -> Tensor:
        request = self.request
        added = blobs(len(x), x.shape[-1], request.noise, request.tail, self.generator).to(self.device)
        body = x > -1.0
        again = self.model.cut(self.model.denoiser(self.model.placed(x + added * body)))
        return ((again - x).abs() * weight).sum() / weight.sum().clamp(min=1.0)

    def _encoder_step(self) -> None:
        """izi_f: the encoder alone learns; generator and critic stay as they are."""
        model = self.model
        model.generator.eval()
        model.critic.eval()
        self._anneal("encoder")
        x = self._images()
        again = model.generator(model.code(x))
        with torch.no_grad():
            features = model.critic.features(x)
        loss = objectives.izi_f(x, again, features, model.critic.features(again), self.request.kappa).mean()
        self._descend("encoder", loss)
        self._note("encoder loss", loss)

    def _anneal(self, name: str) -> None:
        """Half a cosine down to nothing (Loshchilov 2017)."""
        share = self.step / self.phases[self.phase]
        for group in self.optimizers[name].param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * 0.5 * (1 + math.cos(math.pi * share))

    def _descend(self, name: str, loss: Tensor) -> None:
        if not bool(torch.isfinite(loss)):
            self._diverged(f"the loss of the {name} is {loss.item()}")
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[name].step()

    def _diverged(self, why: str) -> None:
        raise BadInput(
            f"The training of the {self.phase} diverged in step {self.step + 1}: {why}.",
            "The learning rate is too high, or an image holds extreme values; the last good checkpoint was kept.",
            "Train again into a new folder with a lower --learning-rate, or look at the images.",
        )

    # -- how it goes

    def _note(self, name: str, value: Tensor) -> None:
        self._sums.setdefault(name, []).append(float(value.detach()))

    def _check(self, folder: Path, progress: Progress) -> None:
        """A row of the history, the checks, a picture of samples; the weights are kept where they are the best."""
        row = {name: sum(values) / len(values) for name, values in self._sums.items() if values}
        self._sums = {}
        self.model.eval()
        with torch.no_grad():
            measured, rows = self._measured()
        if not all(bool(torch.isfinite(t).all()) for t in self.model.state_dict().values()):
            self._diverged("a weight is not a finite number")
        row |= measured
        score = measured["frechet"] if "frechet" in measured else measured["validation loss"]
        if not math.isfinite(score):
            self._diverged("what it makes is not finite")
        if not self._best or score < self.best_score:
            self.best_score, self.best_step = score, self.step
            self._best = copied(self.model)
            self.figures |= measured
        offset = sum(self.steps_done.values())
        self.history.append({"step": float(offset + self.step), **row, "seconds": self.seconds})
        for name, value in row.items():
            progress.curve(name, 1, offset + self.step, value)
        if self.step == self.phases[self.phase] or time.monotonic() - self._drawn > PICTURE_SECONDS:
            pictures.write_history(self.history, folder)
            pictures.write_samples(rows, folder / "samples.png")
            progress.samples(str(folder / "samples.png"))
            self._drawn = time.monotonic()

    def _measured(self) -> tuple[dict[str, float], list[Tensor]]:
        """Figures of the networks as they are, and the rows of the picture of samples."""
        model, real = self.model, self._real
        if self.phase == "model" and self._frechet is not None:
            made = torch.cat([model.cut(model.generator(codes)) for codes in self._codes.split(64)])
            answers = [torch.cat([model.critic_answer(part) for part in x.split(64)]) for x in (real, made)]
            found = {
                "frechet": self._frechet.distance(made),
                "diversity": checks.diversity(made, real),
                "balance": checks.balance(*answers),
            }
            if self.request.model != "dcgan":
                found["validation wasserstein"] = float(objectives.wasserstein(*answers))
            return found, [real[:8], made[:8], made[8:16], made[16:24]]
        if self.request.model == "denoising-ae":
            noise = torch.Generator().manual_seed(self.request.seed + 2)
            added = blobs(len(real), real.shape[-1], self.request.noise, self.request.tail, noise).to(self.device)
            seen = torch.where(real > -1.0, real + added, real)
            again = torch.cat([model.again(part) for part in seen.split(64)])
            return {"validation loss": float((again - real).abs().mean())}, [real[:8], seen[:8], again[:8]]
        terms = [model.terms(part) for part in real.split(64)]
        again = torch.cat([t.again for t in terms if t.again is not None])
        numbers = {name: float(torch.cat([t.numbers()[name] for t in terms]).mean()) for name in terms[0].numbers()}
        if self.phase == "encoder":
            loss = numbers["residual"] + self.request.kappa * numbers["features"]
            return {"validation loss": loss, "validation residual": numbers["residual"]}, [real[:8], again[:8]]
        loss = numbers["elbo"] if "elbo" in numbers else numbers["residual"]
        return {"validation loss": loss, "validation residual": numbers["residual"]}, [real[:8], again[:8]]

    def _restore_best(self) -> None:
        if self._best:
            self.model.load_state_dict(self._best)

    def outcome(self) -> bundle_writer.Outcome:
        """What the bundle is written from."""
        return bundle_writer.Outcome(
            request=self.request,
            source=self.source,
            model=self.model.eval(),
            device=self.device,
            steps=dict(self.steps_done),
            seconds=self.seconds,
            figures=dict(self.figures),
            losses={
                k: v for k, v in (self.history[-1] if self.history else {}).items() if k not in ("step", "seconds")
            },
            best_step=self.best_step,
        )

    # -- checkpoints

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all; weights that are not finite are never written."""
        if not all(bool(torch.isfinite(t).all()) for t in self.model.state_dict().values()):
            self._diverged("a weight is not a finite number")
        state = {
            "model": self.model.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "random": self.generator.get_state(),
            "best": self._best,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "phase": self.phase,
            "step": self.step,
            "steps_done": json.dumps(self.steps_done),
            "seconds": self.seconds,
            "sums": json.dumps(self._sums),
            "figures": json.dumps(self.figures),
            "history": json.dumps(self.history),
        }
        checkpoint.save(path, _identity(self.request), state)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of the same request.

        Raises:
            BadInput: the checkpoint was made with other settings.
        """
        state = checkpoint.load(path, _identity(self.request), "cpu")
        self.phase, self.step = str(state["phase"]), int(state["step"])
        self.model.load_state_dict(state["model"])
        self.optimizers = self._make_optimizers()
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.generator.set_state(state["random"])
        self._best = state["best"]
        self.best_score, self.best_step = float(state["best_score"]), int(state["best_step"])
        self.steps_done, self.seconds = json.loads(state["steps_done"]), float(state["seconds"])
        self._sums, self.figures = json.loads(state["sums"]), json.loads(state["figures"])
        self.history = json.loads(state["history"])


def _identity(request: TrainAnomalyRequest) -> dict[str, Any]:
    """The settings that must not change between a checkpoint and its resumption."""
    return checkpoint.identity(request, "threads", "dataset", "search_images")
