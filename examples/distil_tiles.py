"""Distil the bundled transformer to four steps, with guidance baked in: ``bundled-turbo``.

Beside the recipe of its teacher, in three commands that share a working folder:

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
import shutil
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiTPipeline
from torch import Tensor, nn
from train_tiles import DEVICE, NULL_CLASS, averaged, grid, new_transformer, sample, train

from diff_es.evaluation.tiles_reference import CLASSES, load_reference
from diff_es.pipelines.bundled import FOLDER
from diff_es.pipelines.loading import load

STEPS = 4  # of the student
FINE = 5  # steps of the teacher for one of them
GUIDANCE = 2.0
TRAJECTORIES = 64  # that run at a time ...
UPDATES = 16  # ... for so many updates; as many times before the first
KEPT = 32768  # pairs of a state and where the teacher goes from it
BATCH = 128


TEACHER = FOLDER / "tiles-dit"


def teacher_pipeline() -> DiTPipeline:
    pipe = load("bundled", dtype=torch.float32, device=DEVICE)
    pipe.set_progress_bar_config(disable=True)
    return pipe


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
    """States, and the velocities that take the student from them to where the teacher goes; the newest ones."""

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
    pipe, student = teacher_pipeline(), new_transformer().eval()
    teacher, path = pipe.transformer, Trajectory(pipe.scheduler)
    student.load_state_dict(teacher.state_dict())
    torch.manual_seed(int(time.time()))  # a resumed run draws new noise
    pairs = Pairs(teacher, path)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        for _ in range(UPDATES):
            pairs.make(student)

    def loss_of(step: int) -> Tensor:
        if step % UPDATES == 0:
            pairs.make(student)
        x, t, labels, velocity = pairs.batch()
        return F.mse_loss(student(x, timestep=t, class_labels=labels).sample.float(), velocity)

    noise = torch.randn(TRAJECTORIES, 16, 8, 8, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    asked, goal = torch.arange(TRAJECTORIES, device=DEVICE) % len(CLASSES), noise
    with torch.no_grad():
        for t, s in pairwise(path.times):
            goal = path.step(goal, guided(teacher, goal, t, asked), t, s)

    @torch.no_grad()
    def closeness(model: nn.Module) -> float:
        """SNR in dB of the student's four steps to all of the teacher's."""
        x = noise
        for t, s in pairwise(path.times[::FINE]):
            x = path.step(x, predicted(model, x, t, asked), t, s)
        return float(10 * (goal.square().mean() / (x - goal).square().mean()).log10())

    train(work / "student.safetensors", student, loss_of, minutes=minutes, rate=3e-4, decay=0.999, evaluate=closeness)


def student_pipeline(work: Path) -> DiTPipeline:
    """The student as a stock pipeline, with its teacher's autoencoder and scheduler."""
    pipe = teacher_pipeline()
    pipe.transformer = averaged(work / "student.safetensors", new_transformer())
    return pipe


def sheet(work: Path, out: Path) -> None:
    """A contact sheet, one class a row; and Fréchet distances of 1,024 samples to the real tiles, the teacher's too."""
    student, teacher, real = student_pipeline(work), teacher_pipeline(), load_reference()
    grid(sample(student, per_class=20, steps=STEPS, guidance=1.0), columns=20).save(out)
    print(f"saved {out}", flush=True)
    for name, pipe, steps, guidance in (
        ("student", student, STEPS, 1.0),
        *(("teacher", teacher, steps, GUIDANCE) for steps in (4, 8, 20)),
    ):
        images = sample(pipe, per_class=128, steps=steps, guidance=guidance)
        print(f"{name}, {steps} steps: Fréchet distance {real.distance(images / 2 + 0.5):.2f}", flush=True)


def export(work: Path, out: Path) -> None:
    """Write the student in half precision; all else is the teacher's, with whom the autoencoder stays."""
    student, folder = averaged(work / "student.safetensors", new_transformer()), out / "tiles-turbo"
    shutil.copytree(TEACHER, folder, ignore=shutil.ignore_patterns("vae", "transformer"), dirs_exist_ok=True)
    student.to(torch.float16).save_pretrained(folder / "transformer", safe_serialization=True)
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
