"""Which recordings there can be, and that the README describes what they hold."""

from pathlib import Path

import h5py
import pytest

from paddle_td_callback.store.schema import ALL_FIELDS, EPOCH_FIELDS, LABELS, TOP_FIELDS, Layout

FIXTURE = Path(__file__).parents[1] / "fixtures" / "schema_v1.h5"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"n_samples": 0}, "n_samples must be at least 1, got 0"),
        ({"n_samples": 2**40}, "n_samples must be below"),
        ({"n_classes": 1}, "n_classes must be at least 2"),
        ({"keep": "some"}, "keep must be 'all', 'given' or a number"),
        ({"keep": 0}, "keep must be"),
        ({"keep": True}, "keep must be"),
        ({"keep": 11}, "keep=11 is more than the 10 classes"),
        ({"dtype": "float64"}, "dtype must be 'float16' or 'float32', got 'float64'"),
        ({"mode": "test"}, "mode must be 'train' or 'eval', got 'test'"),
        ({"gzip_level": 10}, "gzip_level must be 1 to 9"),
    ],
)
def test_layouts_that_cannot_be(facts, message):
    with pytest.raises(ValueError, match=message):
        Layout(**{"n_samples": 5, "n_classes": 10, **facts})


def test_the_readme_describes_the_schema():
    readme = Path(__file__).parents[2] / "README.md"
    if not readme.exists():
        pytest.skip("no README in this checkout")
    text = readme.read_text()
    fields = {field.name for field in (*EPOCH_FIELDS, *ALL_FIELDS, *TOP_FIELDS, LABELS)} | {"class_names"}
    with h5py.File(FIXTURE) as file:
        attributes = set(file.attrs)
    missing = [name for name in sorted(fields | attributes) if f"`{name}`" not in text]
    assert missing == []
    for field in EPOCH_FIELDS:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{field.name}`"))
        assert field.dtype in row
