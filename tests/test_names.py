"""Names in the order of their indices, or a refusal."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pandas as pd
import pytest

from paddle_td_callback.names import in_order


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b", "c"],
        ("a", "b", "c"),
        np.array(["a", "b", "c"]),
        pd.Series(["a", "b", "c"], index=[7, 1, 0]),
        {2: "c", 0: "a", 1: "b"},
        OrderedDict({np.int64(1): "b", np.int64(2): "c", np.int64(0): "a"}),
    ],
    ids=lambda values: type(values).__name__,
)
def test_order_is_that_of_the_indices(values: Any) -> None:
    assert in_order(values, "class_names") == ["a", "b", "c"]


@pytest.mark.parametrize(
    "values",
    [
        {"a", "b"},
        frozenset("ab"),
        "ab",
        b"ab",
        (c for c in "ab"),
        iter(["a"]),
        {"a": 1}.values(),
        {"a": 0}.keys(),
        3,
    ],
    ids=lambda values: type(values).__name__,
)
def test_what_has_no_order_is_refused(values: Any) -> None:
    with pytest.raises(TypeError, match=r"class_names must be a list .* got a \w+; pass class_names=\["):
        in_order(values, "class_names")


def test_a_mapping_from_name_to_index_is_refused_with_the_way_out() -> None:
    with pytest.raises(
        TypeError, match=r"from index to name, .*has the key 'pig'; .*sorted\(mapping, key=mapping.get\)"
    ):
        in_order({"pig": 1, "cat": 0}, "class_names")


def test_a_mapping_with_a_gap_is_refused() -> None:
    with pytest.raises(ValueError, match="keys 0 to 1, but 0 is missing"):
        in_order({1: "a", 2: "b"}, "sample_ids")
