"""The page without a browser: what is in it, what is refused, what it costs; test_report_in_browser opens it."""

import base64
import hashlib
import io
import json
import random
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from support.noisy_recording import record

from paddle_td_callback import StoreError, TrainingDynamicsStore, find_label_issues, scores
from paddle_td_callback.export import report_data
from paddle_td_callback.export.report import write_report
from paddle_td_callback.export.text import embedded_json
from paddle_td_callback.export.thumbnails import SIDE, describe, png

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked=1'>",
    "a\"'&b",
    "\u2028\u202e",
]


def issues_of(path, **options):
    return find_label_issues(path, method="aum", progress=False, **options)


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    ), text


@pytest.fixture
def page(path, tmp_path):
    wrong = record(path, class_names=HOSTILE, sample_ids=[f"{i}<b>" for i in range(300)])
    issues = issues_of(path)
    write_report(issues, path, tmp_path / "report.html", title="A <title> & more")
    return issues, wrong, *data_of(tmp_path / "report.html")


def test_suspects_are_the_head_of_the_ranking(page):
    issues, _, data, _ = page
    suspects = data["suspects"]
    assert suspects["sample"] == issues.ranking.tolist()
    assert suspects["id"][0] == f"{issues.ranking[0]}<b>"
    assert suspects["given"] == issues.given_label[issues.ranking].tolist()
    assert data["names"] == {str(label): name for label, name in enumerate(HOSTILE)}


def test_trajectories_are_those_of_the_recording(page, path):
    _, _, data, _ = page
    with TrainingDynamicsStore(path) as store:
        given = store.given_probabilities()[data["suspects"]["sample"]]
    found = np.frombuffer(base64.b64decode(data["suspects"]["given_curve"]), np.uint8).reshape(given.shape)
    np.testing.assert_array_equal(found == 255, np.isnan(given))
    seen = found < 255
    np.testing.assert_allclose(found[seen] / 254, given[seen], atol=0.5 / 254 + 1e-6)


def test_points_are_confidence_variability_label_score_and_sample(page, path):
    issues, _, data, text = page
    raw = base64.b64decode(re.search(r'id="points">(.*?)</script>', text, re.S)[1])
    n = data["points"]["n"]
    assert (n, len(raw)) == (298, 298 * 11)
    with TrainingDynamicsStore(path) as store:
        given = store.given_probabilities()[:n]
    np.testing.assert_allclose(
        np.frombuffer(raw[: 2 * n], "<u2") / 65535, scores.confidence(given), atol=1e-5
    )
    np.testing.assert_allclose(
        np.frombuffer(raw[2 * n : 4 * n], "<u2") / 131070, scores.variability(given), atol=1e-5
    )
    np.testing.assert_array_equal(np.frombuffer(raw[4 * n : 6 * n], "<u2"), issues.given_label[:n])
    np.testing.assert_allclose(
        np.frombuffer(raw[6 * n : 7 * n], np.uint8) / 255, issues.noise_score[:n], atol=0.002
    )
    np.testing.assert_array_equal(np.frombuffer(raw[7 * n :], "<u4"), np.arange(n))


def test_tables_by_a_naive_count(page):
    issues, _, data, _ = page
    flagged = [i for i in range(300) if issues.is_label_issue[i]]
    matrix = data["matrix"]
    for a, row in zip(matrix["labels"], matrix["counts"], strict=True):
        for b, count in zip(matrix["labels"], row, strict=True):
            assert count == sum(
                issues.given_label[i] == a and issues.suggested_label[i] == b for i in flagged
            )
    classes = data["classes"]
    for label, n, looks_wrong in zip(classes["label"], classes["samples"], classes["flagged"], strict=True):
        assert n == sum(issues.given_label[i] == label for i in range(298))
        assert looks_wrong == sum(issues.given_label[i] == label for i in flagged)
    for (a, b), (forward, back) in zip(data["pairs"]["pair"], data["pairs"]["counts"], strict=True):
        assert forward == sum(issues.given_label[i] == a and issues.suggested_label[i] == b for i in flagged)
        assert back == sum(issues.given_label[i] == b and issues.suggested_label[i] == a for i in flagged)


