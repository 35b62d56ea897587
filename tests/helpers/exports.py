"""Results of given plans, and pipelines read back from an export."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline
from tests.helpers.tiny import CALL, images, random_plan, stages_of
from torch import Tensor

from diff_es import Compressed
from diff_es.layers import Plan
from diff_es.layers.fingerprint import fingerprint
from diff_es.trajectory.stages import Schedule


def result_of(pipe: DiTPipeline, *plans: Plan, levels: tuple[int, ...] | None = None) -> Compressed:
    """A finished result of these plans, one for each stage."""
    rows = tuple((level,) for level in levels or (1,) * len(plans))
    schedule = Schedule(stages_of(pipe, len(plans)), rows)
    return Compressed(schedule, plans, CALL, fingerprint(pipe.transformer))


def left_out(*blocks: int) -> Plan:
    return Plan(bypasses={f"transformer_blocks.{i}": None for i in blocks})


def both(pipe: DiTPipeline, i: int) -> Plan:
    """Half the width of every block, and a fitted map in place of block i."""
    return random_plan(pipe, 3, skip=[i])


def bypassed(pipe: DiTPipeline, *blocks: int) -> Plan:
    return Plan(bypasses=random_plan(pipe, 4, skip=blocks).bypasses)


@contextmanager
def modules_beside(folder: Path) -> Iterator[None]:
    """diffusers copies the code that it is trusted with to a cache: here, to one beside the export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(folder.with_name("modules")))
        patch.setattr(sys, "path", [*sys.path])
        yield


def open_export(folder: Path, **options: Any) -> DiTPipeline:
    with modules_beside(folder):
        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def share_the_embedder(pipe: DiTPipeline) -> None:
    """As in the published DiT models, every block has the same one."""
    first, *others = pipe.transformer.transformer_blocks
    for block in others:
        block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())


def routed_images(result: Compressed, pipe: DiTPipeline, **call: Any) -> Tensor:
    dense = images(pipe, **call)
    with result.routed(pipe):
        found = images(pipe, **call)
    assert not torch.equal(found, dense), "the plans change nothing: the comparison is empty"
    return found


def thin(pipe: DiTPipeline) -> Plan:
    return random_plan(pipe, 1)
