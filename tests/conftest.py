"""What every test runs under: one thread, no network, no deadline; and a pruned tiny pipeline that several share."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported

import hypothesis
import pytest
import torch
from tests.helpers.forks import share_no_lock
from tests.helpers.tiny import settings, tiny

from diff_es import Compressed, Run, compress
from diff_es.compression.study import Study, prepare
from diff_es.execution.cluster import OWN

os.environ.update(OWN)  # before Ray is imported: its clusters are of this machine alone
torch.set_num_threads(1)
share_no_lock()
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def study() -> Study:
    """Tests may route its pipeline, and must leave it dense."""
    return prepare(tiny(), settings())


@pytest.fixture(scope="session")
def finished_journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by the search of ``fast``; copy it before it is changed."""
    return tmp_path_factory.mktemp("search") / "journal.jsonl"


@pytest.fixture(scope="session")
def fast(finished_journal: Path) -> Compressed:
    """What ``compress(tiny(), 0.6, settings())`` finds; nobody changes it."""
    return compress(tiny(), 0.6, settings(), run=Run(journal=finished_journal))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny()`` saved to disk, with three classes that have names."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny().save_pretrained(folder)
    index = folder / "model_index.json"
    names = {"id2label": {"0": "floor", "1": "wall, stone wall", "2": "monster"}}
    index.write_text(json.dumps({**json.loads(index.read_text()), **names}))
    return folder


def pytest_collection_finish() -> None:
    """What has been imported and collected stays to the end: it need not be looked through again and again."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """diffusers hands tensors to numpy in a way that numpy 2 warns of; nothing of ours is in it."""
    for warning in ("__array__ implementation", "__array_wrap__ must accept"):
        config.addinivalue_line("filterwarnings", f"ignore:{warning}:DeprecationWarning")
