"""How much memory is free is what the machine has left, and what a container may take of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diff_es.utils.memory import free_memory


@pytest.mark.parametrize(
    ("most", "used", "once", "left"),
    [(3000, 1500, 500, 2000), (1000, 1500, 400, 0), ("max", 1500, 500, None), (1 << 60, 1500, 500, None)],
)
def test_a_container_takes_no_more_than_its_limit(
    most: object, used: int, once: int, left: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal:  16 kB\nMemAvailable:  8 kB\n")
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon 12\ninactive_file {once}\nactive_file 7\n")
    monkeypatch.setattr("diff_es.utils.memory._LINUX", machine)
    monkeypatch.setattr("diff_es.utils.memory._GROUP", tmp_path)
    assert free_memory(torch.device("cpu")) == (8192 if left is None else left)


def test_without_a_limit_all_that_the_machine_has_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable:  8 kB\n")
    monkeypatch.setattr("diff_es.utils.memory._LINUX", tmp_path / "meminfo")
    monkeypatch.setattr("diff_es.utils.memory._GROUP", tmp_path / "none")
    assert free_memory(torch.device("cpu")) == 8192