def test_curves_by_a_naive_mean(page, path):
    issues, _, data, _ = page
    with TrainingDynamicsStore(path) as store:
        given, predicted, labels = store.given_probabilities(), store.predictions(), store.labels
    for epoch in range(6):
        seen = predicted[:, epoch] >= 0
        assert data["curves"]["accuracy"][epoch] == pytest.approx(
            (predicted[:, epoch] == labels)[seen].mean(), abs=1e-4
        )
        for kind, chosen in (("flagged", issues.is_label_issue), ("others", ~issues.is_label_issue)):
            wanted = given[seen & chosen, epoch].mean()
            assert data["curves"][kind][epoch] == pytest.approx(wanted, abs=1e-4)


def test_methods_agree_with_scipy(page):
    stats = pytest.importorskip("scipy.stats")
    _, _, data, _ = page
    names = data["methods"]["names"]
    assert names[0] == "aum"
    assert len(names) == len(set(names)) == 7
    assert np.diag(np.array(data["methods"]["correlations"])) == pytest.approx(np.ones(7))
    values = np.random.default_rng(0).integers(0, 9, 50)
    assert report_data._ranks(values).tolist() == (stats.rankdata(values) - 1).tolist()


def test_nothing_in_the_data_is_html(page):
    *_, text = page
    assert text.count("<script") == 3
    assert "window.hacked" in text
    assert "<img" not in text
    assert "<title>A &lt;title&gt; &amp; more</title>" in text
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)


