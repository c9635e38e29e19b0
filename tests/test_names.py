"""Names keep the order of their indices, or are refused."""

from collections import OrderedDict, UserList
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
        pd.Series(["a", "b", "c"], index=[7, 1, 0]),
        {0: "a", 1: "b", 2: "c"},
        {2: "c", 0: "a", 1: "b"},
        OrderedDict([(np.int64(1), "b"), (np.int64(0), "a"), (np.int64(2), "c")]),
    ],
    ids=lambda names: type(names).__name__,
)
def test_order_is_that_of_the_indices(names: Any) -> None:
    assert ordered_names(names, "class_names", 3) == ["a", "b", "c"]


def test_names_need_not_be_strings() -> None:
    assert ordered_names(range(2, 5), "sample_ids", 3) == ["2", "3", "4"]
    assert ordered_names(np.array([7, 8]), "sample_ids") == ["7", "8"]
    assert ordered_names([b"a", b"\xff"], "sample_ids") == ["a", "\ufffd"]
    assert ordered_names(None, "sample_ids", 3) is None
    assert ordered_names([], "sample_ids") == []


@pytest.mark.parametrize(
    ("names", "error", "match"),
    [
        ({"a", "b"}, TypeError, "class_names must be a list .* got set"),
        (frozenset("ab"), TypeError, "got frozenset"),
        (iter(["a", "b"]), TypeError, "got list_iterator"),
        ((c for c in "ab"), TypeError, r"got generator .*pass class_names=list\("),
        ({0: "a", 1: "b"}.values(), TypeError, "got dict_values"),
        ({"a": 0}.keys(), TypeError, "got dict_keys"),
        ("ab", TypeError, "got str 'ab'"),
        (b"ab", TypeError, "got bytes"),
        (2, TypeError, "got int '2'"),
        ({"a": 0, "b": 1}, TypeError, r"mapping from names, .*class_names=sorted\(names, key=names.get\)"),
        ({1: "a", 2: "b"}, ValueError, r"must be 0 to 1, got \[1, 2\]"),
        ({0: "a", 2: "b"}, ValueError, r"must be 0 to 1, got \[0, 2\]"),
        (np.array([["a"], ["b"]]), ValueError, r"must have one axis, got an array \(2, 1\)"),
        (["a"], ValueError, "must have 2 names, got 1"),
    ],
)
def test_names_without_an_order_are_refused(names: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        ordered_names(names, "class_names", 2)
