"""The state of layers, put back after calls that the training does not make."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import paddle

from .internals import has_dense_memory, statistics_of

_DEPTH = 4  # of lists in dictionaries of objects
_MOST_ITEMS = 1000  # of a container that is looked into
_SHALLOW = ("_parameters", "_sub_layers")  # what these hold is kept by itself, or trained
_ATOMS = (str, bytes, int, float, complex, type(None), type, FunctionType, MethodType, ModuleType, np.generic)

Restore = Callable[[], None]


def keep(*layers: Any) -> Restore:
    """Note the buffers and the attributes in plain Python of layers and their sublayers; returns what puts them back.

    Lists, dictionaries, sets, arrays, tensors and objects that they hold are put back in place. Trained parameters are
    not noted. What lies outside of the layers, such as a list in the closure of a hook, is not known.
    """
    inner = [one for layer in layers for one in layer.sublayers(include_self=True)]
    noted = {id(one) for one in inner}
    undo = [_attributes(one, noted, _DEPTH) for one in inner]
    undo += [_content(one, noted, _DEPTH) for layer in inner for one in statistics_of(layer)]

    def restore() -> None:
        with contextlib.ExitStack() as stack:  # whatever one of them raises, the others are put back
            for one in undo:
                stack.callback(one)

    return restore


@contextlib.contextmanager
def kept(*layers: Any) -> Iterator[None]:
    """Put back, at the end of a block, what `keep` notes."""
    restore = keep(*layers)
    try:
        yield
    finally:
        restore()


def _attributes(holder: Any, noted: set[int], depth: int) -> Restore:
    own = vars(holder)
    before = dict(own)
    inner = [
        _shallow(value) if name in _SHALLOW else _content(value, noted, depth)
        for name, value in before.items()
    ]

    def restore() -> None:
        for name in own.keys() - before.keys():
            del own[name]
        own.update(before)

    return _both(restore, inner)


def _content(value: Any, noted: set[int], depth: int) -> Restore:
    """What puts back the content of a value in place."""
    if isinstance(value, _ATOMS) or id(value) in noted or depth == 0:
        return _nothing
    noted.add(id(value))
    if isinstance(value, paddle.Tensor):
        return _of_tensor(value)
    if isinstance(value, np.ndarray):
        return _of_array(value)
    if isinstance(value, (list, dict, set, deque)):
        items = list(value.values() if isinstance(value, dict) else value)
        inner = [_content(one, noted, depth - 1) for one in items] if len(items) <= _MOST_ITEMS else []
        return _both(_shallow(value), inner)
    if isinstance(value, tuple):
        return _both(_nothing, [_content(one, noted, depth - 1) for one in value[:_MOST_ITEMS]])
    if isinstance(value, paddle.nn.Layer) or not hasattr(value, "__dict__"):
        return _nothing  # a layer that is no sublayer is not called as one
    return _attributes(value, noted, depth - 1)


def _nothing() -> None:
    pass


def _both(first: Restore, others: list[Restore]) -> Restore:
    def restore() -> None:
        first()
        for one in others:
            one()

    return restore


def _shallow(value: Any) -> Restore:
    """What puts the items of a container back into it."""
    items = dict(value) if isinstance(value, dict) else list(value)

    def restore() -> None:
        value.clear()
        value.extend(items) if isinstance(value, (list, deque)) else value.update(items)

    return restore


def _of_tensor(value: Any) -> Restore:
    if not has_dense_memory(value):
        return _nothing
    before = value.detach().clone()

    def restore() -> None:
        if value.shape != before.shape or not _is_same(value, before):
            value.set_value(before)

    return restore


def _is_same(one: Any, other: Any) -> bool:
    """By NumPy: Paddle compares not every type on a CPU."""
    return np.array_equal(one.numpy(), other.numpy())


def _of_array(value: Any) -> Restore:
    before = value.copy()

    def restore() -> None:
        if value.flags.writeable:
            value[...] = before

    return restore
