"""Attributes of a loss: which labels it ignores, whether it takes probabilities, and which layers it may call.

A loss may be a layer, a function, a partial function, a method or any callable, and may hold the loss that does the
work: as a sublayer, an attribute, in a list, in a closure. The outermost one that has the attribute counts.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from .internals import IGNORE_INDEX, USE_SOFTMAX

_DEPTH = 5
_MOST_PARTS = 100  # of a list, which may hold data
_IGNORED_BY_DEFAULT = -100  # by Paddle's own losses; never a class


def ignored_labels(loss: Any, n_classes: int) -> list[int]:
    """Labels that a loss ignores; where its parts disagree, none that is a class."""
    labels = {
        int(one)
        for one in _answers(loss, functools.partial(_ignored, n_classes=n_classes))
        if isinstance(one, (int, np.integer)) and not isinstance(one, bool)
    }
    if len(labels) > 1:
        labels = {one for one in labels if not 0 <= one < n_classes}
    return sorted({*labels, _IGNORED_BY_DEFAULT})


def _ignored(part: Any, n_classes: int) -> Any:
    found = _argument(part, IGNORE_INDEX)
    if found is None and inspect.isfunction(part) and not _is_paddles(part):
        found, is_only_call = _passed(part, IGNORE_INDEX[0])
        # A class that one of several calls ignores may be trained by another.
        if not is_only_call and isinstance(found, (int, np.integer)) and 0 <= found < n_classes:
            return None
    return found


def takes_probabilities(loss: Any) -> bool:
    """Whether a loss reads the network's outputs as probabilities."""
    answers = _answers(loss, _takes_probabilities)
    return bool(answers) and all(answers)


def _takes_probabilities(part: Any) -> bool | None:
    if isinstance(part, paddle.nn.BCELoss) or part is F.binary_cross_entropy:
        return True
    use_softmax = _argument(part, USE_SOFTMAX)
    if use_softmax is None and inspect.isfunction(part) and not _is_paddles(part):
        use_softmax = _passed(part, USE_SOFTMAX[0])[0]
    return None if use_softmax is None else not use_softmax


def _answers(loss: Any, ask: Callable[[Any], Any]) -> list[Any]:
    """Answers of the outermost parts of a loss that have one."""
    for level in itertools.islice(_levels(loss), _DEPTH):
        answers = [answer for part in level if (answer := _asked(ask, part)) is not None]
        if answers:
            return answers
    return []


def layers_in(function: Any) -> list[Any]:
    """Layers that a function may call: itself, and those that it holds, or calls by a name of its own."""
    levels = itertools.islice(_levels(function), _DEPTH + 1)
    return [part for level in levels for part in level if isinstance(part, paddle.nn.Layer)]


def _levels(whole: Any) -> Iterator[list[Any]]:
    """Itself, then its parts, then theirs, each once."""
    level, seen = [whole], {id(whole)}
    while level:
        yield level
        inner = {id(one): one for part in level for one in _parts(part)}
        level = [one for key, one in inner.items() if key not in seen]
        seen.update(inner)


def _asked(ask: Callable[[Any], Any], part: Any) -> Any:
    with contextlib.suppress(Exception):  # a signature, a property or a proxy may raise anything
        return ask(part)
    return None


def _argument(part: Any, names: Iterable[str]) -> Any:
    """An argument of a loss: an attribute, bound by a partial function, or the default of a function."""
    for name in names:
        if isinstance(part, functools.partial):
            value = part.keywords.get(name)
        elif inspect.isfunction(part):
            parameter = inspect.signature(part).parameters.get(name)
            value = None if parameter is None or parameter.default is parameter.empty else parameter.default
        else:
            value = None
            with contextlib.suppress(Exception):  # a property may raise anything
                value = getattr(part, name)
        if value is not None:
            return value
    return None


def _passed(function: Any, name: str) -> tuple[Any, bool]:
    """What a function passes by this name in a call, and whether it makes no other call.

    Such as 255 in `lambda z, y: F.cross_entropy(z, y, ignore_index=255)`. None where that is not one constant, or the
    value of one variable.
    """
    instructions = list(dis.get_instructions(function))
    n_calls = sum(one.opname.startswith("CALL") for one in instructions)
    for place, one in enumerate(instructions):
        is_unresolved = one.opname == "KW_NAMES" and one.arg is not None  # by Python 3.11
        keywords = function.__code__.co_consts[one.arg] if is_unresolved else one.argval
        if not isinstance(keywords, tuple) or name not in keywords:
            continue
        loads = instructions[max(0, place - len(keywords) + keywords.index(name)) : place]
        if loads and all(load.opname in _LOADS for load in loads):
            variables = inspect.getclosurevars(function)
            known = {**variables.globals, **variables.nonlocals}
            value = loads[0].argval
            found = value if loads[0].opname in _CONSTANTS else known.get(value)
            return found, n_calls == 1
    return None, False


_CONSTANTS = ("LOAD_CONST", "LOAD_SMALL_INT")
_LOADS = (*_CONSTANTS, "LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_FAST", "LOAD_FAST_BORROW")


def _is_paddles(function: Any) -> bool:
    return str(function.__module__).split(".")[0] == "paddle"


def _parts(part: Any) -> list[Any]:
    parts: list[Any] = []
    with contextlib.suppress(Exception):  # of foreign objects, such as a proxy that has no hash
        parts += _inside(part)
    return parts


def _inside(part: Any) -> Iterator[Any]:
    """What a part of a loss holds, or calls by a name of its own."""
    if isinstance(part, Mapping):
        held = [*part.values()]
    elif isinstance(part, (list, tuple)):
        held = [*part]
    elif isinstance(part, functools.partial):
        held = [part.func, *part.args, *part.keywords.values()]
    elif inspect.ismethod(part):
        yield part.__self__  # it need not be callable itself
        held = [part.__func__]
    elif inspect.isfunction(part) and _is_paddles(part):
        return  # its arguments say all
    elif inspect.isfunction(part):
        held = [*(part.__defaults__ or ()), *(part.__kwdefaults__ or {}).values()]
        with contextlib.suppress(ValueError):  # a cell that is still empty
            variables = inspect.getclosurevars(part)
            held += [*variables.nonlocals.values(), *variables.globals.values()]
    else:
        held = [*getattr(part, "__dict__", {}).values()]
        if isinstance(part, paddle.nn.Layer):
            held += [*part.children(), type(part).forward]
        else:
            held.append(inspect.getattr_static(type(part), "__call__", None))
    for one in held[:_MOST_PARTS]:
        is_part = callable(one) or isinstance(one, (list, tuple, Mapping))
        if is_part and not inspect.isclass(one) and not inspect.isbuiltin(one):
            yield one
