"""Something of ours in place of an attribute of a model, for a while."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Replacement:
    """Stands at an attribute of a model until `remove`; to everybody it is what it replaced.

    Another callback may keep it and put it back later: it then calls what it replaced, and goes with the next
    `remove` of any replacement there. A copy of it is a copy of what it replaced.

    Args:
        holder: whose attribute.
        name: of the attribute.
        call: is called with the replaced object and the arguments.
    """

    def __init__(self, holder: Any, name: str, call: Callable[..., Any]) -> None:
        own = vars(holder)
        vars(self)["_replaced"] = _Replaced(own, name, name in own, getattr(holder, name), call)
        own[name] = self

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Do what it is there for; when that is over, what it replaced does."""
        replaced = self._replaced
        if replaced.is_over:
            return replaced.original(*args, **named)
        return replaced.call(replaced.original, *args, **named)

    def remove(self) -> None:
        """Take it off, now or with what is above it; twice is fine."""
        self._replaced.is_over = True
        self.clear(self._replaced.own, self._replaced.name)

    @classmethod
    def clear(cls, own: dict[str, Any], name: str, *, all_of_them: bool = False) -> None:
        """Take off the replacements at an attribute that are over."""
        while type(top := own.get(name)) is cls and (all_of_them or top._replaced.is_over):
            if top._replaced.was_own:
                own[name] = top._replaced.original
            else:
                del own[name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replaced.original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._replaced.original, name, value)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _itself, (self._replaced.original,)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._replaced.original)


@dataclass
class _Replaced:
    own: dict[str, Any]
    name: str
    was_own: bool
    original: Any
    call: Callable[..., Any]
    is_over: bool = False


def _itself(one: Any) -> Any:
    return one


def original_of(one: Any) -> Any:
    """What replacements stand for."""
    while type(one) is Replacement:
        one = one._replaced.original
    return one
