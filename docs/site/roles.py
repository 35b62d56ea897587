"""References in docstrings as code: ``:func:`name` `` is the way of another tool."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|func|meth|mod):`")


class Roles(griffe.Extension):
    """Takes the role off every reference."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub("`", obj.docstring.value)
