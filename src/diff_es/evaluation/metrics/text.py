"""How well images suit their prompts, by the cosine of CLIP's embeddings of both: the CLIP score, and a preference
score, whose weights were fitted to what people chose. Of the extra ``text``: the networks are those of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import FOREIGN, DiffESError, Extra, said
from .contract import check_images

_BATCH = 16


@dataclass(frozen=True)
class Clip:
    """A CLIP model with what prepares its inputs; :func:`clip` makes one."""

    model: Any  # CLIPModel
    images: Any  # its image processor, by way of PIL
    texts: Any  # its tokenizer

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(N, 3, H, W) in [0, 1] and N prompts to (N,). Images are rounded to 8 bits first, as they are in files;
        prompts end where the model's text does."""
        check_images(images)
        if len(prompts) != len(images):
            remedy = "Give one for each image."
            raise DiffESError("prompts", expected=str(len(images)), found=str(len(prompts)), remedy=remedy)
        starts = range(0, len(images), _BATCH)
        return torch.cat([self._cosines(images[i : i + _BATCH], prompts[i : i + _BATCH]) for i in starts])

    def _cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        shown = [(one.float() * 255).round().byte().permute(1, 2, 0).cpu().numpy() for one in images]
        pixels = self.images(shown, input_data_format="channels_last", return_tensors="pt")
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.texts(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        seen = self.model(**pixels.to(self.model.device), **tokens.to(self.model.device))
        return torch.cosine_similarity(seen.image_embeds, seen.text_embeds).cpu()

    @property
    def scale(self) -> float:
        """Of its cosines where it compares images by them: the exponential of a weight."""
        return float(self.model.logit_scale.exp())


def clip(place: str, device: torch.device | str = "cpu", *, local_only: bool = False) -> Clip:
    """From a folder, or from the hub's repository of that id or its local cache.

    Args:
        device: that it runs on.
        local_only: whether nothing is fetched from the hub.

    Raises:
        DiffESError: there is none, or transformers is missing.
    """
    expected = "a CLIP model of transformers with its tokenizer and image processor"
    if find_spec("transformers") is None:
        raise DiffESError("transformers", expected="it for CLIP", found="none", remedy=Extra.TEXT.remedy)
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    try:
        here = {"local_files_only": local_only}
        model = CLIPModel.from_pretrained(place, dtype=torch.float32, **here)
        images = AutoImageProcessor.from_pretrained(
            place, backend="pil", **here
        )  # the published one, torchvision or not
        texts = AutoTokenizer.from_pretrained(place, **here)
    except FOREIGN as error:
        remedy = f"Run `hf download {place}` where the hub is in reach, or give a folder with its files as the weights."
        raise DiffESError(place, expected=expected, found=said(error), remedy=remedy) from error
    return Clip(model.eval().requires_grad_(False).to(device), images, texts)


@dataclass(frozen=True)
class ClipScore:
    """A hundred times the cosine, and no less than zero (Hessel et al. 2021, arXiv 2104.08718; its factor is 2.5, later
    work has 100)."""

    clip: Clip
    name: str = "CLIP score"
    unit: str = ""
    higher_is_better: bool = True

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return 100 * self.clip.cosines(images, prompts).clamp_min(0)


@dataclass(frozen=True)
class PickScore:
    """The cosine by the model's own scale (Kirstain et al. 2023, arXiv 2305.01569); of two images for one prompt,
    exp(score) is how often each is chosen."""

    clip: Clip
    name: str = "PickScore"
    unit: str = ""
    higher_is_better: bool = True

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.clip.scale * self.clip.cosines(images, prompts)
