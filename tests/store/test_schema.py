"""Which recordings there can be."""

import pytest

from paddle_td_callback.store.schema import Layout


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"n_samples": 0}, "n_samples must be a whole number of at least 1 and below 1099511627776, got 0"),
        ({"n_samples": 2**40}, "and below 1099511627776, got 1099511627776"),
        ({"n_classes": 1}, "n_classes must be a whole number of at least 2"),
        ({"keep": "some"}, "keep must be 'all', 'given' or a number"),
        ({"keep": 0}, "keep must be"),
        ({"keep": True}, "keep must be"),
        ({"keep": 11}, "keep=11 is more than the 10 classes"),
        ({"dtype": "float64"}, "dtype must be 'float16' or 'float32', got 'float64'"),
        ({"mode": "test"}, "mode must be 'train' or 'eval', got 'test'"),
        ({"gzip_level": 10}, "gzip_level must be a whole number of at least 1 and below 10, got 10"),
    ],
)
def test_layouts_that_cannot_be(facts, message):
    with pytest.raises(ValueError, match=message):
        Layout(**{"n_samples": 5, "n_classes": 10, **facts})