def test_only_our_script_and_style_may_run(page):
    *_, text = page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; ")
    for tag in ("script", "style"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_json_survives_any_text():
    texts = [*HOSTILE, "\x00\x1b[2J\x7f", "\ud800", "\u2029<!--", "{{data}}", "a" * 10_000]
    packed = embedded_json(texts)
    assert packed.isascii()
    assert not set(packed) & set("<>&")
    assert json.loads(packed) == texts


def test_places_of_the_template_in_the_data_stay_text(path, tmp_path):
    record(path, class_names=["{{points}}", "{{script}}", "{{", "}}"])
    write_report(issues_of(path), path, tmp_path / "r.html", title="{{data}}")
    data, _ = data_of(tmp_path / "r.html")
    assert data["title"] == "{{data}}"
    assert data["names"]["0"] == "{{points}}"


def test_several_runs_and_an_open_store(path, tmp_path):
    record(path)
    record(tmp_path / "b.h5", seed=0)
    write_report(issues_of([path, tmp_path / "b.h5"]), [path, tmp_path / "b.h5"], tmp_path / "r.html")
    with TrainingDynamicsStore(path) as store:
        write_report(issues_of(store), store, tmp_path / "r.html", n_suspects=3)
    assert len(data_of(tmp_path / "r.html")[0]["suspects"]["sample"]) == 3


@pytest.mark.parametrize("keep", ["given", 2])
def test_recordings_of_less_make_the_same_page(path, tmp_path, keep):
    record(path, keep=keep)
    write_report(issues_of(path), path, tmp_path / "r.html")


def test_long_trajectories_are_thinned(path, tmp_path, monkeypatch):
    monkeypatch.setattr(report_data, "MAX_EPOCHS", 4)
    monkeypatch.setattr(report_data, "MAX_POINTS", 100)
    monkeypatch.setattr(report_data, "MAX_NAMED_POINTS", 50)
    record(path)
    write_report(issues_of(path), path, tmp_path / "r.html")
    data, _ = data_of(tmp_path / "r.html")
    assert data["suspects"]["epochs"] == [0, 1, 3, 5]
    assert data["points"] == {"n": 100, "of": 298, "named": False}


def test_only_the_classes_that_occur_most_are_in_the_matrix(path, tmp_path, monkeypatch):
    monkeypatch.setattr(report_data, "MAX_CLASSES", 2)
    record(path)
    issues = issues_of(path)
    write_report(issues, path, tmp_path / "r.html")
    matrix = data_of(tmp_path / "r.html")[0]["matrix"]
    assert (len(matrix["labels"]), matrix["of"]) == (2, 4)
    one, two = matrix["labels"]
    is_pair = issues.is_label_issue & (issues.given_label == one) & (issues.suggested_label == two)
    assert matrix["counts"][0][1] == is_pair.sum()


def test_an_estimate_without_an_interval_is_said_to_have_none(path, tmp_path):
    record(path)
    write_report(replace(issues_of(path), noise_rate=0.2), path, tmp_path / "r.html")
    cautions = data_of(tmp_path / "r.html")[0]["summary"]["trust"]["cautions"]
    assert "This detector was not measured on data it had not seen, so no interval is known." in cautions


def test_an_estimate_after_all_was_memorised_is_said_to_be_low(path, tmp_path):
    record(path, noise=0, n_epochs=30)
    write_report(replace(issues_of(path), noise_rate=0.2, n_epochs_read=30), path, tmp_path / "r.html")
    cautions = data_of(tmp_path / "r.html")[0]["summary"]["trust"]["cautions"]
    assert (
        "wrong ones included. After that much was memorised, the estimate tends to be too low." in cautions[0]
    )


def test_long_ids_are_cut_where_all_would_not_fit(monkeypatch):
    assert report_data._fitted(["a" * 10, "b"], 100) == ["a" * 10, "b"]
    assert len(embedded_json(report_data._fitted(["\U0001f431" * 900, "<" * 900], 1000))) < 1000
    assert report_data._fitted(["a" * 99, "b"], 96) == ["aaa…", "b"]


# ---- what is refused


def test_issues_of_another_recording_are_refused(path, tmp_path):
    record(path)
    record(tmp_path / "other.h5", n_samples=200)
    record(tmp_path / "labels.h5", seed=1)
    for other, message in (("other.h5", "200"), ("labels.h5", "label")):
        with pytest.raises(ValueError, match=message):
            write_report(issues_of(path), tmp_path / other, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_recording_is_not_overwritten(path, tmp_path):
    record(path)
    issues = issues_of(path)
    with pytest.raises(StoreError, match="HDF5"):
        write_report(issues, path, path)
    with pytest.raises(StoreError, match="no folder"):
        write_report(issues, path, tmp_path / "no" / "r.html")
    with pytest.raises(ValueError, match="n_suspects"):
        write_report(issues, path, tmp_path / "r.html", n_suspects=0)
    with pytest.raises(ValueError, match="dataset="):
        write_report(issues, path, tmp_path / "r.html", thumbnail=str)
    with pytest.raises(ValueError, match="dataset has 3"):
        write_report(issues, path, tmp_path / "r.html", dataset=[1, 2, 3])


def test_the_old_page_stays_when_the_new_one_fails(path, tmp_path, monkeypatch):
    record(path)
    (tmp_path / "r.html").write_text("old")
    issues = issues_of(path)
    monkeypatch.setattr(
        "paddle_td_callback.export.report.page", lambda *_: (_ for _ in ()).throw(MemoryError())
    )
    with pytest.raises(MemoryError):
        write_report(issues, path, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "old"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["r.html", "run.h5"]


# ---- pictures, texts, rows


def test_pictures_of_a_data_set(path, tmp_path):
    record(path)
    issues = issues_of(path)

    class Dataset:
        def __len__(self):
            return 300

        def __getitem__(self, index):
            random.random()
            np.random.rand()  # noqa: NPY002
            return np.full((1, 5, 4), index / 300, np.float32), index % 4

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    write_report(issues, path, tmp_path / "r.html", dataset=Dataset())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    content = data_of(tmp_path / "r.html")[0]["content"]
    assert len(content) == 298
    assert content[0]["image"].startswith("data:image/png;base64,")
    write_report(
        issues, path, tmp_path / "r.html", dataset=Dataset(), thumbnail=lambda item: {"label": item[1]}
    )
    first = int(issues.ranking[0])
    assert data_of(tmp_path / "r.html")[0]["content"][0] == {"row": [["label", str(first % 4)]]}
    write_report(issues, path, tmp_path / "r.html", dataset=Dataset(), max_content_bytes=1000)
    assert 0 < len(data_of(tmp_path / "r.html")[0]["content"]) < 20


def test_samples_that_cannot_be_shown_cost_no_page(path, tmp_path):
    record(path)

    def broken(_):
        raise KeyError("<gone>")

    with pytest.warns(RuntimeWarning, match="298 samples could not be shown"):
        write_report(issues_of(path), path, tmp_path / "r.html", dataset=range(300), thumbnail=broken)
    assert data_of(tmp_path / "r.html")[0]["content"][0] is None


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ("text", "text"),
        (("a", 1, 2.5), "row"),
        ({"a": 1}, "row"),
        (np.arange(5.0), "row"),
        (np.zeros((3, 200, 300), np.float32), "image"),
        (np.zeros((200, 300, 3), np.uint8), "image"),
        ((np.random.default_rng(0).normal(size=(1, 28, 28)), 3), "image"),
        (np.zeros((2, 2), bool), "image"),
        (png(np.zeros((2, 2, 4), np.uint8)), "image"),
        (b"GIF89a...", "image"),
        ((np.array([], np.float32), np.array([object()]), "text"), "text"),
        (np.array(["a", "b"]), None),
        (np.zeros((1, 3, 20, 20)), "image"),
        (np.zeros((5, 20, 20)), "image"),
        (np.zeros((20, 20, 2)), "image"),
        ({"image": np.zeros((4, 4)), "label": 3}, "image"),
        ({"text": "a", "n": np.arange(3)}, "row"),
        (object(), None),
        (np.zeros((2, 2, 2, 2)), None),
        ([], None),
    ],
)
def test_items_are_shown_as_what_they_are(item, kind):
    found = describe(item)
    assert found is None if kind is None else list(found) == [kind]


def test_a_picture_of_pillow_is_shown_small():
    image = pytest.importorskip("PIL.Image")
    for mode, kind in (("RGB", "jpeg"), ("L", "png"), ("RGBA", "png")):
        content = describe((image.new(mode, (400, 200)), 3))["image"]
        assert content.startswith(f"data:image/{kind};base64,")
        with image.open(io.BytesIO(base64.b64decode(content.partition(",")[2]))) as shown:
            assert shown.size == (SIDE, SIDE // 2)


def shades(item):
    image = pytest.importorskip("PIL.Image")
    data = base64.b64decode(describe(item)["image"].split(",")[1])
    return np.asarray(image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("array", "brightest"),
    [
        ([[0.0, 0.5], [0.25, 1.001]], 255),
        ([[-0.1, 0.5], [0.25, 1.3]], 255),
        ([[0.0, 0.5], [0.25, 0.5]], 128),
        ([[0, 8], [4, 16]], 255),
        ([[0.0, 100], [4, 200]], 200),
        ([[-2.0, 0], [1, 3]], 255),
        (np.uint8([[0, 1], [1, 0]]), 255),
        (np.uint8([[0, 100], [1, 0]]), 100),
        ([[0.0, 2], [4, np.inf]], 255),
        ([[np.inf, -np.inf], [np.nan, np.inf]], 0),
    ],
)
def test_no_usual_range_of_numbers_is_black(array, brightest):
    assert shades(np.array(array)).max() == brightest


def test_pillow_modes_and_turned_photographs():
    image = pytest.importorskip("PIL.Image")
    red = image.new("RGB", (8, 8), "red")
    for mode in ("HSV", "YCbCr", "CMYK", "RGBX", "RGBA", "P"):
        pixel = shades(red.convert(mode))[4, 4]
        assert pixel[0] > 200
        assert pixel[1] < 60
    assert shades(image.new("LAB", (8, 8), (128, 200, 128)))[4, 4, 0] > 150
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for item in (image.fromarray(ramp), image.fromarray((ramp * 60_000).astype(np.uint16))):
        found = shades(item)
        assert (found.min(), found.max()) == (0, 255)
    turned = image.new("RGB", (40, 20))
    turned.getexif()[0x0112] = 6  # a quarter turn
    out = io.BytesIO()
    turned.save(out, "JPEG", exif=turned.getexif())
    assert shades(image.open(io.BytesIO(out.getvalue()))).shape == (40, 20, 3)


class Streams:
    def __len__(self):
        raise RuntimeError("a stream has no length")

    def __getitem__(self, index):
        raise RuntimeError("a stream has no items")


def test_bytes_of_a_sound_are_no_picture():
    with pytest.raises(ValueError, match="no PNG, JPEG, GIF, WebP or BMP"):
        describe(b"RIFF\0\0\0\0WAVEfmt ")


def test_cells_that_are_left_out_are_counted():
    assert describe(np.arange(100.0))["row"][-1] == ["", "and 60 more"]


def test_a_data_set_that_shows_nothing_costs_no_page_and_is_said(path, tmp_path):
    record(path)
    for dataset, said in (
        (Streams(), "no items"),
        ([object()] * 300, "nothing to show in object; pass thumbnail="),
    ):
        with pytest.warns(RuntimeWarning, match=f"298 samples could not be shown.*{said}"):
            write_report(issues_of(path), path, tmp_path / "r.html", dataset=dataset)


def test_loaders_data_frames_and_larger_data_sets_are_shown(path, tmp_path):
    pd = pytest.importorskip("pandas")
    record(path)

    class Loader:
        def __init__(self):
            self.dataset = [f"text {i}" for i in range(400)]

        def __len__(self):
            return 75

    frame = pd.DataFrame({"a": range(300), "b": "x"}, index=range(1000, 1300))
    for dataset, wanted in (
        (Loader(), lambda i: {"text": f"text {i}"}),
        (frame, lambda i: {"row": [["a", str(i)], ["b", "x"]]}),
    ):
        write_report(issues_of(path), path, tmp_path / "r.html", dataset=dataset)
        data, _ = data_of(tmp_path / "r.html")
        assert data["content"][0] == wanted(data["suspects"]["sample"][0])


def test_the_size_of_pictures_can_be_chosen(path, tmp_path):
    record(path)
    dataset = [np.zeros((400, 300), np.uint8)] * 300
    for size in (50, 400):
        write_report(
            issues_of(path), path, tmp_path / "r.html", dataset=dataset, picture_size=size, n_suspects=2
        )
        data, _ = data_of(tmp_path / "r.html")
        png_header = base64.b64decode(data["content"][0]["image"].split(",")[1])[16:24]
        assert int.from_bytes(png_header[4:], "big") == size
    with pytest.raises(ValueError, match="picture_size must be a whole number of at least 1, got 0"):
        write_report(issues_of(path), path, tmp_path / "r.html", picture_size=0)


def test_png_is_what_pillow_reads():
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for shape in ((5, 7), (5, 7, 3), (5, 7, 4)):
        pixels = rng.integers(0, 256, shape, np.uint8)
        np.testing.assert_array_equal(np.asarray(image.open(io.BytesIO(png(pixels)))), pixels)


def folder_of_pictures(folder, n=300):
    names = []
    for i in range(n):
        name = f"{'ab'[i % 2]}/{i:03}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(np.full((4, 4), i % 256, np.uint8)))
        names.append(name)
    return names


def test_pictures_by_ids_below_a_folder_and_none_outside(path, tmp_path):
    names = folder_of_pictures(tmp_path / "pictures")
    (tmp_path / "secret.png").write_bytes(png(np.zeros((2, 2), np.uint8)))
    (tmp_path / "pictures" / "link.png").symlink_to(tmp_path / "secret.png")
    names[0], names[1], names[2] = "../secret.png", str(tmp_path / "secret.png"), "link.png"
    record(path, sample_ids=names)
    with pytest.warns(RuntimeWarning, match="2 samples could not be shown.*no file below"):
        write_report(issues_of(path), path, tmp_path / "r.html", images=tmp_path / "pictures")
    data, _ = data_of(tmp_path / "r.html")
    shown = dict(zip(data["suspects"]["sample"], data["content"], strict=True))
    assert [shown[i] for i in range(2)] == [None] * 2
    assert shown[2]["image"]  # links in the folder are the user's own
    assert shown[3]["image"]


def test_pictures_of_a_folder_in_the_order_of_datasetfolder(path, tmp_path):
    names = folder_of_pictures(tmp_path / "pictures")
    record(path)
    write_report(issues_of(path), path, tmp_path / "r.html", images=tmp_path / "pictures")
    assert all(data_of(tmp_path / "r.html")[0]["content"])
    (tmp_path / "pictures" / names[0]).unlink()
    with pytest.raises(ValueError, match="299 pictures"):
        write_report(issues_of(path), path, tmp_path / "r.html", images=tmp_path / "pictures")


@pytest.mark.slow
def test_a_million_samples(path, tmp_path):
    resource = pytest.importorskip("resource")
    record(path, n_samples=1_000_000, n_classes=10, n_epochs=10, keep="given", never_seen=0)
    issues = issues_of(path)
    start = time.perf_counter()
    write_report(issues, path, tmp_path / "r.html")
    seconds = time.perf_counter() - start
    assert seconds < 60
    assert (tmp_path / "r.html").stat().st_size < 25e6
    print(f"{seconds:.1f} s, {(tmp_path / 'r.html').stat().st_size / 1e6:.1f} MB")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20  # KiB
