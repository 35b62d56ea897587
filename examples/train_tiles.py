"""Train the bundled model: class-conditional latent diffusion of 32x32 game tiles.

The whole recipe of the model that ships in ``diff_es/bundled``, in five commands that share one working folder:

    python examples/train_tiles.py classifier  --data tiles32.npz --work runs/tiles --minutes 4
    python examples/train_tiles.py autoencoder --data tiles32.npz --work runs/tiles --minutes 12
    python examples/train_tiles.py diffusion   --data tiles32.npz --work runs/tiles --minutes 120
    python examples/train_tiles.py export      --data tiles32.npz --work runs/tiles --out src/diff_es/bundled
    python examples/train_tiles.py sheet       --data tiles32.npz --work runs/tiles --out sheet.png

``unpack --out src/diff_es/bundled`` turns an exported folder back into checkpoints, to train it further.
Every training command can be stopped and run again: it goes on from its last checkpoint for the minutes it is given,
cooling down its learning rate towards their end. CPU, CUDA and MPS are used as they are found.

The data are the CC0 tiles of Dungeon Crawl Stone Soup as an ``.npz`` with ``x`` uint8 (N, 32, 32, 4) and ``names``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diff_es.evaluation.tiles_reference import CLASSES, TileClassifier

Model = TypeVar("Model", bound=nn.Module)
NULL_CLASS = 1000  # the class that DiTPipeline hard-codes for the unconditional branch
BACKGROUND = (22, 20, 26)  # what transparent pixels are composited on
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


# ---------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Tiles:
    images: Tensor  # float32 (N, 3, 32, 32) in [-1, 1]
    labels: Tensor  # int64 (N,)
    names: tuple[str, ...]  # paths in the source archive


def class_of(name: str) -> str | None:
    """The class of a tile by its path in the source archive; None leaves it out (overlays, cursors, body parts)."""
    top, *rest = name.removeprefix("Ancient/").split("/")[1:]
    top, folder, file = top.removeprefix("dc-"), "/".join(rest[:-1]), name.split("/")[-1]
    if file.startswith("i-"):  # small overlay marks of identified items
        return None
    if top == "dngn":
        if "sigil" in folder or "vaults" in folder:
            return None
        for key, value in (("floor", "floor"), ("water", "floor"), ("wall", "wall")):
            if folder.startswith(key):
                return value
        return "feature"
    if top == "mon":
        return None if "tentacles" in folder or file.startswith("overlay") else "monster"
    if top == "player" and folder == "base":
        return "monster"
    if top == "item":
        if folder.startswith(("weapon", "staff", "rod", "wand")):
            return None if "brands" in folder else "weapon"
        if folder.startswith("armour"):
            return None if "brands" in folder else "armour"
        return None if "brands" in folder else "trinket"
    if top == "UNUSED":
        return {"monsters": "monster", "weapons": "weapon", "armour": "armour", "potions": "trinket"}.get(folder)
    if top == "spells" or (top == "gui" and folder.startswith(("spells", "invocations", "abilities"))):
        return "icon"
    return None


def load_tiles(path: Path) -> tuple[Tiles, Tiles]:
    """The training tiles and the held-out tenth, chosen by a fixed permutation."""
    with np.load(path) as archive:
        pixels, names = archive["x"], archive["names"]
    found = [class_of(str(name)) for name in names]
    alpha = pixels[..., 3:].astype(np.float32) / 255.0
    # a floor or a wall fills its tile; what does not is an overlay
    full = alpha.mean((1, 2, 3)) > 0.97
    keep = np.array([c is not None and (full[i] or c not in ("floor", "wall")) for i, c in enumerate(found)])
    rgb = pixels[..., :3] * alpha + np.array(BACKGROUND, np.float32) * (1 - alpha)
    images = torch.from_numpy(rgb[keep]).permute(0, 3, 1, 2).contiguous() / 127.5 - 1
    labels = torch.tensor([CLASSES.index(c) for c, k in zip(found, keep, strict=True) if k and c is not None])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, train = order[: len(order) // 10], order[len(order) // 10 :]
    paths = [str(name) for name in names[keep]]
    first, second = (
        Tiles(images[part], labels[part], tuple(paths[i] for i in part.tolist())) for part in (train, held_out)
    )
    return first, second


# --------------------------------------------------------------------------------------------------------- loop


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, object]) -> None:
    """Write tensors and a JSON header, replacing the old file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in tensors.items()}, partial, {"about": json.dumps(about)})
    partial.replace(path)


