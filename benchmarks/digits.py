"""A small U-Net of pixels, trained for the purpose: whether what is found also stays near to the data.

    pip install scikit-learn
    python benchmarks/digits.py --minutes 12 --work digits
    python benchmarks/digits.py --work digits --seeds 0 1 2 --results digits.jsonl

With minutes it trains, on the 1,797 handwritten digits that scikit-learn brings: an unconditional `DDIMPipeline` in
pixels of 8 x 8, predicting noise, norms in groups; and the small classifier whose features serve the Fréchet distance.
Without, it searches for every measure and seed, and judges all contenders on noises that no search has seen: by SNR
(dB) to the dense model and by their images' Fréchet distance to the digits, and by the kernel distance to the dense
model's images.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from common import Budgets, Noises, Results, ResultsFile, Seeds, Steps, options, untimed
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from few_steps import judged, show
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diff_es import Effort, with_effort
from diff_es.cli.options import MEASURES, MeasureName
from diff_es.compression.settings import Levers
from diff_es.pipelines.loading import load
from diff_es.scoring.metrics import frechet_distance, kernel_distance, moments
from diff_es.utils.progress import Reporter

SHAPE = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (64, 128),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 16,
    "norm_num_groups": 16,
    "layers_per_block": 2,
}
SCHEDULER = {"timestep_spacing": "trailing", "clip_sample": False}


@dataclass(frozen=True)
class Options:
    work: Annotated[Path, "folder of the trained model"] = Path("digits")
    minutes: Annotated[float, "of training; 0: none, the model is there"] = 0.0
    measures: Annotated[tuple[MeasureName, ...], "of searches; ".join(MeasureName), tuple(MeasureName)] = (
        MeasureName.SNR,
    )
    levers: Annotated[Levers, "; ".join(Levers), tuple(Levers)] = Levers.PRUNE
    effort: Annotated[float, "share of the thorough search's work"] = Effort.STANDARD.share
    steps: Steps = 20
    budgets: Budgets = (0.7, 0.5)
    seeds: Seeds = (0, 1, 2)
    noises: Noises = 512
    results: ResultsFile = Path("digits.jsonl")


def digits() -> tuple[Tensor, Tensor]:
    """(N, 1, 8, 8) in [-1, 1] and their labels, (N,)."""
    from sklearn.datasets import load_digits  # for this benchmark alone

    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(found.target)


class Classifier(nn.Module):
    """Names a digit; its 32 pooled features serve the Fréchet distance."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        pooled = nn.Sequential(first, nn.SiLU(), nn.AvgPool2d(2), second, nn.SiLU(), nn.Flatten())
        self.body = nn.Sequential(pooled, nn.Linear(1024, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(F.silu(self.body(images)))
        return scores


class Digits:
    """The real ones, by the classifier's features."""

    def __init__(self, work: Path) -> None:
        self._classifier = Classifier().eval()
        self._classifier.load_state_dict(load_file(work / "classifier.safetensors"))
        self._real = moments(self._features(digits()[0]))

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self._classifier.body(images)
        return features

    def distance(self, images: Tensor) -> float:
        """Fréchet distance of images in [0, 1], (N, 1 or 3, 8, 8), to all digits."""
        return frechet_distance(*moments(self._features(images[:, :1] * 2 - 1)), *self._real)

    def between(self, images: Tensor, others: Tensor) -> float:
        """Kernel distance of two sets of images in [0, 1], (N, 1 or 3, 8, 8) each."""
        return kernel_distance(*(self._features(one[:, :1] * 2 - 1) for one in (images, others)))


def train(work: Path, minutes: float) -> None:
    """The classifier and the model, in the folder."""
    torch.manual_seed(0)
    images, labels = digits()
    generator = torch.Generator().manual_seed(0)
    work.mkdir(parents=True, exist_ok=True)
    save_file(classifier(images, labels, round(125 * minutes), generator).state_dict(), work / "classifier.safetensors")
    pipe = DDIMPipeline(unet=UNet2DModel(**SHAPE), scheduler=DDIMScheduler(**SCHEDULER))
    denoise(pipe, images, minutes, generator)
    pipe.save_pretrained(work / "model")


def classifier(images: Tensor, labels: Tensor, updates: int, generator: torch.Generator) -> Classifier:
    """Trained on slightly noisy digits."""
    network = Classifier()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(updates):
        pick = torch.randint(len(images), (64,), generator=generator)
        noisy = images[pick] + 0.1 * torch.randn(64, 1, 8, 8, generator=generator)
        loss = F.cross_entropy(network(noisy), labels[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network


def denoise(pipe: DDIMPipeline, images: Tensor, minutes: float, generator: torch.Generator) -> None:
    """Train the U-Net to predict noise; what stays is the running average of its weights."""
    unet, scheduler = pipe.unet, pipe.scheduler
    average = [p.detach().clone() for p in unet.parameters()]
    optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    start, step, running = time.monotonic(), 0, 0.0
    while (spent := (time.monotonic() - start) / 60) < minutes:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, (minutes - spent) / (0.4 * minutes)) * min(1.0, (step + 1) / 100)
        pick = torch.randint(len(images), (128,), generator=generator)
        noise = torch.randn(128, 1, 8, 8, generator=generator)
        times = torch.randint(1000, (128,), generator=generator)
        loss = F.mse_loss(unet(scheduler.add_noise(images[pick], noise, times), times).sample, noise)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(unet.parameters()), 1 - min(0.999, (step + 1) / (step + 10)))
        step, running = step + 1, 0.98 * running + 0.02 * loss.item()
        if step % 200 == 0:
            print(f"{spent:5.1f} min  step {step:6d}  loss {running:.4f}", flush=True)
    for parameter, value in zip(unet.parameters(), average, strict=True):
        parameter.data.copy_(value)


def main() -> None:
    asked = options(Options, __doc__)
    if asked.minutes:
        train(asked.work, asked.minutes)
        return
    pipe, real = load(str(asked.work / "model"), dtype=torch.float32), Digits(asked.work)
    reporter, results = Reporter(), Results(asked.results)
    for seed in asked.seeds:
        for measure in asked.measures:
            key = {"model": "digits", "scheduler": None, "levers": asked.levers, "measure": measure, "seed": seed}
            if not results.holds(key):
                settings = with_effort(untimed(asked.steps, 0.0, asked.levers, seed), asked.effort)
                settings = replace(settings, measure=MEASURES[measure])
                rows = judged(pipe, settings, asked.budgets, real, asked.noises, False, reporter)
                results.add([key | one for one in rows])
    show(results.rows())


if __name__ == "__main__":
    main()
