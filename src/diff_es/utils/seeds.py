"""Every random draw derives from (seed, purpose, index), so nothing depends on the order in which things ran."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed for one draw: the same for the same arguments on every machine and worker."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
