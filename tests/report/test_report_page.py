"""Tests of the HTML page: self-contained, complete, and safe for names with markup."""

import base64
import dataclasses
import html.parser
import io
import json
import re

import numpy as np
import pytest
from test_report import COMPARISONS, SUMMARIES
from test_report_figures import CURVES

from sdecor import report
from sdecor.evaluation import Results
from sdecor.report.gallery import (
    DIVERGING_MAPS,
    SEQUENTIAL_MAPS,
    brightest,
    color_table,
    gallery_data,
    relative,
    script_json,
    shrink,
)
from sdecor.report.run import Evaluated, run_report

RNG = np.random.default_rng(1)
CLASSES = ["cat", "</script><b>dog", "fox & hen"]
NASTY = "</script><img src=x onerror=alert(1)>"


def picture(size=(12, 10), n=4, **changes):
    maps = {"gradient": RNG.gamma(0.3, size=(n, *size)), "grad_cam": RNG.random((n, *size))}
    return {
        "image": np.random.default_rng(0).integers(0, 256, (n, *size, 3), dtype=np.uint8),
        "label": np.arange(n) % 3,
        "prediction": RNG.integers(0, 3, n),
        "confidence": RNG.random(n).astype(np.float32),
        "object": np.random.default_rng(0).random((n, *size)) < 0.4,
        "maps": maps,
        "signed": {"gradient": maps["gradient"] * np.sign(RNG.normal(size=(n, *size)))},
    } | changes


