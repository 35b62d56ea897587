"""The bundled models, trained on 32x32 game tiles: a class-conditional transformer, that transformer distilled to four
steps, and a text-conditional U-Net.

The recipes are ``train_tiles.py``, ``distil_tiles.py`` and ``train_tiles_unet.py`` in ``examples``; the data are the
CC0 tiles of Dungeon Crawl Stone Soup.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "bundled"
MODELS = {
    "bundled": FOLDER / "tiles-dit",
    "bundled-turbo": FOLDER / "tiles-turbo",
    "bundled-unet": FOLDER / "tiles-unet",
}
"""The names that the bundled models are loaded by."""
SHARED = {"bundled-turbo": ("vae", MODELS["bundled"])}
"""A part that is stored with another model alone."""
