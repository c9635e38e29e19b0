"""Names in the order of their indices, or a refusal."""

from collections import OrderedDict, UserList, deque
from typing import Any

import numpy as np
import pandas as pd
import pytest

from paddle_td_callback.names import ordered_names


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b", "c"],
        ("a", "b", "c"),
        UserList("abc"),
        np.array(["a", "b", "c"]),
        np.array(["a", "b", "c"], object),
        pd.Series(["a", "b", "c"], index=[7, 1, 0]),
        pd.Index(["a", "b", "c"]),
        pd.Categorical(["a", "b", "c"]),
        {2: "c", 0: "a", 1: "b"},
        {False: "a", True: "b", 2: "c"},
        OrderedDict({np.int64(1): "b", np.int64(2): "c", np.int64(0): "a"}),
    ],
    ids=lambda names: type(names).__name__,
)
def test_order_is_that_of_the_indices(names: Any) -> None:
    assert ordered_names(names, "class_names", 3) == ["a", "b", "c"]


def test_names_need_not_be_strings() -> None:
    assert ordered_names(range(2, 5), "sample_ids", 3) == ["2", "3", "4"]
    assert ordered_names(np.array([7, 8]), "sample_ids") == ["7", "8"]
    assert ordered_names(np.array([7, "x"], object), "sample_ids") == ["7", "x"]
    assert ordered_names([b"a", b"\xff"], "sample_ids") == ["a", "\ufffd"]
    assert ordered_names(None, "sample_ids", 3) is None
    assert ordered_names([], "sample_ids") == []


@pytest.mark.parametrize(
    ("names", "error", "match"),
    [
        ({"a", "b"}, TypeError, "class_names must be a list .* got set"),
        (frozenset("ab"), TypeError, "got frozenset"),
        (iter(["a", "b"]), TypeError, "got list_iterator"),
        ((name for name in "ab"), TypeError, "got generator"),
        (map(str, [1, 2]), TypeError, "got map"),
        (deque("ab").__reversed__(), TypeError, "got _collections._deque_reverse_iterator|got _deque_rev"),
        ({0: "a", 1: "b"}.values(), TypeError, r"got dict_values .*pass class_names=list\("),
        ({"a": 0}.keys(), TypeError, "got dict_keys"),
        ({0: "a"}.items(), TypeError, "got dict_items"),
        ("ab", TypeError, "got str 'ab'"),
        (b"ab", TypeError, "got bytes"),
        (2, TypeError, "got int '2'"),
        (
            {"pig": 1, "cat": 0},
            TypeError,
            r"mapping from names, .*pass class_names=sorted\(names, key=names.get\)",
        ),
        (
            {"0": "a", "1": "b"},
            TypeError,
            r"class_names=\{int\(key\): name for key, name in names.items\(\)\}",
        ),
        ({0.0: "a", 1.0: "b"}, TypeError, r"wanted one from indices; pass class_names=\{int\(key\): name"),
        ({1: "a", 2: "b"}, ValueError, r"must be 0 to 1, got \[1, 2\]"),
        ({0: "a", 2: "b"}, ValueError, r"must be 0 to 1, got \[0, 2\]"),
        (
            np.array([["a"], ["b"]]),
            ValueError,
            r"must have one axis, got an array of 2 axes; .*names\[:, 0\]",
        ),
        (np.array("ab"), ValueError, r"must have one axis, got an array of 0 axes; pass class_names=a list"),
        (np.array(5), ValueError, r"must have one axis, got an array of 0 axes"),
        ([["a"], ["b"]], TypeError, r"must be one string or number each, got \['a'\] for index 0; pass"),
        (["a", None], TypeError, r"one string or number each, got None for index 1"),
        (pd.DataFrame({"name": ["a", "b"]}), ValueError, "must have one axis, .* or the column"),
        (["a"], ValueError, "must have 2 names, got 1"),
    ],
)
def test_what_has_none(names: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        ordered_names(names, "class_names", 2)