class Page(html.parser.HTMLParser):
    """A parser that collects text, links and scripts, and checks the nesting of tags."""

    VOID = {"meta", "img", "source", "br", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.links, self.tags, self.scripts = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag == "script":
            self.scripts.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.words.append(data)


def write_page(path, **changes):
    figure = report.figure_training({"ce": [{"step": 1, "split": "train", "loss": 2.0}]})
    report.html_report(
        path,
        **{
            "title": "Runs & maps",
            "lead": "A <test>",
            "summaries": SUMMARIES,
            "comparisons": COMPARISONS,
            "configs": {"ce": {"optim": {"lr": 0.1}, "seed": 0}, "sdecor <b>": {"optim": {"lr": 0.2}, "seed": 0}},
            "facts": {"baseline": NASTY, "step": {"ce": 70, "sdecor <b>": 80}},
            "curves": dict(zip(SUMMARIES, CURVES.values(), strict=True)),
            "pictures": {name: picture() for name in SUMMARIES},
            "class_names": CLASSES,
            "figures": [("Training", "What the lines mean.", {"light": figure, "dark": figure})],
        }
        | changes,
    )
    return path.read_text()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the file of a comparison's page."""
    path = tmp_path_factory.mktemp("page") / "comparison.html"
    write_page(path)
    return path


def test_page_is_well_formed_self_contained_and_holds_the_numbers(written):
    text = written.read_text()
    page = Page(text)
    assert not page.open
    assert all(link.startswith(("data:image/png;base64,", "#method-")) for link in page.links)
    without_names = text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")  # names, not addresses
    assert not re.search(r"https?:|@import|url\(|http-", without_names)
    assert "default-src 'none'" in text
    assert "b" not in page.tags and page.tags.count("img") == text.count("<img ") - text.count("<img src=x")
    words = " ".join(page.words)
    for piece in ("Runs & maps", "A <test>", "87.1 %", "84.2 to 86.4", "−1.8 pp worse", "+0.100 better", "optim.lr"):
        assert piece in words
    for piece in ("0.310 / 0.420", "1 / 0 left out", "500 left out", NASTY, "What the lines mean.", "Gradient", "LRP"):
        assert piece in words
    assert "Differences between the configs" in words
    assert "seed" not in words
    assert sorted(file.name for file in written.parent.iterdir()) == ["comparison.html"]


def test_facts_of_runs_stand_on_their_cards(written):
    text = written.read_text()
    cards = re.findall(r'<article class="card".*?</article>', text)
    assert len(cards) == 2 and "87.1 %" in cards[0] and "<dd>70</dd>" in cards[0] and "<dd>80</dd>" in cards[1]
    assert ">step</th>" not in text and ">baseline</th>" in text


def test_gallery_data_in_the_page_are_those_of_the_pictures(written):
    page = Page(written.read_text())
    data = json.loads(next(script for script in page.scripts if script.startswith("{")))
    assert data["classes"] == {"0": "cat", "1": "</script><b>dog", "2": "fox & hen"}
    assert [run["name"] for run in data["runs"]] == list(SUMMARIES)
    assert len(data["images"]) == 4
    assert "startGallery" in page.scripts[-1]


def test_one_run_has_no_comparison_and_its_methods_side_by_side(tmp_path):
    text = write_page(
        tmp_path / "report.html",
        summaries={"ce": SUMMARIES["ce"]},
        comparisons=None,
        configs=None,
        curves={"ce": CURVES["ce"] | CURVES["sdecor"]},
        pictures=None,
    )
    words = " ".join(Page(text).words)
    assert "paired" not in words and "87.1 %" in words and "Bold" in words
    assert "Differences between the configs" not in words
    assert "gallery-data" not in text.partition("<script")[0] and 'class="methods"' not in text


def test_a_failed_page_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(KeyError):
        report.html_report(path, title="x", summaries={"ce": {"accuracy": {}}})
    assert path.read_text() == "old"


def decoded(packed, shape, *, signed=False):
    text, peak, _ = packed
    levels = np.frombuffer(base64.b64decode(text), np.uint8).astype(np.float64).reshape(shape)
    return peak * (levels - 128) / 127 if signed else peak * levels / 255


@pytest.mark.parametrize("size", [(12, 10), (230, 180)])
def test_maps_survive_the_way_into_the_page(size):
    run = picture(size, n=1)
    data = gallery_data({"ce": run}, CLASSES)
    (image,) = data["images"]
    shape = tuple(data["mapSize"])
    assert shape == size if max(size) <= 112 else shape == (112, 88)
    drawn = {method: shrink(relative(maps[0]), 112) for method, maps in run["maps"].items()}
    scale = max(brightest(values) for values in drawn.values())
    for method, values in drawn.items():
        packed = image["maps"][0][method]
        cut = np.minimum(values, scale)
        np.testing.assert_allclose(decoded(packed, shape), cut, atol=1.01 * cut.max() / 510)
        assert packed[2] == pytest.approx(brightest(values), rel=1e-4)
    values = shrink(relative(run["signed"]["gradient"][0], signed=True), 112)
    scale = brightest(values)
    packed = image["signed"][0]["gradient"]
    np.testing.assert_allclose(decoded(packed, shape, signed=True), np.clip(values, -scale, scale), atol=scale / 250)
    assert list(image["signed"][0]) == ["gradient"]
    bits = np.unpackbits(np.frombuffer(base64.b64decode(image["object"]), np.uint8))[: size[0] * size[1]]
    np.testing.assert_array_equal(bits.reshape(size), run["object"][0])


def test_pictures_survive_the_way_into_the_page():
    from PIL import Image

    for channels in (1, 3):
        run = picture(image=RNG.integers(0, 256, (4, 12, 10, channels), dtype=np.uint8))
        source = gallery_data({"ce": run}, CLASSES)["images"][2]["picture"]
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
        np.testing.assert_array_equal(image.reshape(12, 10, channels), run["image"][2])


def test_undefined_maps_are_sent_as_nothing():
    maps = RNG.random((4, 12, 10))
    maps[0], maps[1, 0, 0] = 0, np.nan
    images = gallery_data({"ce": picture(maps={"gradient": maps}, signed={})}, CLASSES)["images"]
    assert [image["maps"][0]["gradient"] is None for image in images] == [True, True, False, False]


def test_runs_must_show_the_same_images():
    with pytest.raises(ValueError, match="pictures of 'b' show other images"):
        gallery_data({"a": picture(), "b": picture(label=np.zeros(4, int))}, CLASSES)


def test_a_confidence_that_is_no_number_is_sent_as_nothing(tmp_path):
    run = picture(confidence=np.array([0.25, np.nan, np.inf, 1.0]))
    images = gallery_data({"ce": run}, CLASSES)["images"]
    assert [image["runs"][0]["confidence"] for image in images] == [0.25, None, None, 1.0]
    assert "NaN" not in script_json(images)


def test_json_cannot_end_its_script():
    value = {"name": "</script><!--<script>&\u2028"}
    text = script_json(value)
    assert not re.search("[<>&\u2028]", text) and json.loads(text) == value
    with pytest.raises(ValueError):
        script_json(float("nan"))


def lightness(name):
    """Return the CIELAB lightness of a color table, in [0, 100]."""
    rgb = np.array([int(color_table(name)[i : i + 2], 16) for i in range(0, 1536, 2)]).reshape(256, 3) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


@pytest.mark.parametrize("name", SEQUENTIAL_MAPS)
def test_sequential_maps_grow_lighter_evenly(name):
    steps = np.diff(lightness(name)[::5])
    assert steps.min() > 0 and steps.max() < 2.2 * steps.mean()


@pytest.mark.parametrize("name", DIVERGING_MAPS)
def test_diverging_maps_have_their_extreme_in_the_middle_and_even_arms(name):
    values = lightness(name)
    assert abs(values[0] - values[-1]) < 8
    sign = np.sign(values[0] - values[128])
    left, right = sign * np.diff(values[:120:7]), sign * np.diff(values[136::7])
    assert left.max() < 0.5 and right.min() > -0.5


def evaluated(name, summary, *, seed=0, class_names=tuple(CLASSES)):
    return Evaluated(
        name=name,
        config={"seed": seed},
        dataset={"name": "scenes", "class_names": class_names},
        log=[{"step": k, "split": "train", "loss": 1.0} for k in range(3)],
        settings={"split": "test", "target": "predicted", "step": 4},
        results=Results({}, {}),
        summary=summary,
        curves={"gradient/deletion_curve": [0.9, 0.5, 0.1]},
        pictures=picture(),
    )


@pytest.mark.parametrize("runs", [["ce"], ["ce", "sdecor <b>"]])
def test_report_writes_the_page_and_its_figures(runs, tmp_path):
    records = [evaluated(run, SUMMARIES[run], seed=k) for k, run in enumerate(runs)]
    run_report(tmp_path, records, COMPARISONS if len(runs) > 1 else {})
    more = ["comparison.html", "differences.png"] if len(runs) > 1 else ["methods.png", "report.html"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        ["curves.png", "saliency.png", "training.png", *more]
    )
    words = " ".join(Page(next(tmp_path.glob("*.html")).read_text()).words)
    assert ("sdecor <b> against ce" if len(runs) > 1 else "ce on scenes") in words
    assert "scenes · test split · 500 images · explained class: predicted" in words


def test_names_are_written_as_they_stand_and_a_network_of_nan_is_reported(tmp_path):
    """Dollars start no formula, a leading _ hides no run, and NaN stops nothing."""
    names, classes = ["_ce", "cash_$x_{$"], ["cash_$x_{$", "b$", "_c"]
    maps = {"gradient": np.full((4, 12, 10), np.nan)}
    broken = picture(confidence=np.full(4, np.nan), maps=maps, signed={}, prediction=np.zeros(4, int))
    random = {"gradient/deletion_curve_random": [0.9, 0.6, 0.3]}
    summaries = SUMMARIES.values()
    first, second = (evaluated(*each, class_names=classes) for each in zip(names, summaries, strict=True))
    first = dataclasses.replace(first, curves={**first.curves, **random})
    second = dataclasses.replace(second, pictures=broken)
    run_report(tmp_path, [first, second], {names[1]: COMPARISONS["sdecor <b>"]})
    curves = {each.name: each.curves for each in (first, second)}
    sent = json.loads(next(s for s in Page((tmp_path / "comparison.html").read_text()).scripts if s.startswith("{")))
    assert {image["runs"][1]["confidence"] for image in sent["images"]} == {None}
    texts = [text.get_text() for text in report.figure_curves(curves).legends[0].get_texts()]
    shown = [text.replace(r"\$", "$").strip("\N{ZERO WIDTH SPACE}") for text in texts]
    assert shown == ["_ce", "_ce, random order", "cash_$x_{$"]
