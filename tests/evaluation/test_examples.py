"""The examples of denoisers that diffusers does not know run to their end, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
AGAIN = "another process gives the same, to the bit"


def told(name: str, noises: int) -> list[str]:
    """What an example prints, after 10 steps of training and with one generation of the search on few noises."""
    command, one_thread = [str(EXAMPLES / name), "10", "1", str(noises)], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=280, env=one_thread)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_transformer_with_a_loop_that_takes_times() -> None:
    lines = told("foreign_denoiser.py", 4)
    assert lines[-1] == AGAIN
    rows = [line.split() for line in lines[-8:-1]]
    names = ["dense", "fewer-steps", "trailing", "uniform", "mosaicdiff", "random", "diff-es"]
    assert [row[0] for row in rows] == names
    assert all(float(row[3]) <= 0.5 for row in rows[1:])


@pytest.mark.slow
def test_a_unet_with_a_loop_that_adds_noise() -> None:
    lines = told("own_unet.py", 2)
    assert lines[-1] == AGAIN
    assert any(line.startswith("levels ((") and "dB to the dense model" in line for line in lines)
    assert sum(line.startswith("diff-es, ") for line in lines) >= 3


@pytest.mark.parametrize("name", ["foreign_denoiser.py", "own_unet.py"])
def test_an_example_is_short_and_imports_from_few_places(name: str) -> None:
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) < 120
    assert len({line.split()[1] for line in lines if line.startswith("from diff_es")}) <= 3
