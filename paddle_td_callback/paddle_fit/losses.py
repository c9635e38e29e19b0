"""Attributes of a loss: which labels it ignores, and whether it takes probabilities.

A loss may be a layer, a function, a partial function, a method or any callable, and may hold the loss that does the
work: as a sublayer, an attribute, in a closure. The outermost one that has the attribute counts.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from .internals import IGNORE_INDEX, USE_SOFTMAX

_DEPTH = 4
_IGNORED_BY_DEFAULT = -100  # by Paddle's own losses; never a class


def ignored_labels(loss: Any, n_classes: int) -> list[int]:
    """Labels that a loss ignores; where its parts disagree, none that is a class."""
    labels = {int(one) for one in _answers(loss, _ignored) if isinstance(one, (int, np.integer))}
    if len(labels) > 1:
        labels = {one for one in labels if not 0 <= one < n_classes}
    return sorted({*labels, _IGNORED_BY_DEFAULT})


def _ignored(part: Any) -> Any:
    return _argument(part, IGNORE_INDEX)


def takes_probabilities(loss: Any) -> bool:
    """Whether a loss reads the network's outputs as probabilities."""
    answers = _answers(loss, _takes_probabilities)
    return bool(answers) and all(answers)


def _takes_probabilities(part: Any) -> bool | None:
    if isinstance(part, paddle.nn.BCELoss) or part is F.binary_cross_entropy:
        return True
    use_softmax = _argument(part, USE_SOFTMAX)
    return None if use_softmax is None else not use_softmax


def _answers(loss: Any, ask: Callable[[Any], Any]) -> list[Any]:
    """Answers of the outermost parts of a loss that have one."""
    level = [loss]
    for _ in range(_DEPTH):
        answers = [answer for answer in map(ask, level) if answer is not None]
        if answers:
            return answers
        level = [inner for part in level for inner in _inside(part)]
    return []


def _argument(part: Any, names: Iterable[str]) -> Any:
    """An argument of a loss: an attribute, bound by a partial function, or the default of a function."""
    for name in names:
        if isinstance(part, functools.partial):
            value = part.keywords.get(name)
        elif inspect.isfunction(part):
            parameter = inspect.signature(part).parameters.get(name)
            value = None if parameter is None or parameter.default is parameter.empty else parameter.default
        else:
            value = getattr(part, name, None)
        if value is not None:
            return value
    return None


def _inside(part: Any) -> Iterator[Any]:
    if isinstance(part, functools.partial):
        held = [part.func, *part.args, *part.keywords.values()]
    elif inspect.ismethod(part):
        held = [part.__self__]
    elif inspect.isfunction(part):
        try:
            variables = inspect.getclosurevars(part)
        except ValueError:  # a cell that is still empty
            return
        held = [*variables.nonlocals.values(), *variables.globals.values()]
    else:
        held = [*getattr(part, "__dict__", {}).values()]
        if isinstance(part, paddle.nn.Layer):
            held += part.children()
    for one in held:
        if callable(one) and not inspect.isclass(one) and not inspect.isbuiltin(one):
            yield one
