import base64
import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from forec_jax.report import Example, Picture, Report, RunView, line_chart, page
from forec_jax.report.page import MATRIX_CLASSES, different_options, shares

HOSTILE = '<script>alert("x")</script>'


def coloured(*colour, height=20, width=30):
    return np.full((height, width, 3), colour, np.uint8)


def run(name="one", confusion=None, **config):
    facts = {"Method": "forec", "Steps": "600"}
    return RunView(name, facts, {"background": 0.9, "cat": 0.25, "dog": None}, confusion, config)


def report(runs, examples=()):
    chart = line_chart("mIoU, %", {0: ("one", [(0, 10.0), (100, 60.0)])})
    colours = {"background": (0, 0, 0), "cat": (255, 0, 0), "dog": (0, 0, 255)}
    return Report("Runs", "2026", colours, runs, [chart], [chart], examples, ["not comparable"])


def example():
    layers = [
        Picture("image", coloured(9, 99, 199)),
        Picture("truth", coloured(1, 2, 3)),
        Picture("one", coloured(4, 5, 6)),
    ]
    return Example("photo 1", layers, [Picture("channel 3", coloured(7, 8, 9))])


class Read(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input", "line", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "polyline"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def every(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def pixels_of(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))))


def test_a_page_is_whole_in_itself_and_well_formed():
    html = page(report([run(), run("two", crop="9")], [example()]))
    read = Read(html)
    assert read.open == []
    assert "http" not in re.sub("http-equiv", "", html)
    assert all(attributes["src"].startswith("data:image/") for attributes in read.every("img"))
    assert not read.every("link")
    assert [a for a in read.every("script") if a] == []


def test_no_text_becomes_markup():
    names = [run(HOSTILE, np.eye(3, dtype=int), **{HOSTILE: HOSTILE})]
    html = page(report(names, [Example(HOSTILE, example().layers, [Picture(HOSTILE, coloured(0, 0, 0))])]))
    assert HOSTILE not in html
    assert html.count("<script>") == 1
    assert HOSTILE in "".join(Read(html).text)


def test_masks_keep_their_colours():
    first, second, third, latent = Read(page(report([run()], [example()]))).every("img")
    np.testing.assert_array_equal(pixels_of(second["src"]), coloured(1, 2, 3))
    np.testing.assert_array_equal(pixels_of(third["src"]), coloured(4, 5, 6))
    np.testing.assert_array_equal(pixels_of(latent["src"]), coloured(7, 8, 9))
    assert np.abs(pixels_of(first["src"]).astype(int) - coloured(9, 99, 199)).max() < 12  # a photograph, as JPEG
    assert [picture.get("data-name") for picture in (first, second, third)] == ["image", "truth", "one"]


def test_scores_stand_in_percent_and_what_is_not_there_is_a_dash():
    read = Read(page(report([run()])))
    assert {"90.0", "25.0", "-"} <= set(read.text)
    widths = [a["style"] for a in read.every("span") if "width" in a.get("style", "")]
    assert widths == ["width: 90.0%", "width: 25.0%", "width: 0%"]


def test_a_confusion_matrix_has_shares_of_each_true_class():
    assert shares(np.array([[3, 1], [0, 0]])) == [[0.75, 0.25], [None, None]]
    read = Read(page(report([run(confusion=np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))])))
    cells = [float(a["style"].removeprefix("--share: ")) for a in read.every("td") if "style" in a]
    assert cells == [0.75, 0.25, 0, 0, 1, 0, 0, 0, 0]


def test_a_matrix_of_too_many_classes_is_left_out():
    many = np.eye(MATRIX_CLASSES + 1, dtype=int)
    assert "matrix" not in [a.get("class") for a in Read(page(report([run(confusion=many)]))).every("table")]


def test_the_options_in_which_runs_differ():
    runs = [run("one", a="1", b="2"), run("two", a="1", b="3", c="4")]
    assert different_options(runs) == {"b": ["2", "3"], "c": ["-", "4"]}
    assert "The runs have the same options." in Read(page(report([run(), run("two")]))).text


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("Chromium and its driver are not installed: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-sync"):
        options.add_argument(f"--{argument}")
    options.binary_location = shutil.which("chromium")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def test_a_browser_moves_the_slider_and_a_phone_shows_the_whole_page(browser, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page(report([run(), run("two", a="b" * 300)], [example()])), encoding="utf-8")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", dict(width=360, height=700, deviceScaleFactor=1, mobile=True)
    )
    browser.get(file.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    moved = "const s = document.querySelector('input'); s.value = arguments[0]; s.dispatchEvent(new Event('input'));"
    opacities = "return [...document.querySelectorAll('.stack img')].map(i => getComputedStyle(i).opacity)"
    assert browser.execute_script(opacities) == ["1", "0", "0"]
    browser.execute_script(moved, 1.3)
    assert [float(value) for value in browser.execute_script(opacities)] == pytest.approx([1, 1, 0.3])
    assert browser.execute_script("return document.querySelector('.shown').textContent") == "truth"
    assert browser.get_log("browser") == []


def test_a_dark_screen_gets_a_dark_page(browser, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page(report([run()])), encoding="utf-8")
    found = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        browser.get(file.as_uri())
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        found.append(sum(map(int, re.findall(r"\d+", colour))) / 3)
    assert found[0] > 200
    assert found[1] < 60
