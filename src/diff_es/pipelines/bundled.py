"""The bundled models, trained on 32x32 game tiles: a class-conditional transformer and a text-conditional U-Net.

The recipes are ``examples/train_tiles.py`` and ``examples/train_tiles_unet.py``; the data are the CC0 tiles of Dungeon
Crawl Stone Soup.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "bundled"
MODELS = {"bundled": FOLDER / "tiles-dit", "bundled-unet": FOLDER / "tiles-unet"}
"""The names that the bundled models are loaded by."""
