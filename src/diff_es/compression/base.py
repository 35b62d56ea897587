"""Whether a denoiser is the one that a result was made for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..layers import Plan, adapted, anatomy_of, fingerprint, image_adapters
from ..pipelines.supported import check_module
from ..routing.realise import check_plan
from ..utils.errors import ArtefactError, several


def check_base(denoiser: nn.Module, result: Sequence[Plan], base: str) -> None:
    """Whether a denoiser is the one that plans were made for, all layers as they were.

    Args:
        base: its fingerprint.

    Raises:
        ArtefactError: it is not; the message names what differs.
        UnsupportedModel: it is in training mode, or its weights are not in memory.
    """
    check_module(denoiser, "denoiser")
    anatomy, plans = anatomy_of(denoiser), {id(plan): plan for plan in result}.values()
    pruned = {name for plan in plans for name in plan.cuts}
    skipped = tuple({f"{block}." for plan in plans for block in plan.bypasses})
    refused = {refusal.name: refusal.reason for refusal in anatomy.refusals if refusal.name in pruned}
    inside = "an adapter in a block that is skipped"
    wrapped = adapted(denoiser)
    refused |= {name: inside for name in (*wrapped, *image_adapters(denoiser)) if name.startswith(skipped)}
    if refused:  # which were none when it was compressed
        remedy = "Undo what changed them: unload adapters before routing, or fuse them and compress again."
        on = [name for name in wrapped if name.startswith(tuple(f"{layer}." for layer in refused))]
        found = f"adapters on {several(on)}" if on else next(iter(refused.values()))
        where = f"base model, {several(list(refused))}"
        expected = "layers as they were when it was compressed"
        raise ArtefactError(where, expected=expected, found=found, remedy=remedy)
    for plan in plans:
        check_plan(denoiser, anatomy, plan)
    if (found := fingerprint(denoiser)) != base:
        remedy = "Load the pipeline that was compressed, in float32 or bfloat16 as it was, or compress this one."
        expected = f"{base[:12]}..., the one that was compressed"
        raise ArtefactError("hash of the base model", expected=expected, found=f"{found[:12]}...", remedy=remedy)
