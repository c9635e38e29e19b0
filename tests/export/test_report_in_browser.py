"""The page in headless Chromium: every control, nothing that leaves the page, hostile data, accessibility.

Skipped where Chromium, chromedriver or selenium are missing (Debian: `apt-get install chromium chromium-driver`,
`pip install selenium`). The accessibility test wants axe-core: `npm install axe-core`, then
`AXE=node_modules/axe-core/axe.min.js pytest tests/export/test_report_in_browser.py`.
"""

import csv
import gzip
import json
import os
import shlex
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from support.noisy_recording import record

from paddle_td_callback import TrainingDynamicsRecorder, find_label_issues
from paddle_td_callback.csv_cells import from_cell
from paddle_td_callback.export.marks import RIGHT, UNSURE, WRONG, read_marks
from paddle_td_callback.export.report import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None or shutil.which("chromedriver") is None,
        reason="Chromium or chromedriver is not installed",
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of selenium's own connections
]

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = [
    "tshirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]
TEXT = "T" * 10_000
HOSTILE_NAMES = [
    "</script><script>window.hacked = 1</script>",
    '=HYPERLINK("http://x")\'<img src=x onerror=window.hacked=1>',
    "\u202eright to left \u05d0\u05d1",
    "N" * 10_000,
]
HOSTILE_IDS = [
    '"><svg onload=window.hacked=1>',
    "=1+1",
    "@SUM(A1)",
    "tab\tand \x1b[2J and \x7f",
    "comma, \"quote\" and 'apostrophe'",
    "\u2028\u2029\u202e",
    "I" * 10_000,
    "javascript:window.hacked=1",
    "{{data}}",
    "-->",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    folder = tmp_path_factory.mktemp("browser")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.downloads = folder
    yield driver
    driver.quit()


class Digits:
    """300 pictures."""

    def __len__(self):
        return 300

    def __getitem__(self, index):
        return np.random.default_rng(index).integers(0, 256, (8, 8), np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    record(folder / "run.h5", class_names=["cat", "dog", "owl", "fox"])
    issues = find_label_issues(folder / "run.h5", method="aum", progress=False)
    write_report(issues, folder / "run.h5", folder / "report.html", dataset=Digits())
    return folder / "report.html", issues


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    ids = [*HOSTILE_IDS, *(f"id {i}" for i in range(300 - len(HOSTILE_IDS)))]
    record(folder / "run.h5", class_names=HOSTILE_NAMES, sample_ids=ids)
    issues = find_label_issues(folder / "run.h5", method="aum", progress=False)
    texts = [f"{one}<b onclick=window.hacked=1>{TEXT}" for one in ids]
    write_report(issues, folder / "run.h5", folder / "report.html", dataset=texts, title=HOSTILE_NAMES[0])
    return folder / "report.html", issues, ids


def open_page(browser, path, *, width=1280):
    browser.get_log("browser")
    browser.get_log("performance")
    browser.set_window_size(width, 900)
    browser.get(Path(path).as_uri())
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    return WebDriverWait(browser, 10).until(lambda b: b.find_elements(By.CSS_SELECTOR, ".suspect"))


def refresh_until_marked(browser, said):
    """Marks outlive the page. Chromium may load it anew before the old one's last write has arrived."""

    def reloaded_with_marks(browser):
        browser.refresh()
        return text_of(browser, "#marks-said").startswith(said)

    WebDriverWait(browser, 10).until(reloaded_with_marks)


def rows(browser):
    return browser.find_elements(By.CSS_SELECTOR, "#list .suspect")


def text_of(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector).text


def n_found(browser):
    """How many suspects fit the filters, as the page says."""
    said = text_of(browser, "#page-said")
    return 0 if said.startswith("No listed") else int(said.split(" of ")[1].split()[0].replace(",", ""))


def press(browser, key):
    browser.switch_to.active_element.send_keys(key)


def assert_quiet(browser):
    """No console message, and no request for anything but the file itself and what is in it."""
    assert [line["message"] for line in browser.get_log("browser")] == []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            assert message["params"]["request"]["url"].startswith(
                (
                    "file:",
                    "data:",
                    "blob:",
                    "chrome:",
                    "chrome-untrusted:",
                )  # the last two: Chromium's own first page
            )


def test_the_map_and_the_curves_are_drawn(browser, made):
    path, issues = made
    open_page(browser, path)
    drawn = browser.execute_script(
        "const m = document.getElementById('map'), d = m.getContext('2d').getImageData(0, 0, m.width, m.height).data;"
        "let blue = 0, orange = 0; for (let i = 0; i < d.length; i += 4) { if (d[i + 3] > 100) {"
        "if (d[i + 2] > d[i] + 60) blue++; if (d[i] > d[i + 2] + 60) orange++; } } return [blue, orange];"
    )
    assert drawn[0] > 200
    assert drawn[1] > 100
    assert len(browser.find_elements(By.CSS_SELECTOR, "#curves path.line")) == 4
    assert f"{int(issues.is_label_issue.sum())}" in text_of(browser, "#facts")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".suspect .pic img")) == 25
    assert browser.execute_script(
        "return [...document.images].every(i => i.complete && i.naturalWidth === 8)"
    )
    assert_quiet(browser)


def fashion_mnist(n_samples):
    """Pictures `[sample, 28, 28]` and labels of Debian's package dataset-fashion-mnist."""
    arrays = []
    for name, head in (("train-images-idx3-ubyte.gz", 16), ("train-labels-idx1-ubyte.gz", 8)):
        if not (FASHION_MNIST / name).exists():
            pytest.skip("Fashion-MNIST is not installed (Debian: apt-get install dataset-fashion-mnist)")
        arrays.append(
            np.frombuffer(gzip.decompress((FASHION_MNIST / name).read_bytes()), np.uint8, offset=head)
        )
    return arrays[0].reshape(-1, 28, 28)[:n_samples], arrays[1][:n_samples].astype(np.int64)


def test_twenty_thousand_pictures(browser, tmp_path):
    """Fashion-MNIST with a tenth of the labels moved, softmax regression in NumPy."""
    pictures, true_labels = fashion_mnist(20_000)
    rng = np.random.default_rng(0)
    is_moved = rng.random(len(pictures)) < 0.1
    labels = np.where(is_moved, (true_labels + rng.integers(1, 10, len(pictures))) % 10, true_labels)
    inputs = pictures[:, ::2, ::2].reshape(len(pictures), -1).astype(np.float32) / 255
    weights = np.zeros((inputs.shape[1], 10), np.float32)
    with TrainingDynamicsRecorder(
        tmp_path / "run.h5", n_samples=len(labels), n_classes=10, class_names=FASHION_CLASSES
    ) as recorder:
        for _ in range(5):
            for batch in np.array_split(rng.permutation(len(labels)), 200):
                logits = inputs[batch] @ weights
                recorder.update(batch, logits, labels[batch])
                shares = np.exp(logits - logits.max(1, keepdims=True))
                shares /= shares.sum(1, keepdims=True)
                shares[np.arange(len(batch)), labels[batch]] -= 1
                weights -= 0.1 / len(batch) * inputs[batch].T @ shares
            recorder.end_epoch()
    issues = find_label_issues(tmp_path / "run.h5", method="aum", progress=False)
    assert is_moved[issues.ranking[:500]].mean() > 0.7
    write_report(issues, tmp_path / "run.h5", tmp_path / "report.html", dataset=pictures)
    open_page(browser, tmp_path / "report.html")

    drawn = browser.execute_script(
        "const c = document.getElementById('map'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height)"
        ".data; let n = 0; for (let i = 0; i < d.length; i += 4) n += d[i + 3] > 0 && Math.abs(d[i] - d[i + 2]) > 60;"
        "return n"
    )
    assert drawn > 2000
    assert rows(browser)[0].find_element(By.TAG_NAME, "img").get_attribute("naturalWidth") == "28"
    everything = n_found(browser)
    given = Select(browser.find_element(By.ID, "f-given"))
    given.select_by_visible_text(next(one.text for one in given.options if "sandal" in one.text))
    assert 0 < n_found(browser) < everything
    browser.find_element(By.ID, "f-reset").click()
    browser.execute_script("document.querySelector('.suspect').focus()")
    for mark in ("w", "r", "u"):
        press(browser, mark)
    found = exported(browser, issues)
    assert sorted(found.verdicts.tolist()) == [UNSURE, RIGHT, WRONG]
    assert found.samples.tolist() == issues.ranking[:3].tolist()
    assert_quiet(browser)


def test_filters_filter(browser, made):
    path, issues = made
    open_page(browser, path)
    assert n_found(browser) == 298
    Select(browser.find_element(By.ID, "f-given")).select_by_value("1")
    given = issues.given_label[issues.ranking]
    assert n_found(browser) == (given == 1).sum()
    Select(browser.find_element(By.ID, "f-suggested")).select_by_value("2")
    assert n_found(browser) == ((given == 1) & (issues.suggested_label[issues.ranking] == 2)).sum()
    assert all("dog" in row.text and "owl" in row.text for row in rows(browser))
    browser.find_element(By.ID, "f-reset").click()
    assert n_found(browser) == 298
    browser.find_element(By.ID, "f-id").send_keys("29")
    assert n_found(browser) == sum("29" in str(sample) for sample in issues.ranking)
    browser.find_element(By.ID, "f-id").send_keys("x")
    assert n_found(browser) == 0
    assert_quiet(browser)


def test_pages_turn(browser, made):
    path, issues = made
    open_page(browser, path)
    for button, first in (("next", 25), ("next2", 50), ("prev2", 25), ("prev", 0)):
        browser.find_element(By.ID, button).click()
        assert rows(browser)[0].text.startswith(f"{first + 1}. sample {issues.ranking[first]}")
    assert not browser.find_element(By.ID, "prev").is_enabled()
    assert_quiet(browser)


def test_keys_mark_and_marks_are_exported(browser, made):
    path, issues = made
    open_page(browser, path)
    assert not browser.find_element(By.ID, "export").is_enabled()
    browser.execute_script("document.querySelector('.suspect').focus()")
    for key in ("w", "w", "r", "u", "w", "k", "x", "j", Keys.ARROW_DOWN, Keys.ARROW_UP, "R"):
        press(browser, key)
    said = text_of(browser, "#marks-said")
    assert said.startswith(
        "2 wrong, 2 right, 1 unsure. Of the judged labels 50% are wrong (95% interval 15% to 85%)"
    )
    rows(browser)[10].find_element(By.CSS_SELECTOR, "button.wrong").click()
    assert rows(browser)[10].get_attribute("data-mark") == "wrong"
    assert (
        rows(browser)[10].find_element(By.CSS_SELECTOR, "button.wrong").get_attribute("aria-pressed")
        == "true"
    )
    Select(browser.find_element(By.ID, "f-mark")).select_by_value("wrong")
    assert n_found(browser) == 3
    refresh_until_marked(browser, "3 wrong, 2 right, 1 unsure")
    found = exported(browser, issues)
    marks = dict(zip(found.samples.tolist(), found.verdicts.tolist(), strict=True))
    wanted = {0: WRONG, 1: WRONG, 2: RIGHT, 3: UNSURE, 5: RIGHT, 10: WRONG}
    assert marks == {int(issues.ranking[place]): verdict for place, verdict in wanted.items()}
    browser.find_element(By.ID, "clear").click()
    assert browser.find_element(By.ID, "clear").text == "Really clear all marks?"
    browser.find_element(By.ID, "clear").click()
    assert text_of(browser, "#marks-said") == "Nothing marked yet."
    assert_quiet(browser)


def test_marks_do_not_move_the_pages_of_what_is_not_marked(browser, made):
    path, issues = made
    open_page(browser, path)
    Select(browser.find_element(By.ID, "f-mark")).select_by_value("none")
    browser.execute_script("document.querySelector('.suspect').focus()")
    for _ in range(25):
        press(browser, "w")
    assert rows(browser)[0].text.startswith(f"26. sample {issues.ranking[25]}")
    browser.find_element(By.ID, "prev").click()
    assert (
        rows(browser)[0].get_attribute("data-mark") == "wrong"
    )  # to be seen once more, until the filter is set
    Select(browser.find_element(By.ID, "f-mark")).select_by_value("wrong")
    Select(browser.find_element(By.ID, "f-mark")).select_by_value("none")
    assert n_found(browser) == 298 - 25
    assert_quiet(browser)


def test_marks_outside_of_a_shorter_list_are_exported_too(browser, made, tmp_path):
    path, issues = made
    open_page(browser, path)
    for place in (0, 20):
        rows(browser)[place].find_element(By.CSS_SELECTOR, "button.wrong").click()
    short = path.with_name("short.html")
    write_report(issues, path.with_name("run.h5"), short, n_suspects=10)
    browser.get(short.as_uri())
    assert text_of(browser, "#marks-said").startswith("2 wrong")
    assert sorted(exported(browser, issues).samples.tolist()) == sorted(issues.ranking[[0, 20]].tolist())


def test_a_picture_gets_larger_and_smaller(browser, made):
    path, _ = made
    open_page(browser, path)
    picture = rows(browser)[0].find_element(By.CSS_SELECTOR, ".pic")
    width = picture.size["width"]
    picture.click()
    assert picture.size["width"] > 3 * width
    assert picture.get_attribute("aria-pressed") == "true"
    browser.execute_script("document.querySelector('.suspect').focus()")
    press(browser, "z")
    assert picture.size["width"] == width
    assert_quiet(browser)


def test_marks_are_not_those_of_other_samples_of_the_same_name(browser, tmp_path):
    for name, start in (("one", 0), ("two", 1)):
        (tmp_path / name).mkdir()
        run = tmp_path / name / "run.h5"
        record(run, sample_ids=[f"{start + i}.png" for i in range(300)])
        issues = find_label_issues(run, method="aum", progress=False)
        write_report(issues, run, tmp_path / name / "report.html")
    open_page(browser, tmp_path / "one" / "report.html")
    rows(browser)[0].find_element(By.CSS_SELECTOR, "button.wrong").click()
    browser.get((tmp_path / "two" / "report.html").as_uri())
    assert text_of(browser, "#marks-said") == "Nothing marked yet."
    browser.get((tmp_path / "one" / "report.html").as_uri())
    assert text_of(browser, "#marks-said").startswith("1 wrong")


def test_keys_count_with_caps_lock_too(browser, made):
    path, _ = made
    open_page(browser, path)
    browser.execute_script("document.querySelector('.suspect').focus()")
    for key in ("W", "K", "X", "J", "R"):
        press(browser, key)
    assert text_of(browser, "#marks-said").startswith("0 wrong, 1 right, 0 unsure")


def test_the_review_command_ranks_as_the_page_does(browser, made, tmp_path):
    path, issues = made
    run = tmp_path / "it's my run.h5"
    shutil.copy(path.with_name("run.h5"), run)
    write_report(issues, run, tmp_path / "report.html")
    browser.get((tmp_path / "report.html").as_uri())
    command = shlex.split(text_of(browser, "#review"))
    assert command == ["paddle-td", "review", "marks.csv", "it's my run.h5", "--method", "aum"]
    write_report(issues, [run, run], tmp_path / "report.html")
    browser.refresh()
    assert shlex.split(text_of(browser, "#review"))[3:5] == ["it's my run.h5"] * 2


def test_buttons_mark_and_unmark(browser, made):
    path, _ = made
    open_page(browser, path)
    for place, mark in enumerate(("wrong", "right", "unsure")):
        rows(browser)[place].find_element(By.CSS_SELECTOR, f"button.{mark}").click()
        assert rows(browser)[place].get_attribute("data-mark") == mark
    assert text_of(browser, "#marks-said").startswith("1 wrong, 1 right, 1 unsure")
    for mark, found in (("wrong", 1), ("right", 1), ("unsure", 1), ("none", 295), ("", 298)):
        Select(browser.find_element(By.ID, "f-mark")).select_by_value(mark)
        assert n_found(browser) == found
    rows(browser)[0].find_element(By.CSS_SELECTOR, "button.wrong").click()  # once more takes it back
    assert rows(browser)[0].get_attribute("data-mark") is None
    rows(browser)[2].find_element(By.CSS_SELECTOR, ".who").click()
    assert browser.switch_to.active_element.text.startswith("3. sample")
    press(browser, Keys.BACKSPACE)
    assert text_of(browser, "#marks-said").startswith("0 wrong, 1 right, 0 unsure")
    press(browser, Keys.CONTROL + "w")  # a shortcut of the browser is no mark
    assert text_of(browser, "#marks-said").startswith("0 wrong, 1 right, 0 unsure")
    clear = browser.find_element(By.ID, "clear")
    clear.click()
    browser.find_element(By.ID, "f-id").click()  # who goes elsewhere did not mean it
    assert clear.text == "Clear marks"
    assert text_of(browser, "#marks-said").startswith("0 wrong, 1 right")
    assert_quiet(browser)


def test_two_quick_marks_are_there_after_a_reload(browser, made):
    path, _ = made
    open_page(browser, path)
    browser.execute_script(
        "const r = document.querySelector('.suspect'); r.focus();"
        "for (const key of ['w', 'r'])"
        " document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));"
    )
    refresh_until_marked(browser, "1 wrong, 1 right, 0 unsure")


def test_two_tabs_keep_the_marks_of_both(browser, made):
    path, _ = made
    open_page(browser, path)
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    try:
        browser.get(Path(path).as_uri())
        rows(browser)[0].find_element(By.CSS_SELECTOR, "button.wrong").click()
        browser.switch_to.window(first)
        WebDriverWait(browser, 10).until(lambda b: text_of(b, "#marks-said").startswith("1 wrong"))
        assert rows(browser)[0].get_attribute("data-mark") == "wrong"
        rows(browser)[1].find_element(By.CSS_SELECTOR, "button.right").click()
        refresh_until_marked(browser, "1 wrong, 1 right, 0 unsure")
    finally:
        for tab in browser.window_handles:
            if tab != first:
                browser.switch_to.window(tab)
                browser.close()
        browser.switch_to.window(first)


def test_marks_of_a_browser_that_stores_nothing_stay_in_the_page(browser, made):
    path, issues = made
    open_page(browser, path)
    browser.execute_script("Storage.prototype.setItem = () => { throw new Error('full'); }")
    browser.execute_script("document.querySelector('.suspect').focus()")
    for key in "wru":
        press(browser, key)
    assert text_of(browser, "#marks-said").startswith("1 wrong, 1 right, 1 unsure")
    assert len(exported(browser, issues).samples) == 3


def test_the_skip_link_and_the_theme(browser, made):
    path, _ = made
    open_page(browser, path)
    browser.execute_script("document.querySelector('.skip').focus()")
    press(browser, Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "suspects"
    colour = "const m = document.getElementById('map'); return [m.toDataURL(), getComputedStyle(document.body).color];"
    looks = []
    for scheme in ("light", "dark", "light"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        looks.append(browser.execute_script(colour))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert looks[0][0] != looks[1][0]
    assert looks[0][1] != looks[1][1]
    assert looks[0] == looks[2]
    assert_quiet(browser)


def test_a_long_text_opens_by_the_keyboard(browser, hostile):
    path, *_ = hostile
    open_page(browser, path)
    summary = browser.find_element(By.CSS_SELECTOR, ".suspect details summary")
    browser.execute_script("arguments[0].focus()", summary)
    press(browser, Keys.ENTER)
    assert browser.find_element(By.CSS_SELECTOR, ".suspect details").get_attribute("open") is not None
    assert browser.find_element(By.CSS_SELECTOR, ".suspect details div").is_displayed()
    press(browser, Keys.ENTER)
    assert browser.find_element(By.CSS_SELECTOR, ".suspect details").get_attribute("open") is None
    assert_quiet(browser)


def exported(browser, issues):
    target = browser.downloads / "marks.csv"
    target.unlink(missing_ok=True)
    browser.find_element(By.ID, "export").click()
    WebDriverWait(browser, 10).until(lambda _: target.exists())
    time.sleep(0.2)
    return read_marks(target, issues)


def test_marking_goes_on_over_pages(browser, made):
    path, _ = made
    open_page(browser, path)
    browser.execute_script("document.querySelector('.suspect').focus()")
    for _ in range(26):
        press(browser, "w")
    assert text_of(browser, "#marks-said").startswith("26 wrong")
    assert text_of(browser, "#page-said").startswith("26 to 50")
    press(browser, "k")
    press(browser, "k")
    assert text_of(browser, "#page-said").startswith("1 to 25")
    assert browser.switch_to.active_element.text.startswith("25. ")


def test_hover_click_and_drag_on_the_map(browser, made):
    path, issues = made
    open_page(browser, path)
    canvas = browser.find_element(By.ID, "map")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    at = browser.execute_script(
        "const d = JSON.parse(document.getElementById('data').textContent).suspects;"
        "const m = document.getElementById('map');"
        "return d.sample.map((_, i) => [56 + d.variability[i] / 0.5 * (m.clientWidth - 66) - m.clientWidth / 2,"
        " 10 + (1 - d.confidence[i]) * (m.clientHeight - 48) - m.clientHeight / 2]);"
    )
    distance = np.linalg.norm(np.array(at)[:, np.newaxis] - np.array(at)[np.newaxis], axis=2)
    lonely = int((distance + 1e9 * np.eye(len(at))).min(axis=1).argmax())
    place, (x, y) = int(issues.ranking[lonely]), at[lonely]
    ActionChains(browser).move_to_element_with_offset(canvas, round(x), round(y)).perform()
    tip = browser.find_element(By.ID, "tip")
    assert tip.is_displayed()
    assert str(place) in tip.text
    assert tip.find_elements(By.TAG_NAME, "img")
    ActionChains(browser).move_to_element(browser.find_element(By.ID, "h-map")).perform()
    assert not tip.is_displayed()
    ActionChains(browser).move_to_element_with_offset(canvas, round(x), round(y)).click().perform()
    assert browser.switch_to.active_element.text.startswith(f"{lonely + 1}. sample {place}")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(browser).move_to_element_with_offset(canvas, -250, 80).click_and_hold().move_by_offset(
        300, 100
    ).release().perform()
    inside = n_found(browser)
    assert 0 < inside < 298
    assert text_of(browser, "#map-readout").startswith("Selected: ")
    assert float(browser.find_element(By.ID, "c1").get_attribute("value")) < 1
    browser.find_element(By.ID, "unselect").click()
    assert n_found(browser) == 298
    assert_quiet(browser)


def test_fields_select_as_dragging_does(browser, made):
    path, _ = made
    open_page(browser, path)
    browser.find_element(By.ID, "c1").send_keys(Keys.CONTROL, "a", Keys.NULL, "0.3", Keys.TAB)
    data = browser.execute_script(
        "return JSON.parse(document.getElementById('data').textContent).suspects.confidence"
    )
    assert n_found(browser) == sum(value <= 0.3 for value in data)
    for name, value in (("c0", "0.1"), ("v0", "0.05"), ("v1", "0.2")):
        browser.find_element(By.ID, name).send_keys(Keys.CONTROL, "a", Keys.NULL, value, Keys.TAB)
    assert n_found(browser) < sum(value <= 0.3 for value in data)


def test_the_map_by_keyboard(browser, made):
    path, _ = made
    open_page(browser, path)
    browser.execute_script("document.getElementById('map').focus()")
    said = set()
    for _ in range(40):
        press(browser, Keys.ARROW_RIGHT)
        said.add(text_of(browser, "#map-readout"))
        if "given" in text_of(browser, "#map-readout"):
            break
    assert any("noise score" in one for one in said)
    before = text_of(browser, "#map-readout")
    press(browser, Keys.SHIFT + Keys.ARROW_UP)  # four times as far
    assert text_of(browser, "#map-readout") != before
    press(browser, Keys.SHIFT + Keys.ARROW_DOWN)
    assert text_of(browser, "#map-readout") == before
    press(browser, Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("class").startswith("suspect")
    browser.execute_script("document.getElementById('map').focus()")
    press(browser, Keys.ESCAPE)
    assert n_found(browser) == 298


def test_numbers_of_matrix_and_pairs_show_their_samples(browser, made):
    path, issues = made
    open_page(browser, path)
    for table in ("matrix", "pairs"):
        button = browser.find_element(By.CSS_SELECTOR, f"#{table} button")
        n, label = int(button.text), button.get_attribute("aria-label")
        browser.execute_script("arguments[0].click()", button)
        names = label.split(" given ")[1].split(": show")[0].split(", suggested ")
        given, suggested = (issues.class_names.index(name) for name in names)
        both = (issues.given_label == given) & (issues.suggested_label == suggested)
        assert (both & issues.is_label_issue).sum() == n
        assert n_found(browser) == (both & ~np.isnan(issues.noise_score)).sum()
    assert len(browser.find_elements(By.CSS_SELECTOR, "#classes tbody tr")) == 4
    assert len(browser.find_elements(By.CSS_SELECTOR, "#methods tbody tr")) == 7
    assert_quiet(browser)


def test_everything_is_reached_by_the_tab_key(browser, made):
    path, _ = made
    open_page(browser, path)
    reached = set()
    for _ in range(60 + 25 * 3):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        active = browser.switch_to.active_element
        reached.add(active.get_attribute("id") or active.get_attribute("class") or active.tag_name)
    wanted = {
        "map",
        "c0",
        "c1",
        "v0",
        "v1",
        "unselect",
        "f-given",
        "f-suggested",
        "f-mark",
        "f-id",
        "f-reset",
        "next",
    }
    assert (
        wanted | {"matrix", "classes", "pairs", "methods", "wrong", "right", "unsure", "suspect", "skip"}
        <= reached
    )


@pytest.mark.parametrize("width", [1280, 420])
def test_hostile_data_runs_nothing_and_is_whole(browser, hostile, width):
    path, *_ = hostile
    open_page(browser, path, width=width)
    assert browser.execute_script("return window.hacked") is None
    assert (
        browser.execute_script(
            "return document.querySelectorAll('#list b[onclick], svg[onload], img').length"
        )
        == 0
    )
    for one in HOSTILE_IDS:
        box = browser.find_element(By.ID, "f-id")
        browser.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))", box, one
        )
        shown = browser.execute_script("return document.querySelector('.suspect .id').textContent")
        assert shown == one.replace("\t", "\u2409").replace("\x1b", "\u241b").replace("\x7f", "\u2421")
    names = browser.execute_script("return JSON.parse(document.getElementById('data').textContent).names")
    assert names == {str(label): name for label, name in enumerate(HOSTILE_NAMES)}
    details = browser.find_element(By.CSS_SELECTOR, ".suspect details summary")
    browser.execute_script("arguments[0].click()", details)
    text = browser.execute_script("return document.querySelector('.suspect details div').textContent")
    assert len(text) > 10_000
    assert browser.execute_script("return document.documentElement.scrollWidth") <= browser.execute_script(
        "return window.innerWidth"
    )
    assert_quiet(browser)


def test_hostile_ids_leave_by_the_csv_whole_and_as_no_formula(browser, hostile):
    path, issues, ids = hostile
    open_page(browser, path)
    samples = browser.execute_script(
        "return JSON.parse(document.getElementById('data').textContent).suspects.sample"
    )
    marks = {str(samples[samples.index(place)]): "wrong" for place in range(len(HOSTILE_IDS))}
    browser.execute_script(
        "for (let i = 0; i < localStorage.length; i++) localStorage.removeItem(localStorage.key(i));"
        "const s = JSON.parse(document.getElementById('data').textContent).summary;"
        "localStorage.setItem(`paddle-td marks ${s.file} ${s.checksum} ${s.samples} ${s.ids_checksum}`, arguments[0])",
        json.dumps(marks),
    )
    refresh_until_marked(browser, f"{len(marks)} wrong")
    found = exported(browser, issues)
    assert sorted(found.samples.tolist()) == list(range(len(HOSTILE_IDS)))
    with open(browser.downloads / "marks.csv", newline="", encoding="utf-8-sig") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        assert from_cell(line["sample_id"]) == ids[int(line["sample"])]
        assert from_cell(line["given_name"]) == HOSTILE_NAMES[int(line["given_label"])]
        assert not line["sample_id"].startswith(("=", "+", "-", "@", "\t"))
    assert_quiet(browser)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["made", "hostile"])
def test_accessibility_by_axe(browser, request, scheme, which):
    axe = os.environ.get("AXE")
    if axe is None:
        pytest.skip("AXE names no axe.min.js of axe-core")
    open_page(browser, request.getfixturevalue(which)[0])
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.execute_script("document.querySelector('.suspect').focus()")
    for key in "wru":
        press(browser, key)
    browser.execute_script(Path(axe).read_text(encoding="utf-8"))
    found = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    bad = [
        (one["id"], one["impact"], [node["html"][:120] for node in one["nodes"][:3]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert bad == []
    assert found["passes"]
