"""What processes that tests fork, and kill, must not share with them."""

from __future__ import annotations

import threading

from tqdm import tqdm


def share_no_lock() -> None:
    """tqdm's own lock is one for all processes that are forked: who is killed with it in hand stops the others."""
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0  # no thread that holds it while a process is forked
