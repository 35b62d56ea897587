"""Measures of images and prompts, on small models that transformers saved as the published ones are."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.pipelines import clip_tokenizer
from tests.helpers.weights import pictures
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from diff_es import DiffESError
from diff_es.evaluation.metrics import MetricName, metric
from diff_es.evaluation.metrics.names import CLIP_MODEL, PICK_MODEL

PROMPTS = ["a fox", "two hats", "a long prompt " * 30]
MEAN, DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SCALE = 3.0  # of the logarithm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``hf download`` would leave it."""
    place = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = clip_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(vocab_size=len(tokenizer), **ends, **small)
    config = CLIPConfig(text_config=text, vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **small))
    config.logit_scale_init_value = SCALE
    config.projection_dim = 8
    torch.manual_seed(8)  # cosines of both signs
    CLIPModel(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    steps = {f"do_{step}": True for step in ("resize", "center_crop", "normalize")}
    sizes = {"size": 32, "crop_size": 32, "resample": 3, "image_mean": MEAN, "image_std": DEVIATION}
    published = {**steps, **sizes, "feature_extractor_type": "CLIPFeatureExtractor"}
    (place / "preprocessor_config.json").write_text(json.dumps(published), encoding="utf-8")
    return place


def cosines_by_hand(folder: Path, shown: torch.Tensor) -> list[float]:
    """From the model's own embeddings, one image and one prompt at a time; pixels by PIL, as its makers have them."""
    model = CLIPModel.from_pretrained(folder)
    mean, deviation = (torch.tensor(one)[:, None, None] for one in (MEAN, DEVIATION))
    tokenizer = clip_tokenizer()
    found = list[float]()
    for image, prompt in zip(shown, PROMPTS, strict=True):
        picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        scale = 32 / min(picture.size)
        wide, high = (int(side * scale) for side in picture.size)
        left, top = (wide - 32) // 2, (high - 32) // 2
        cut = picture.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
        pixels = (torch.from_numpy(np.array(cut)).permute(2, 0, 1) / 255 - mean) / deviation
        tokens = tokenizer(prompt, truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            seen = model.vision_model(pixels[None]).pooler_output
            read = model.text_model(**tokens).pooler_output
            a, b = model.visual_projection(seen)[0], model.text_projection(read)[0]
        found.append(float(a @ b / (a.norm() * b.norm())))
    return found


@pytest.mark.parametrize("size", [(32, 32), (40, 64), (100, 50)])
def test_scores_are_the_cosines_of_the_models_own_embeddings(folder: Path, size: tuple[int, int]) -> None:
    # to 1e-4 of a hundred, and of e^3
    images = pictures(3, *size)
    cosines = cosines_by_hand(folder, images)
    assert min(cosines) < 0 < max(cosines)
    score: Any = metric(MetricName.CLIP_SCORE, folder)
    assert score(images, PROMPTS).tolist() == pytest.approx([100 * max(one, 0) for one in cosines], abs=1e-4)
    preferred: Any = metric(MetricName.PICK_SCORE, folder)
    scale = float(torch.tensor(SCALE).exp())
    assert preferred(images, PROMPTS).tolist() == pytest.approx([scale * one for one in cosines], abs=1e-4)


def test_a_score_does_not_see_its_batch(folder: Path) -> None:
    score: Any = metric(MetricName.PICK_SCORE, folder)
    images, prompts = pictures(19, 32, 32), (PROMPTS * 7)[:19]  # more than are run at once
    alone = torch.cat([score(images[i : i + 1], prompts[i : i + 1]) for i in (0, 15, 18)])
    torch.testing.assert_close(score(images, prompts)[[0, 15, 18]], alone, atol=1e-4, rtol=0)


def test_what_a_score_cannot_take_is_refused(folder: Path) -> None:
    score: Any = metric(MetricName.CLIP_SCORE, folder)
    with pytest.raises(DiffESError, match="prompts: expected 2, found 3"):
        score(pictures(2, 32, 32), PROMPTS)
    with pytest.raises(DiffESError, match="images: expected floats"):
        score(pictures(3, 32, 32) * 2 - 1, PROMPTS)


def test_a_model_that_is_not_there_is_named_with_how_to_get_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, model in ((MetricName.CLIP_SCORE, CLIP_MODEL), (MetricName.PICK_SCORE, PICK_MODEL)):
        with pytest.raises(DiffESError, match=rf"{model}: expected a CLIP model .*Run `hf download {model}` where"):
            metric(name)
    with pytest.raises(
        DiffESError, match="expected a CLIP model of transformers with its tokenizer and image processor"
    ):
        metric(MetricName.CLIP_SCORE, tmp_path)
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    with pytest.raises(
        DiffESError, match="expected a CLIP model of transformers with its tokenizer and image processor"
    ):
        metric(MetricName.CLIP_SCORE, tmp_path)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(
        "diff_es.evaluation.metrics.text.find_spec", lambda name: None if name == "transformers" else find(name)
    )
    with pytest.raises(DiffESError, match=r"found none\. Install it: pip install 'diff-es\[text\]'"):
        metric(MetricName.CLIP_SCORE)