def train(
    path: Path,
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    minutes: float,
    rate: float,
    decay: float,
    evaluate: Callable[[nn.Module], float],
    autocast: bool = True,  # bfloat16 arithmetic; it is slow for small convolutions on the CPU
) -> None:
    """AdamW with an exponential moving average until the minutes are spent; resumes from, and writes, ``path``.

    ``loss_of(step)`` returns the loss of one batch; ``evaluate(averaged model)`` a figure for the log.
    """
    params = dict(model.named_parameters())
    average = {k: v.detach().clone() for k, v in params.items()}
    optimiser = torch.optim.AdamW(params.values(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    step = 0
    if path.exists():
        state = load_file(path, device=str(DEVICE))
        step = int(state["step"])
        for i, (name, param) in enumerate(params.items()):
            param.data.copy_(state[f"model.{name}"])
            average[name].copy_(state[f"average.{name}"])
            optimiser.state[param] = {
                "step": torch.tensor(float(step)),
                "exp_avg": state[f"m.{i}"].clone(),
                "exp_avg_sq": state[f"v.{i}"].clone(),
            }

    def checkpoint() -> None:
        tensors = {"step": torch.tensor(step)}
        for i, (name, param) in enumerate(params.items()):
            tensors |= {f"model.{name}": param.data, f"average.{name}": average[name]}
            tensors |= {f"m.{i}": optimiser.state[param]["exp_avg"], f"v.{i}": optimiser.state[param]["exp_avg_sq"]}
        save_tensors(path, tensors, {"step": step})

    def log(note: str) -> None:
        spent = (time.monotonic() - start) / 60
        backup = {k: v.detach().clone() for k, v in params.items()}
        for name, param in params.items():
            param.data.copy_(average[name])
        figure = evaluate(model)
        for name, param in params.items():
            param.data.copy_(backup[name])
        print(f"{spent:6.1f} min  step {step:6d}  loss {running:.4f}  held-out {figure:.3f}  {note}", flush=True)

    start = last_log = last_save = time.monotonic()
    running = 0.0
    try:
        while (spent := (time.monotonic() - start) / 60) < minutes:
            warm, cool = min(1.0, (step + 1) / 300), min(1.0, (minutes - spent) / (0.3 * minutes))
            for group in optimiser.param_groups:
                group["lr"] = rate * warm * (0.02 + 0.98 * cool)
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
                loss = loss_of(step)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(params.values(), 1.0)
            optimiser.step()
            keep = min(decay, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), [p.data for p in params.values()], 1 - keep)
            step += 1
            value = float(loss.detach())
            running = value if running == 0.0 else 0.98 * running + 0.02 * value
            if time.monotonic() - last_log > 60:
                log("")
                last_log = time.monotonic()
            if time.monotonic() - last_save > 300:
                checkpoint()
                last_save = time.monotonic()
    except KeyboardInterrupt:
        print("stopped; run the same command to go on", flush=True)
    checkpoint()
    log(f"saved {path}")


def averaged(path: Path, model: Model) -> Model:
    """``model`` with the averaged weights of a checkpoint."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run the command that trains it first (see --help)")
    state = load_file(path, device=str(DEVICE))
    for name, param in model.named_parameters():
        param.data.copy_(state[f"average.{name}"])
    return model.eval()


def batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Shuffled index batches, endlessly, epoch after epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % size].split(size)


# -------------------------------------------------------------------------------------------------- three models


def new_autoencoder() -> AutoencoderDC:
    """32x32 RGB to 8x8 latents of 16 channels."""
    return AutoencoderDC(
        latent_channels=16,
        encoder_block_out_channels=(32, 64, 128),
        decoder_block_out_channels=(32, 64, 128),
        encoder_layers_per_block=(0, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        upsample_block_type="pixel_shuffle",
        downsample_block_type="pixel_unshuffle",
    ).to(DEVICE)


def new_transformer() -> DiTTransformer2DModel:
    """A small DiT: 16 tokens of width 256, seven blocks of eight heads."""
    model = DiTTransformer2DModel(
        num_attention_heads=8,
        attention_head_dim=32,
        num_layers=7,
        in_channels=16,
        out_channels=16,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    ).to(DEVICE)
    for block in model.transformer_blocks:  # adaLN-Zero: every block starts as the identity
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
        nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
    nn.init.zeros_(model.proj_out_2.weight)
    nn.init.zeros_(model.proj_out_2.bias)
    return model


def train_classifier(data: Path, work: Path, minutes: float) -> None:
    tiles, held_out = load_tiles(data)
    torch.manual_seed(0)
    model, index = TileClassifier().to(DEVICE), batches(len(tiles.images), 64, seed=1)

    def loss_of(step: int) -> Tensor:
        pick = next(index)
        images, labels = tiles.images[pick].to(DEVICE), tiles.labels[pick].to(DEVICE)
        if step % 2:
            images = images.flip(-1)
        shift = torch.randint(-3, 4, (2,)).tolist()
        images = images.roll(shift, (2, 3)) + 0.05 * torch.randn_like(images)
        return F.cross_entropy(model(images), labels, label_smoothing=0.1)

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            hits = model(held_out.images.to(DEVICE)).argmax(1).cpu() == held_out.labels
        return float(hits.float().mean())

    path = work / "classifier.safetensors"
    train(path, model, loss_of, minutes=minutes, rate=2e-3, decay=0.99, evaluate=accuracy, autocast=False)


def train_autoencoder(data: Path, work: Path, minutes: float) -> None:
    tiles, held_out = load_tiles(data)
    torch.manual_seed(0)
    model = new_autoencoder().to(memory_format=torch.channels_last)
    index = batches(len(tiles.images), 64, seed=2)

    def loss_of(step: int) -> Tensor:
        images = tiles.images[next(index)].to(DEVICE)
        if step % 2:
            images = images.flip(-1)
        if step % 3 == 0:
            images = images[:, torch.randperm(3)]
        images = images.contiguous(memory_format=torch.channels_last)
        latents = model.encode(images).latent
        # noise of up to 0.3 standard deviations: smooth latents, and a decoder that forgives the denoiser's errors
        strength = 0.3 * torch.rand(len(latents), 1, 1, 1, device=DEVICE) * latents.std()
        decoded = model.decode(latents + strength * torch.randn_like(latents)).sample.float()
        return F.l1_loss(decoded, images) + F.mse_loss(decoded, images)

    def psnr(model: nn.Module) -> float:
        with torch.no_grad():
            error = (model(held_out.images.to(DEVICE)).sample.clamp(-1, 1).cpu() - held_out.images) / 2
        return -10 * math.log10(error.square().mean().item())

    train(work / "autoencoder.safetensors", model, loss_of, minutes=minutes, rate=2e-3, decay=0.998, evaluate=psnr)


@torch.no_grad()
def encode_all(autoencoder: AutoencoderDC, images: Tensor) -> Tensor:
    return torch.cat([autoencoder.encode(chunk.to(DEVICE)).latent for chunk in images.split(256)])


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def train_diffusion(data: Path, work: Path, minutes: float) -> None:
    tiles, held_out = load_tiles(data)
    autoencoder = averaged(work / "autoencoder.safetensors", new_autoencoder())
    mirrored = encode_all(autoencoder, tiles.images.flip(-1))
    latents = torch.cat([encode_all(autoencoder, tiles.images), mirrored])
    scale, labels = 1 / latents.std(), torch.cat([tiles.labels, tiles.labels]).to(DEVICE)
    latents, unseen = latents * scale, encode_all(autoencoder, held_out.images) * scale
    scheduler = new_scheduler()
    alphas = scheduler.alphas_cumprod.to(DEVICE)
    torch.manual_seed(int(time.time()))  # a resumed run draws new noise
    # evaluation mode throughout: in training mode every block would drop its label by itself
    model, index = new_transformer().eval(), batches(len(latents), 64, seed=int(time.time()))

    def loss_at(model: nn.Module, x0: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        a = alphas[t].view(-1, 1, 1, 1)
        noisy, velocity = a.sqrt() * x0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x0
        return F.mse_loss(model(noisy, timestep=t, class_labels=labels).sample.float(), velocity)

    def loss_of(step: int) -> Tensor:
        pick = next(index).to(DEVICE)
        x0, y = latents[pick], labels[pick].clone()
        y[torch.rand(len(y), device=DEVICE) < 0.1] = NULL_CLASS
        # stratified over the trajectory, so that every batch sees every noise level
        t = (torch.arange(len(y), device=DEVICE) + torch.rand(len(y), device=DEVICE)) / len(y)
        return loss_at(model, x0, y, (t * 1000).long().clamp(max=999), torch.randn_like(x0))

    @torch.no_grad()
    def held_out_loss(model: nn.Module) -> float:
        generator = torch.Generator().manual_seed(3)
        t = torch.linspace(0, 999, len(unseen)).long().to(DEVICE)
        noise = torch.randn(unseen.shape, generator=generator).to(DEVICE)
        return loss_at(model, unseen, held_out.labels.to(DEVICE), t, noise).item()

    path = work / "diffusion.safetensors"
    train(path, model, loss_of, minutes=minutes, rate=5e-4, decay=0.9995, evaluate=held_out_loss)


# ------------------------------------------------------------------------------------------------------- results


def trained_pipeline(data: Path, work: Path) -> DiTPipeline:
    """The trained parts as a stock pipeline, in float32."""
    tiles, _ = load_tiles(data)
    autoencoder = averaged(work / "autoencoder.safetensors", new_autoencoder())
    autoencoder.register_to_config(scaling_factor=1 / encode_all(autoencoder, tiles.images).std().item())
    transformer = averaged(work / "diffusion.safetensors", new_transformer())
    labels = {str(i): name for i, name in enumerate(CLASSES)}
    pipe = DiTPipeline(transformer=transformer, vae=autoencoder, scheduler=new_scheduler(), id2label=labels)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe: DiTPipeline, per_class: int, steps: int, guidance: float) -> Tensor:
    """(classes * per_class, 3, 32, 32) in [-1, 1], class by class."""
    labels = [c for c in range(len(CLASSES)) for _ in range(per_class)]
    generators = [torch.Generator().manual_seed(i) for i in range(len(labels))]
    images: Tensor = pipe(
        labels, guidance_scale=guidance, num_inference_steps=steps, generator=generators, output_type="pt"
    ).images
    return images.float().cpu() * 2 - 1


def grid(images: Tensor, columns: int, zoom: int = 3) -> Image.Image:
    rows = [torch.cat(list(row), 2) for row in images.split(columns)]
    pixels = ((torch.cat(rows, 1) + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((pixels.shape[1] * zoom, pixels.shape[0] * zoom), Image.Resampling.NEAREST)


def sheet(data: Path, work: Path, out: Path, steps: int, guidance: float) -> None:
    """A contact sheet of samples, and the nearest-neighbour check for memorisation.

    A sample that copies a training tile is much nearer to the training set than a real unseen tile is.
    """
    tiles, held_out = load_tiles(data)
    images = sample(trained_pipeline(data, work), per_class=20, steps=steps, guidance=guidance)
    grid(images, columns=20).save(out)
    train_pixels = torch.cat([tiles.images, tiles.images.flip(-1)]).flatten(1)

    def nearest(x: Tensor) -> Tensor:
        return torch.cdist(x.flatten(1), train_pixels).min(1).values / math.sqrt(train_pixels.shape[1]) / 2

    for name, values in (("samples", nearest(images)), ("held-out tiles", nearest(held_out.images))):
        quartiles = torch.quantile(values, torch.tensor([0.05, 0.25, 0.5, 0.75]))
        print(f"distance to the nearest training tile (RMS, 0 to 1), {name}: 5 / 25 / 50 / 75 % quantiles", end=" ")
        print(" / ".join(f"{q:.3f}" for q in quartiles))
    print(f"saved {out}")


@torch.no_grad()
def export(data: Path, work: Path, out: Path) -> None:
    """Write the pipeline in half precision, the classifier and the reference statistics of the Fréchet distance."""
    tiles, held_out = load_tiles(data)
    pipe = trained_pipeline(data, work)
    pipe.to(torch.float16).save_pretrained(out / "tiles-dit", safe_serialization=True)
    # DiTPipeline reads names from model_index.json but does not write them
    index = out / "tiles-dit" / "model_index.json"
    contents = json.loads(index.read_text()) | {"id2label": {str(i): name for i, name in enumerate(CLASSES)}}
    index.write_text(json.dumps(contents, indent=2) + "\n")
    classifier = averaged(work / "classifier.safetensors", TileClassifier().to(DEVICE))
    assert isinstance(classifier, TileClassifier)
    features = torch.cat([classifier.features(t.images.to(DEVICE)) for t in (tiles, held_out)]).double().cpu()
    labels = torch.cat([tiles.labels, held_out.labels])
    # every class counts alike, as samples are dealt to classes
    counts = torch.bincount(labels, minlength=len(CLASSES))
    weights = (1 / counts[labels] / len(CLASSES)).double()
    mean = weights @ features
    covariance = (features - mean).T @ (weights[:, None] * (features - mean))
    tensors = {f"classifier.{k}": v.half() for k, v in classifier.state_dict().items()}
    tensors |= {"real.mean": mean.float(), "real.covariance": covariance.float()}
    about = {"classes": CLASSES, "counts": counts.tolist(), "tiles": len(features)}
    save_tensors(out / "tile-features.safetensors", tensors, about)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"saved {out}: {size / 1e6:.1f} MB")


def unpack(bundle: Path, work: Path) -> None:
    """Turn an exported folder back into checkpoints, to train further where the working folder is lost."""
    read = {"torch_dtype": torch.float32}
    features = load_file(bundle / "tile-features.safetensors")
    states = {
        "autoencoder": AutoencoderDC.from_pretrained(bundle / "tiles-dit", subfolder="vae", **read).state_dict(),
        "diffusion": DiTTransformer2DModel.from_pretrained(
            bundle / "tiles-dit", subfolder="transformer", **read
        ).state_dict(),
        "classifier": {k.removeprefix("classifier."): v for k, v in features.items() if k.startswith("classifier.")},
    }
    models = {"autoencoder": new_autoencoder(), "diffusion": new_transformer(), "classifier": TileClassifier()}
    for name, model in models.items():
        tensors = {"step": torch.tensor(0)}
        for i, parameter in enumerate(dict(model.named_parameters())):
            value = states[name][parameter].float()
            tensors |= {f"model.{parameter}": value, f"average.{parameter}": value.clone()}
            tensors |= {f"m.{i}": torch.zeros_like(value), f"v.{i}": torch.zeros_like(value)}
        save_tensors(work / f"{name}.safetensors", tensors, {"step": 0})
        print(f"saved {work / name}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["classifier", "autoencoder", "diffusion", "export", "sheet", "unpack"])
    parser.add_argument("--data", type=Path, default=Path("tiles32.npz"), help="tiles32.npz")
    parser.add_argument("--work", type=Path, default=Path("runs/tiles"), help="folder of the checkpoints")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to train")
    parser.add_argument(
        "--out", type=Path, default=Path("sheet.png"), help="where export and sheet write, unpack reads"
    )
    parser.add_argument("--steps", type=int, default=50, help="sampler steps of the contact sheet")
    parser.add_argument("--guidance", type=float, default=2.0, help="guidance of the contact sheet")
    args = parser.parse_args()
    if args.command == "export":
        export(args.data, args.work, args.out)
    elif args.command == "unpack":
        unpack(args.out, args.work)
    elif args.command == "sheet":
        sheet(args.data, args.work, args.out, args.steps, args.guidance)
    else:
        run = {"classifier": train_classifier, "autoencoder": train_autoencoder, "diffusion": train_diffusion}
        run[args.command](args.data, args.work, args.minutes)


if __name__ == "__main__":
    main()
