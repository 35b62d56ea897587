"""ResNet blocks of U-Nets: whole groups of the second norm between the two convolutions, and the block as a whole."""

from __future__ import annotations

from dataclasses import replace

from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from torch import nn

from .contract import Block, Found, Kind, Layer, Refusal, Rows


def find(name: str, module: nn.Module) -> tuple[Found, ...]:
    """The inner channels of a ResNet block, and the block itself.

    A group is a whole group of ``norm2``, whose number goes down with it: every group that stays is normalised over the
    same channels as before.
    """
    if isinstance(module, ResnetBlockCondNorm2D):
        return (Refusal(name, f"its norms are conditioned ({module.time_embedding_norm}) across all channels"),)
    if not isinstance(module, ResnetBlock2D):
        return ()
    found: tuple[Found, ...] = ()
    reason = _whole(module)
    if reason is None:
        block = Block(name, module.in_channels, pixels=True)
        if module.conv_shortcut is not None:
            block = replace(block, shortcut=f"{name}.conv_shortcut", outputs=module.conv_shortcut.out_channels)
        found = (block,)
    else:
        found = (Refusal(name, f"{reason}; its channels can be thinned, the block is never skipped"),)
    return (*found, _channels(name, module))


def _channels(name: str, module: ResnetBlock2D) -> Layer | Refusal:
    inner, norm = f"{name}.conv2", module.norm2
    parts = {module.conv1: nn.Conv2d, module.conv2: nn.Conv2d, norm: nn.GroupNorm}
    if module.time_emb_proj is not None:
        parts[module.time_emb_proj] = nn.Linear
    for part, expected in parts.items():
        if type(part) is not expected:
            known = f"a plain nn.{expected.__name__} (unload or merge adapters first)"
            return Refusal(inner, f"of its ResNet block one part is a {type(part).__name__}, not {known}")
    if module.conv1.groups != 1 or module.conv2.groups != 1:
        return Refusal(inner, "its ResNet block has grouped convolutions")
    if isinstance(module.conv2.padding, str) or module.conv2.padding_mode != "zeros":
        return Refusal(inner, "its padding is not a number of zeros")
    width = norm.num_channels // norm.num_groups
    rows = [Rows(f"{name}.conv1"), Rows(f"{name}.norm2")]
    if module.time_emb_proj is not None:
        rows.append(Rows(f"{name}.time_emb_proj", 2 if module.time_embedding_norm == "scale_shift" else 1))
    return Layer(
        name=inner,
        kind=Kind.RESNET,
        groups=norm.num_groups,
        width=width,
        rows=tuple(rows),
        output=inner,
        counts=((f"{name}.norm2", "num_groups", 1), (f"{name}.norm2", "num_channels", width)),
    )


def _whole(module: ResnetBlock2D) -> str | None:
    """Why the block cannot be left out as a whole, if so."""
    if module.upsample is not None or module.downsample is not None:
        return f"it {'up' if module.upsample is not None else 'down'}samples inside"
    if module.output_scale_factor != 1:
        return f"it divides its output by {module.output_scale_factor:g}"
    shortcut = module.conv_shortcut
    if shortcut is not None and type(shortcut) is not nn.Conv2d:
        return f"its shortcut is a {type(shortcut).__name__}, not a plain nn.Conv2d"
    return None
