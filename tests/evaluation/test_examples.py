"""The examples of denoisers that diffusers does not know run to their end, and again in a process of their own."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
AGAIN = "another process gives the same, to the bit"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str, int], list[str]]:
    """What an example prints, after 10 steps of training and with one generation of the search on few noises."""

    def run(name: str, noises: int) -> list[str]:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the process that it starts
        monkeypatch.setattr(sys, "argv", [name, "10", "1", str(noises)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.slow
def test_a_transformer_with_a_loop_that_takes_times(told: Callable[[str, int], list[str]]) -> None:
    lines = told("foreign_denoiser.py", 4)
    assert lines[-1] == AGAIN
    rows = [line.split() for line in lines[-8:-1]]
    names = ["dense", "fewer-steps", "trailing", "uniform", "mosaicdiff", "random", "diff-es"]
    assert [row[0] for row in rows] == names
    assert all(float(row[3]) <= 0.5 for row in rows[1:])


@pytest.mark.slow
def test_a_unet_with_a_loop_that_adds_noise(told: Callable[[str, int], list[str]]) -> None:
    lines = told("own_unet.py", 2)
    assert lines[-1] == AGAIN
    assert any(line.startswith("levels ((") and "dB to the dense model" in line for line in lines)
    assert sum(line.startswith("diff-es, ") for line in lines) >= 3


@pytest.mark.parametrize("name", ["foreign_denoiser.py", "own_unet.py"])
def test_an_example_is_short_and_imports_from_few_places(name: str) -> None:
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) < 120
    assert len({line.split()[1] for line in lines if line.startswith("from diff_es")}) <= 3
