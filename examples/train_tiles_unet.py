"""Train the bundled U-Net: text-conditional latent diffusion of 32x32 game tiles.

The whole recipe of ``diff_es/bundled/tiles-unet``, beside that of the transformer and with its data:

    python examples/train_tiles_unet.py autoencoder --data tiles32.npz --work runs/unet --minutes 9
    python examples/train_tiles_unet.py unet        --data tiles32.npz --work runs/unet --minutes 60
    python examples/train_tiles_unet.py decoder     --data tiles32.npz --work runs/unet --minutes 5
    python examples/train_tiles_unet.py export      --data tiles32.npz --work runs/unet --out src/diff_es/bundled
    python examples/train_tiles_unet.py sheet       --data tiles32.npz --work runs/unet --out sheet.png

The autoencoder is one of its own, as ``StableDiffusionPipeline`` takes none of the transformer's kind. The text encoder
is trained together with the U-Net, on captions made of the folder that a tile lies in. ``decoder`` trains the decoder
further for the latents as they are, so that it may follow, or run beside, the training of the U-Net. Training stops and
goes on as in ``train_tiles.py``.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from train_tiles import DEVICE, averaged, batches, grid, load_tiles, new_scheduler, train
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diff_es.evaluation.tiles_reference import CLASSES, load_reference

TOKENS = 10  # of a prompt, with those that begin and end it

# ------------------------------------------------------------------------------------------------------- captions

NOUNS = {
    "floor": "a floor",
    "floor/grass": "grass",
    "water": "water",
    "wall": "a wall",
    "altars": "an altar",
    "gateways": "a gate",
    "doors": "a door",
    "statues": "a statue",
    "trees": "a tree",
    "animals": "an animal",
    "demons": "a demon",
    "undead": "an undead",
    "undead/skeletons": "a skeleton",
    "undead/spectrals": "a ghost",
    "fungi_plants": "a plant",
    "draco": "a dragon",
    "dragons": "a dragon",
    "weapon": "a weapon",
    "staff": "a staff",
    "wand": "a wand",
    "armour": "armour",
    "armour/shields": "a shield",
    "armour/headgear": "a helmet",
    "amulet": "an amulet",
    "book": "a book",
    "food": "food",
    "gold": "gold",
    "potion": "a potion",
    "potions": "a potion",
    "ring": "a ring",
    "scroll": "a scroll",
}
"""What a tile is called besides its class, by its folder."""
KINDS = tuple(f"{'armour' if c == 'armour' else 'an ' + c if c == 'icon' else 'a ' + c}" for c in CLASSES)
TEMPLATES = ("{}", "a picture of {}", "a game tile of {}")


def nouns_of(name: str, label: int) -> tuple[str, ...]:
    """What a tile may be called: its class, and what its folder says."""
    folder = "/".join(name.removeprefix("Ancient/").split("/")[2:-1])
    found = NOUNS.get(folder) or NOUNS.get(folder.split("/")[0])
    return (KINDS[label],) if found is None else (KINDS[label], found)


def new_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer of the letters and of the words of the captions, each of which is one token."""
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    vocabulary, merges = [*letters, *(f"{letter}</w>" for letter in letters)], list[tuple[str, str]]()
    phrases = [*TEMPLATES, *KINDS, *NOUNS.values()]
    for word in dict.fromkeys(" ".join(phrases).replace("{}", "").split()):
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        for pair in merges:
            pieces = _merged(pieces, pair)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _merged(pieces, merges[-1])
            vocabulary.append(pieces[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    numbered = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(vocab=numbered, merges=merges, model_max_length=TOKENS)


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    found, i = list[str](), 0
    while i < len(pieces):
        joined = tuple(pieces[i : i + 2]) == pair
        found.append("".join(pair) if joined else pieces[i])
        i += 1 + joined
    return found


def tokens_of(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """int64 (N, TOKENS), padded as the pipeline pads."""
    given: Any = tokenizer(prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    tokens: Tensor = given.input_ids
    return tokens


# --------------------------------------------------------------------------------------------------------- models


def new_autoencoder() -> AutoencoderTiny:
    """32x32 RGB to 8x8 latents of 12 channels."""
    return AutoencoderTiny(
        latent_channels=12,
        encoder_block_out_channels=(48, 48, 48),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(0, 2, 2),
        num_decoder_blocks=(3, 2, 0),
    ).to(DEVICE)


class Denoiser(nn.Module):
    """A U-Net of 8x8 latents and the text encoder that is trained with it."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=96,
                intermediate_size=384,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                **ends,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=12,
            out_channels=12,
            block_out_channels=(64, 128),
            layers_per_block=1,
            transformer_layers_per_block=(1, 2),  # two in the middle
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=96,
            attention_head_dim=8,  # the number of heads, by its old name
            norm_num_groups=16,
        )
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, noisy: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        given, inverse = tokens.unique(dim=0, return_inverse=True)  # a batch holds few different captions
        states = self.text(given).last_hidden_state[inverse]
        output: Tensor = self.unet(noisy, t, encoder_hidden_states=states).sample
        return output


# ------------------------------------------------------------------------------------------------------- training


def train_autoencoder(data: Path, work: Path, minutes: float) -> None:
    tiles, held_out = load_tiles(data)
    torch.manual_seed(0)
    model = new_autoencoder().to(memory_format=torch.channels_last)
    index = batches(len(tiles.images), 32, seed=2)

    def loss_of(step: int) -> Tensor:
        images = tiles.images[next(index)].to(DEVICE)
        if step % 2:
            images = images.flip(-1)
        if step % 3 == 0:
            images = images[:, torch.randperm(3)]
        images = images.contiguous(memory_format=torch.channels_last)
        latents: Tensor = model.encode(images).latents
        # noise of up to 0.3 standard deviations: smooth latents, and a decoder that forgives the denoiser's errors
        strength = 0.3 * torch.rand(len(latents), 1, 1, 1, device=DEVICE) * latents.std()
        decoded: Tensor = model.decode(latents + strength * torch.randn_like(latents)).sample
        # the decoder sees latents through a tanh of width 3: they are asked to stay about as large as that allows
        return F.l1_loss(decoded, images) + F.mse_loss(decoded, images) + 1e-3 * (latents.std() - 1).square()

    def psnr(model: nn.Module) -> float:
        assert isinstance(model, AutoencoderTiny)
        return psnr_of(model.decoder, encode_all(model, held_out.images), held_out.images)

    path = work / "autoencoder.safetensors"
    train(path, model, loss_of, minutes=minutes, rate=2e-3, decay=0.998, evaluate=psnr, autocast=False)


def train_decoder(data: Path, work: Path, minutes: float) -> None:
    tiles, held_out = load_tiles(data)
    autoencoder = averaged(work / "autoencoder.safetensors", new_autoencoder())
    images = torch.cat([tiles.images, tiles.images.flip(-1)])
    latents, unseen = encode_all(autoencoder, images), encode_all(autoencoder, held_out.images)
    torch.manual_seed(1)
    decoder, index = autoencoder.decoder.to(memory_format=torch.channels_last), batches(len(latents), 32, seed=3)

    def loss_of(step: int) -> Tensor:
        pick = next(index)
        x0, strength = latents[pick.to(DEVICE)], 0.15 * torch.rand(len(pick), 1, 1, 1, device=DEVICE) * latents.std()
        noisy = (x0 + strength * torch.randn_like(x0)).contiguous(memory_format=torch.channels_last)
        decoded, wanted = decoder(noisy), images[pick].to(DEVICE)
        return F.l1_loss(decoded, wanted) + F.mse_loss(decoded, wanted)

    def psnr(model: nn.Module) -> float:
        return psnr_of(model, unseen, held_out.images)

    path = work / "decoder.safetensors"
    train(path, decoder, loss_of, minutes=minutes, rate=1e-3, decay=0.998, evaluate=psnr, autocast=False)


@torch.no_grad()
def psnr_of(decoder: nn.Module, latents: Tensor, images: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of decoded latents against (N, 3, H, W) in [-1, 1]."""
    decoded = torch.cat([decoder(part) for part in latents.split(256)])
    return -10 * math.log10(((decoded.clamp(-1, 1).cpu() - images) / 2).square().mean().item())


@torch.no_grad()
def encode_all(autoencoder: AutoencoderTiny, images: Tensor) -> Tensor:
    return torch.cat([autoencoder.encode(chunk.to(DEVICE)).latents for chunk in images.split(256)])


def train_unet(data: Path, work: Path, minutes: float) -> None:
    tiles, held_out = load_tiles(data)
    autoencoder = averaged(work / "autoencoder.safetensors", new_autoencoder())
    mirrored = encode_all(autoencoder, tiles.images.flip(-1))
    latents = torch.cat([encode_all(autoencoder, tiles.images), mirrored])
    scale = 1 / latents.std()
    latents, unseen = latents * scale, encode_all(autoencoder, held_out.images) * scale
    tokenizer, scheduler = new_tokenizer(), new_scheduler()
    empty = tokens_of(tokenizer, [""])[0]
    captions = [
        tokens_of(tokenizer, [shape.format(noun) for noun in nouns_of(name, label) for shape in TEMPLATES])
        for name, label in zip(tiles.names, tiles.labels.tolist(), strict=True)
    ] * 2
    plain = [KINDS[label] for label in held_out.labels.tolist()]
    asked = tokens_of(tokenizer, plain).to(DEVICE)
    alphas = scheduler.alphas_cumprod.to(DEVICE)
    torch.manual_seed(int(time.time()))  # a resumed run draws new noise
    draw, index = random.Random(int(time.time())), batches(len(latents), 64, seed=int(time.time()))
    model = Denoiser(tokenizer).to(DEVICE).eval()

    def loss_at(model: nn.Module, x0: Tensor, tokens: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        a = alphas[t].view(-1, 1, 1, 1)
        noisy, velocity = a.sqrt() * x0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x0
        return F.mse_loss(model(noisy, t, tokens).float(), velocity)

    def loss_of(step: int) -> Tensor:
        pick = next(index)
        # one in eight learns the unconditional branch
        chosen = [empty if draw.random() < 0.125 else draw.choice(list(captions[i])) for i in pick.tolist()]
        # stratified over the trajectory, so that every batch sees every noise level
        t = (torch.arange(len(pick), device=DEVICE) + torch.rand(len(pick), device=DEVICE)) / len(pick)
        x0 = latents[pick.to(DEVICE)]
        tokens = torch.stack(chosen).to(DEVICE)
        return loss_at(model, x0, tokens, (t * 1000).long().clamp(max=999), torch.randn_like(x0))

    @torch.no_grad()
    def held_out_loss(model: nn.Module) -> float:
        generator = torch.Generator().manual_seed(3)
        t = torch.linspace(0, 999, len(unseen)).long().to(DEVICE)
        noise = torch.randn(unseen.shape, generator=generator).to(DEVICE)
        return loss_at(model, unseen, asked, t, noise).item()

    path = work / "unet.safetensors"
    train(path, model, loss_of, minutes=minutes, rate=8e-4, decay=0.9995, evaluate=held_out_loss)


# ------------------------------------------------------------------------------------------------------- results


def trained_pipeline(data: Path, work: Path) -> StableDiffusionPipeline:
    """The trained parts as a stock pipeline, in float32."""
    tiles, _ = load_tiles(data)
    autoencoder = averaged(work / "autoencoder.safetensors", new_autoencoder())
    if (work / "decoder.safetensors").exists():
        averaged(work / "decoder.safetensors", autoencoder.decoder)
    autoencoder.register_to_config(scaling_factor=1 / encode_all(autoencoder, tiles.images).std().item())
    tokenizer = new_tokenizer()
    model = averaged(work / "unet.safetensors", Denoiser(tokenizer).to(DEVICE))
    scheduler = DDIMScheduler.from_config(new_scheduler().config, steps_offset=1)  # which trailing steps leave unused
    pipe = StableDiffusionPipeline(
        autoencoder, model.text, tokenizer, model.unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe: StableDiffusionPipeline, prompts: list[str], steps: int, guidance: float) -> Tensor:
    """(prompts, 3, 32, 32) in [-1, 1]."""
    images = []
    for start in range(0, len(prompts), 32):
        part = prompts[start : start + 32]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        images.append(
            pipe(
                part, guidance_scale=guidance, num_inference_steps=steps, generator=generators, output_type="pt"
            ).images
        )
    return torch.cat(images).float().cpu() * 2 - 1


def sheet(data: Path, work: Path, out: Path, steps: int, guidance: float) -> None:
    """A contact sheet, a class to each row, and how often the tile classifier agrees."""
    images = sample(trained_pipeline(data, work), [kind for kind in KINDS for _ in range(20)], steps, guidance)
    grid(images, columns=20).save(out)
    reference = load_reference()
    with torch.no_grad():
        found = reference.classifier(images).argmax(1).view(len(KINDS), 20)
    right = (found == torch.arange(len(KINDS))[:, None]).float().mean(1)
    print("recognised: " + ", ".join(f"{kind} {share:.2f}" for kind, share in zip(KINDS, right.tolist(), strict=True)))
    print(f"Fréchet distance {reference.distance(images / 2 + 0.5):.2f}; saved {out}")


@torch.no_grad()
def export(data: Path, work: Path, out: Path) -> None:
    """Write the pipeline in half precision, with the prompts that it is calibrated and judged on."""
    folder = out / "tiles-unet"
    trained_pipeline(data, work).to(torch.float16).save_pretrained(folder, safe_serialization=True)
    (folder / "prompts.txt").write_text("".join(f"{kind}\n" for kind in KINDS), encoding="utf-8")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"saved {folder}: {size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["autoencoder", "unet", "decoder", "export", "sheet"])
    parser.add_argument("--data", type=Path, default=Path("tiles32.npz"), help="tiles32.npz")
    parser.add_argument("--work", type=Path, default=Path("runs/unet"), help="folder of the checkpoints")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to train")
    parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="where export and sheet write")
    parser.add_argument("--steps", type=int, default=20, help="sampler steps of the contact sheet")
    parser.add_argument("--guidance", type=float, default=2.5, help="guidance of the contact sheet")
    args = parser.parse_args()
    if args.command == "export":
        export(args.data, args.work, args.out)
    elif args.command == "sheet":
        sheet(args.data, args.work, args.out, args.steps, args.guidance)
    else:
        run = {"autoencoder": train_autoencoder, "unet": train_unet, "decoder": train_decoder}
        run[args.command](args.data, args.work, args.minutes)


if __name__ == "__main__":
    main()
