"""Distil the bundled transformer to four steps, with guidance baked in: ``bundled-turbo``.

Beside the recipe of its teacher, in two commands that share a working folder:

    python examples/distil_tiles.py student --work runs/turbo --minutes 90
    python examples/distil_tiles.py export  --work runs/turbo --out src/diff_es/bundled
    python examples/distil_tiles.py sheet   --work runs/turbo --out sheet.png

Progressive distillation (arXiv 2202.00512) of a guided teacher (arXiv 2210.03142): one step of the student lands where
several of the teacher's do. Its 20 DDIM steps at guidance 2 become the student's four at once, five for one. Half of
the states come from the teacher's own trajectories, the other half from the student's, so that it learns to go on from
where it really is. No data are needed but the teacher. Run it at guidance 1: none is left to be done.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor, nn
from train_tiles import DEVICE, NULL_CLASS, averaged, grid, sample, train

from diff_es.evaluation.tiles_reference import CLASSES, load_reference
from diff_es.pipelines.bundled import FOLDER
from diff_es.pipelines.loading import load

STEPS = 4  # of the student
FINE = 5  # steps of the teacher for one of them
GUIDANCE = 2.0
TRAJECTORIES = 64  # that run at a time, for sixteen updates
KEPT = 32768  # pairs of a state and where the teacher goes from it
BATCH = 128


def teacher_parts() -> tuple[DiTTransformer2DModel, DDIMScheduler]:
    folder = FOLDER / "tiles-dit"
    model = DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=torch.float32)
    return model.to(DEVICE).eval(), DDIMScheduler.from_pretrained(folder, subfolder="scheduler")


class Trajectory:
    """The student's timesteps, and DDIM between any two of them, as ``DDIMScheduler`` takes it."""

    def __init__(self, scheduler: DDIMScheduler) -> None:
        alphas = torch.cat([scheduler.alphas_cumprod, torch.ones(1)])  # the last one is where it ends
        fine = len(scheduler.alphas_cumprod) // (STEPS * FINE)
        self.times = [len(alphas) - 2 - fine * i for i in range(STEPS * FINE + 1)]  # the last is -1: no noise
        self.signal, self.noise = alphas.sqrt().to(DEVICE), (1 - alphas).sqrt().to(DEVICE)

    def step(self, x: Tensor, velocity: Tensor, t: int, s: int) -> Tensor:
        """From ``x`` at timestep t to s, all along the predicted velocity."""
        clean = self.signal[t] * x - self.noise[t] * velocity
        noise = self.noise[t] * x + self.signal[t] * velocity
        return self.signal[s] * clean + self.noise[s] * noise

    def velocity(self, x: Tensor, y: Tensor, t: int, s: int) -> Tensor:
        """The one velocity by which a step from ``x`` at t arrives at ``y`` at s."""
        ratio = self.noise[s] / self.noise[t]
        clean = (y - ratio * x) / (self.signal[s] - ratio * self.signal[t])
        return (self.signal[t] * x - clean) / self.noise[t]


def predicted(model: nn.Module, x: Tensor, t: int, labels: Tensor) -> Tensor:
    times = torch.full((len(x),), t, device=DEVICE)
    velocity: Tensor = model(x, timestep=times, class_labels=labels).sample
    return velocity.float()


def guided(model: nn.Module, x: Tensor, t: int, labels: Tensor) -> Tensor:
    both = torch.cat([labels, torch.full_like(labels, NULL_CLASS)])
    asked, free = predicted(model, torch.cat([x, x]), t, both).chunk(2)
    return free + GUIDANCE * (asked - free)


