"""Parameters that are watched between calls: the first look at one of them is told of before it is answered.

Every way to a module's parameters leads through its dictionary of them: attributes, iteration, casts and moves, state
dictionaries, adapters, copies. So a dictionary that tells is put in its place for as long as nobody looks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from operator import setitem
from typing import Any

from torch import nn


class Guard:
    """Watches the parameters of some modules, their own and not those of modules below them.

    Args:
        modules: what is watched.
        looked: called at the first look, with the watch already off.
    """

    def __init__(self, modules: Iterable[nn.Module], looked: Callable[[], None]) -> None:
        self._looked, self.watching = looked, False
        own = [vars(module) for module in modules]
        names = ["_parameters"] * len(own)
        self._plain = (own, names, [attributes["_parameters"] for attributes in own])
        self._watched = (own, names, [_Watched(plain, self) for plain in self._plain[2]])

    def up(self) -> None:
        """Watch from now on."""
        self.watching = True
        deque(map(setitem, *self._watched), maxlen=0)

    def down(self) -> None:
        """Watch no longer; the modules have their own dictionaries back."""
        deque(map(setitem, *self._plain), maxlen=0)
        self.watching = False

    def look(self) -> None:
        """Somebody looks at a watched dictionary."""
        if self.watching:
            self.down()
            try:
                self._looked()
            except BaseException:  # so that the next look is told of as well
                self.up()
                raise


class _Watched(MutableMapping[str, Any], dict[str, Any]):  # type: ignore[misc, metaclass]
    """Empty itself: whatever it is asked for, the module's own dictionary answers, once the look was told of. Names
    alone tell nothing."""

    def __init__(self, plain: dict[str, Any], guard: Guard) -> None:
        self._plain, self._guard = plain, guard

    def _seen(self) -> dict[str, Any]:
        self._guard.look()
        return self._plain

    def __getitem__(self, name: str) -> Any:
        return self._seen()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._seen()[name] = value

    def __delitem__(self, name: str) -> None:
        del self._seen()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen())

    def __contains__(self, name: object) -> bool:
        return name in self._plain

    def __len__(self) -> int:
        return len(self._plain)

    def copy(self) -> dict[str, Any]:
        return self._seen().copy()

    def __or__(self, other: Any) -> Any:
        return self._seen() | other

    def __ror__(self, other: Any) -> Any:
        return other | self._seen()

    def __repr__(self) -> str:
        return repr(self._seen())

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (self._seen().copy(),)
