"""Which pipelines and denoisers Diff-ES can drive, and why it refuses the others."""

from __future__ import annotations

import diffusers
from diffusers import ModelMixin
from torch import nn

from ..layers import adapted, check_groups, declared, image_adapters, lost, sequentially, stored_otherwise
from ..utils.errors import UnsupportedModel, several
from .families import FAMILIES, Asked, Denoiser, Pipeline, classes_of, family_of
from .own_sampler import OwnSampler
from .sampling import AnyPipeline, denoiser_name, denoiser_of

SUPPORTED = tuple(FAMILIES)
"""The pipeline classes that Diff-ES drives: those of text, of classes and of neither, that begin with noise."""


def check_class(where: str, found: str) -> None:
    if found not in SUPPORTED:
        remedy = "Convert the model to one of them, or wait for its kind."
        raise UnsupportedModel(where, expected="one of " + ", ".join(SUPPORTED), found=found, remedy=remedy)


def check(pipe: AnyPipeline) -> Pipeline:
    """The pipeline itself, if Diff-ES can drive it.

    Raises:
        UnsupportedModel: another pipeline class, two denoisers, sequential offload, adapters on the denoiser, weights
            that are stored otherwise than it computes, classes that it has not, or as :func:`check_denoiser`.
        DiffESError: group offloading that brings in copies of parameters.
    """
    if isinstance(pipe, OwnSampler):
        check_weights(check_denoiser(pipe), "OwnSampler.denoiser")
        return pipe
    _check_pipeline(pipe)
    if family_of(pipe) is None:
        check_class("pipe", type(pipe).__name__)
    if sequentially(check_denoiser(pipe)):
        remedy = "Call pipe.remove_all_hooks(), and offload again to run a result; or take model or group offload."
        raise UnsupportedModel("pipe", expected="weights in memory", found="sequential offload", remedy=remedy)
    check_weights(denoiser_of(pipe), f"pipe.{denoiser_name(pipe)}")
    _check_labels(pipe)
    _check_tokenizers(pipe)
    if pipe.components.get("transformer_2") is not None:
        remedy = "Wan 2.1 and Wan 2.2 5B have one denoiser; take one of them."
        raise UnsupportedModel("pipe", expected="one denoiser", found="transformer and transformer_2", remedy=remedy)
    return pipe


def check_weights(denoiser: Denoiser, where: str) -> None:
    """Whether a denoiser has its own weights, stored as it computes with them; raises as :func:`check`."""
    check_groups(denoiser)
    if odd := stored_otherwise(denoiser):
        remedy = (
            "Load it anew in float32, bfloat16 or float16, without quantization and without layerwise casting; keep "
            "what is of no such type in buffers (register_buffer)."
        )
        raise UnsupportedModel(where, expected="weights as it computes with them", found=odd, remedy=remedy)
    if prompted := image_adapters(denoiser):
        found, remedy = f"an IP-Adapter's on {several(prompted)}", "Call pipe.unload_ip_adapter() first."
        raise UnsupportedModel(where, expected="the model's own weights", found=found, remedy=remedy)
    if wrapped := adapted(denoiser):
        expected, found = "the model's own layers", f"adapters on {several(wrapped)}"
        remedy = "Unload them; or fuse them first (pipe.fuse_lora(), pipe.unload_lora_weights()) to keep what they add."
        raise UnsupportedModel(where, expected=expected, found=found, remedy=remedy)


def _check_labels(pipe: Pipeline) -> None:
    family = family_of(pipe)
    if family is None or family.asked is not Asked.CLASSES:
        return
    count, numbers = pipe.transformer.config.num_embeds_ada_norm, classes_of(pipe)
    if not numbers or max(numbers) >= count:
        expected, found = f"classes below {count}, the number it was trained on", str(max(numbers, default="none"))
        raise UnsupportedModel("pipe.labels", expected=expected, found=found, remedy="Correct id2label in its index.")


def _check_tokenizers(pipe: Pipeline) -> None:
    """CLIP's prompts are filled up to the most tokens that its tokenizer knows of."""
    for number in ("", "_2"):
        encoder, tokenizer = pipe.components.get(f"text_encoder{number}"), pipe.components.get(f"tokenizer{number}")
        if tokenizer is not None and type(encoder).__name__ in ("CLIPTextModel", "CLIPTextModelWithProjection"):
            most, found = encoder.config.max_position_embeddings, tokenizer.model_max_length
            if found > most:
                where, expected = f"pipe.tokenizer{number}", f"a model_max_length of at most {most}, as its encoder's"
                raise UnsupportedModel(where, expected=expected, found=f"{found:g}", remedy="Correct it.")


def check_denoiser(pipe: AnyPipeline | nn.Module) -> Denoiser:
    """The denoiser of a pipeline, if it can be routed: any pipeline will do, and a module that was declared, and that
    of a loop of the user's own.

    Raises:
        UnsupportedModel: there is none, it is wrapped, it has no weights, or it is in training mode.
    """
    if isinstance(pipe, nn.Module):
        check_module(pipe, "pipe")
        return pipe
    if isinstance(pipe, OwnSampler):
        check_module(pipe.denoiser, "OwnSampler.denoiser")
        return pipe.denoiser
    _check_pipeline(pipe)
    name = denoiser_name(pipe)
    if name is None:
        found, remedy = ", ".join(pipe.components), "Give a diffusers pipeline that has one of them."
        raise UnsupportedModel("pipe", expected="a transformer or a unet", found=found, remedy=remedy)
    denoiser = denoiser_of(pipe)
    if not isinstance(denoiser, ModelMixin) and declared(denoiser) is None:
        found, where = type(denoiser).__name__, f"pipe.{name}"
        remedy = "Put the model itself there, or declare what is there (diff_es.declare). To compile the model, "
        remedy += "call `compile()` on its blocks, which keeps them in place."
        raise UnsupportedModel(where, expected="a diffusers model", found=found, remedy=remedy)
    check_module(denoiser, f"pipe.{name}")
    return denoiser


def _check_pipeline(pipe: object) -> None:
    if not isinstance(pipe, diffusers.DiffusionPipeline):
        expected, found, remedy = f"one of {', '.join(SUPPORTED)}", type(pipe).__name__, "Give a pipeline of diffusers."
        if isinstance(pipe, nn.Module):
            found += ", a network without a pipeline that samples with it"
            remedy = "Give the pipeline that it belongs to, or the loop of your own that samples with it: "
            remedy += "diff_es.OwnSampler(denoiser, sample, noise=...), as in examples/foreign_denoiser.py."
        raise UnsupportedModel("pipe", expected=expected, found=found, remedy=remedy)


def check_module(denoiser: nn.Module, where: str) -> None:
    """Whether a denoiser can be routed; raises as :func:`check_denoiser`."""
    if not isinstance(denoiser, ModelMixin) and declared(denoiser) is None:
        expected, found = "a diffusers pipeline, or a denoiser that was declared", f"a {type(denoiser).__name__}"
        remedy = "Call diff_es.declare(module, ...) first; for a saved result, as when it was made."
        raise UnsupportedModel(where, expected=expected, found=found, remedy=remedy)
    if denoiser.training:
        found = "training mode, in which labels and activations are dropped at random"
        raise UnsupportedModel(where, expected="evaluation mode", found=found, remedy=f"Call {where}.eval() first.")
    if missing := lost(denoiser):
        found, remedy = f"{missing[0]} on the meta device", "Load it with its weights, or offload it as diffusers does."
        raise UnsupportedModel(where, expected="weights in memory", found=found, remedy=remedy)