class Pairs:
    """States, and the velocities that take the student from them to where the teacher goes; the newest of each step."""

    def __init__(self, teacher: nn.Module, path: Trajectory) -> None:
        self.teacher, self.path = teacher, path
        self.states = torch.empty(KEPT, 16, 8, 8)
        self.velocities = torch.empty(KEPT, 16, 8, 8)
        self.times = torch.empty(KEPT, dtype=torch.long)
        self.labels = torch.empty(KEPT, dtype=torch.long)
        self.made = 0

    @torch.no_grad()
    def make(self, student: nn.Module) -> None:
        """Run new trajectories: half of them go on as the teacher does, half as the student."""
        labels = torch.randint(len(CLASSES), (TRAJECTORIES,), device=DEVICE)
        x, own = torch.randn(TRAJECTORIES, 16, 8, 8, device=DEVICE), slice(TRAJECTORIES // 2, None)
        for i in range(STEPS):
            times = self.path.times[i * FINE : (i + 1) * FINE + 1]
            t, s, y = times[0], times[-1], x
            for here, there in pairwise(times):
                y = self.path.step(y, guided(self.teacher, y, here, labels), here, there)
            self._keep(x, self.path.velocity(x, y, t, s), t, labels)
            y[own] = self.path.step(x[own], predicted(student, x[own], t, labels[own]), t, s)
            x = y

    def _keep(self, x: Tensor, velocity: Tensor, t: int, labels: Tensor) -> None:
        to = slice(self.made % KEPT, self.made % KEPT + len(x))
        self.states[to], self.velocities[to], self.times[to], self.labels[to] = x.cpu(), velocity.cpu(), t, labels.cpu()
        self.made += len(x)

    def batch(self) -> tuple[Tensor, ...]:
        pick = torch.randint(min(self.made, KEPT), (BATCH,))
        columns = (self.states, self.times, self.labels, self.velocities)
        return tuple(column[pick].to(DEVICE) for column in columns)


def train_student(work: Path, minutes: float) -> None:
    teacher, scheduler = teacher_parts()
    student, _ = teacher_parts()
    torch.manual_seed(int(time.time()))  # a resumed run draws new noise
    path = Trajectory(scheduler)
    pairs = Pairs(teacher, path)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        for _ in range(16):
            pairs.make(student)

    def loss_of(step: int) -> Tensor:
        if step % 16 == 0:
            pairs.make(student)
        x, t, labels, velocity = pairs.batch()
        return F.mse_loss(student(x, timestep=t, class_labels=labels).sample.float(), velocity)

    @torch.no_grad()
    def distance(model: nn.Module) -> float:
        generator = torch.Generator().manual_seed(3)
        x = y = torch.randn(TRAJECTORIES, 16, 8, 8, generator=generator).to(DEVICE)
        labels = torch.arange(TRAJECTORIES, device=DEVICE) % len(CLASSES)
        for t, s in pairwise(path.times[::FINE]):
            x = path.step(x, predicted(model, x, t, labels), t, s)
        for t, s in pairwise(path.times):
            y = path.step(y, guided(teacher, y, t, labels), t, s)
        return float(10 * (y.square().mean() / (x - y).square().mean()).log10())

    train(work / "student.safetensors", student, loss_of, minutes=minutes, rate=3e-4, decay=0.999, evaluate=distance)


def student_pipeline(work: Path) -> DiTPipeline:
    """The student as a stock pipeline, with its teacher's autoencoder and scheduler."""
    transformer, scheduler = teacher_parts()
    vae = AutoencoderDC.from_pretrained(FOLDER / "tiles-dit", subfolder="vae", torch_dtype=torch.float32).to(DEVICE)
    labels = {str(i): name for i, name in enumerate(CLASSES)}
    student = averaged(work / "student.safetensors", transformer)
    pipe = DiTPipeline(transformer=student, vae=vae, scheduler=scheduler, id2label=labels)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sheet(work: Path, out: Path) -> None:
    """A contact sheet, one class a row; and Fréchet distances of 1,024 samples to the real tiles, the teacher's too."""
    student, teacher, real = student_pipeline(work), load("bundled"), load_reference()
    teacher.set_progress_bar_config(disable=True)
    grid(sample(student, per_class=20, steps=STEPS, guidance=1.0), columns=20).save(out)
    print(f"saved {out}", flush=True)
    for name, pipe, steps, guidance in (
        ("student", student, STEPS, 1.0),
        *(("teacher", teacher, steps, GUIDANCE) for steps in (4, 8, 20)),
    ):
        images = sample(pipe, per_class=128, steps=steps, guidance=guidance)
        print(f"{name}, {steps} steps: Fréchet distance {real.distance(images / 2 + 0.5):.2f}", flush=True)


def export(work: Path, out: Path) -> None:
    """Write the student in half precision; the autoencoder stays with the teacher."""
    pipe, folder = student_pipeline(work), out / "tiles-turbo"
    pipe.transformer.to(torch.float16).save_pretrained(folder / "transformer", safe_serialization=True)
    pipe.scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((FOLDER / "tiles-dit" / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    print(f"saved {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["student", "sheet", "export"])
    parser.add_argument("--work", type=Path, default=Path("runs/turbo"), help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to train")
    parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="where sheet and export write")
    args = parser.parse_args()
    if args.command == "student":
        train_student(args.work, args.minutes)
    elif args.command == "sheet":
        sheet(args.work, args.out)
    else:
        export(args.work, args.out)


if __name__ == "__main__":
    main()
