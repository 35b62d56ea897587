"""``python -m diff_es`` is ``diff-es``."""

from .cli import main

main()
