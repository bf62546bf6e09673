"""Tables, figures and pages hold the numbers they were given, and a page needs nothing but itself."""

import html.parser
import io
import re

import numpy as np
import pytest

from sdecor import report
from sdecor.report.table import format_interval, format_value, full_title

RNG = np.random.default_rng(0)
SUMMARIES = {
    "ce": {
        "accuracy": {"mean": 0.8712, "low": 0.861, "high": 0.8818, "n": 500, "undefined": 0, "chance": 0.1},
        "insertion": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 499, "undefined": 1, "chance": 0.31},
        "effective_rank": {"mean": 14.26, "low": None, "high": None, "n": 500, "undefined": 0},
        "energy_inside": {"mean": None, "low": None, "high": None, "n": 0, "undefined": 500},
    },
    "sdecor <b>": {
        "accuracy": {"mean": 0.8533, "low": 0.842, "high": 0.8641, "n": 500, "undefined": 0, "chance": 0.1},
        "insertion": {"mean": 0.625, "low": 0.525, "high": 0.7, "n": 500, "undefined": 0, "chance": 0.42},
        "effective_rank": {"mean": 31.9, "low": None, "high": None, "n": 500, "undefined": 0},
        "energy_inside": {"mean": None, "low": None, "high": None, "n": 0, "undefined": 500},
    },
}
COMPARISONS = {
    "sdecor <b>": {
        "accuracy": {"mean": -0.0179, "low": -0.031, "high": -0.0042, "n": 500, "better": False},
        "insertion": {"mean": 0.125, "low": -0.01, "high": 0.26, "n": 499, "better": None},
        "effective_rank": {"mean": 17.64, "low": None, "high": None, "n": 500, "better": None},
    }
}
IMAGES = RNG.integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
MAPS = {"ce": RNG.random((5, 12, 10)), "sdecor": RNG.random((5, 12, 10)) ** 3}


def pixels(figure) -> np.ndarray:
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60, facecolor=figure.get_facecolor())
    return np.asarray(Image.open(buffer).convert("RGB"))


def test_terminal_table_holds_the_numbers_and_marks_only_clear_differences():
    text = report.terminal_table(SUMMARIES, COMPARISONS)
    rows = {line.split("  ")[0].strip(): line for line in text.splitlines()}
    accuracy = rows["Accuracy ↑"]
    for piece in ("10.0 %", "87.1 % [86.1, 88.2]", "85.3 % [84.2, 86.4]", "500", "−1.8 pp [−3.1, −0.4]  ✗ worse"):
        assert piece in accuracy
    assert "better" not in rows["Insertion area ↑"] and "worse" not in rows["Insertion area ↑"]
    assert "+0.125 [−0.010, +0.260]" in rows["Insertion area ↑"] and "499–500" in rows["Insertion area ↑"]
    assert "14.3" in rows["Effective rank of features ↑"] and "+17.6" in rows["Effective rank of features ↑"]
    assert "0.310 / 0.420" in rows["Insertion area ↑"]
    assert rows["Saliency on the object ↑"].split()[-3:] == ["–", "–", "0"]


def test_terminal_table_columns_are_aligned():
    lines = report.terminal_table(SUMMARIES, COMPARISONS).splitlines()
    place = lines[0].index(" ce ") + 1
    assert [line[place - 1 : place + 4] for line in lines[2:6]] == [" 87.1", " –   ", " 0.50", " 14.3"]
    assert lines[4].index("0.625") == lines[2].index("85.3")
    assert lines[1] == lines[-2] == "─" * max(map(len, lines[:-1]))
    assert "paired difference" not in report.terminal_table({"ce": SUMMARIES["ce"]})


@pytest.mark.parametrize(
    ("name", "value", "signed", "text"),
    [
        ("accuracy", 0.5, False, "50.0 %"),
        ("accuracy", -0.004, True, "−0.4 pp"),
        ("gini", 0.1234, False, "0.123"),
        ("effective_rank", 123.4, False, "123"),
        ("dead_features", 7.0, False, "7"),
        ("energy_ratio", None, False, "–"),
        ("deletion_vs_random", 0.0, False, "0"),
        ("made_up", -1.5, True, "−1.500"),
    ],
)
def test_numbers_are_written_in_their_unit(name, value, signed, text):
    assert format_value(name, value, signed=signed) == text


def test_titles_stand_alone_where_they_must():
    assert full_title("insertion_vs_random") == "Insertion area, relative to random"
    assert full_title("gini") == "Sparseness (Gini)"
    assert format_interval("gini", {"mean": 0.5, "low": None, "high": None}) == "0.500"


def test_config_differences_lists_only_what_differs():
    a = {"method": {"decor_weight": 0.0, "fill": "uniform"}, "seed": 0}
    b = {"method": {"decor_weight": 0.1, "fill": "uniform"}, "seed": 0, "note": "x"}
    assert report.config_differences({"a": a, "b": b}) == [
        ("method.decor_weight", [0.0, 0.1]),
        ("note", [None, "x"]),
    ]


class Page(html.parser.HTMLParser):
    """Collects text and links, and checks that tags nest."""

    VOID = {"meta", "img", "source", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.links, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def write_page(path):
    figures = [
        (
            "Maps",
            "What the colours mean.",
            {"light": report.figure_curves(CURVES), "dark": report.figure_curves(CURVES)},
        )
    ]
    report.html_report(
        path,
        title="Runs & maps",
        lead="A <test>",
        summaries=SUMMARIES,
        comparisons=COMPARISONS,
        configs={"ce": {"optim": {"lr": 0.1}, "seed": 0}, "sdecor <b>": {"optim": {"lr": 0.2}, "seed": 0}},
        facts={"baseline": "blur"},
        figures=figures,
    )
    return path.read_text()


CURVES = {
    "ce": {"insertion_curve": np.linspace(0.1, 0.9, 5), "insertion_curve_random": np.linspace(0.1, 0.5, 5)},
    "sdecor": {"insertion_curve": np.linspace(0.2, 0.95, 5), "deletion_curve": np.linspace(0.95, 0.1, 5)},
}


def test_page_is_well_formed_self_contained_and_holds_the_numbers(tmp_path):
    text = write_page(tmp_path / "comparison.html")
    page = Page(text)
    assert not page.open
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?:|<script|@import|url\(", text)
    assert "b" not in page.tags, "a run's name is text, not markup"
    words = " ".join(page.words)
    for piece in ("Runs & maps", "A <test>", "87.1 %", "84.2 to 86.4", "−1.8 pp worse", "−3.1 to −0.4", "optim.lr"):
        assert piece in words
    for piece in ("0.310 / 0.420", "1 / 0 left out", "500 left out", "baseline", "What the colours mean."):
        assert piece in words
    assert "seed" not in words
    assert sorted(file.name for file in tmp_path.iterdir()) == ["comparison.html"]


def test_page_of_one_run_has_no_comparison(tmp_path):
    report.html_report(tmp_path / "report.html", title="One", summaries={"ce": SUMMARIES["ce"]})
    words = " ".join(Page((tmp_path / "report.html").read_text()).words)
    assert "paired" not in words and "differs" not in words and "87.1 %" in words


def test_a_failed_page_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(KeyError):
        report.html_report(path, title="x", summaries={"ce": {"accuracy": {}}})
    assert path.read_text() == "old"


def side_by_side(maps=MAPS, **options):
    labels = [f"class {i}" for i in range(5)]
    predictions = {run: labels for run in maps}
    correct = {run: np.arange(5) % 2 == 0 for run in maps}
    return report.figure_side_by_side(IMAGES, maps, labels=labels, predictions=predictions, correct=correct, **options)


def test_side_by_side_has_a_row_for_each_run_and_one_scale_for_each_image():
    figure = side_by_side(objects=np.ones((5, 12, 10), bool), columns=3)
    assert len(figure.axes) == 15
    for i in range(5):
        image, first, second = figure.axes[3 * i : 3 * i + 3]
        np.testing.assert_array_equal(image.images[0].get_array(), IMAGES[i])
        assert first.images[0].get_clim() == second.images[0].get_clim()
        assert first.images[0].get_array().sum() == pytest.approx(1)
        assert image.get_title() == f"class {i}"
        assert first.get_title() == f"{'✓' if i % 2 == 0 else '✗'} class {i}"
    texts = [text.get_text() for text in figure.texts]
    assert texts.count("ce") == texts.count("sdecor") == 2


def test_scale_of_a_map_does_not_change_the_picture():
    huge = {run: maps * 1e6 for run, maps in MAPS.items()}
    np.testing.assert_array_equal(pixels(side_by_side()), pixels(side_by_side(huge)))
    assert pixels(side_by_side({"zero": np.zeros((5, 12, 10)), "nan": np.full((5, 12, 10), np.nan)})).size


def test_object_is_outlined_on_the_edges_of_its_pixels():
    mask = np.zeros((5, 12, 10), bool)
    mask[:, 2, 3] = True
    outline = side_by_side(objects=mask).axes[0].collections[0]
    corners = {tuple(point) for path in outline.get_paths() for point in path.vertices}
    assert corners == {(2.5, 1.5), (3.5, 1.5), (2.5, 2.5), (3.5, 2.5)}


def test_themes_differ_and_an_unknown_one_is_named():
    assert pixels(side_by_side())[0, 0].min() > 240 and pixels(side_by_side(theme="dark"))[0, 0].max() < 60
    with pytest.raises(ValueError, match="theme = 'drak' is not known; did you mean 'dark'"):
        side_by_side(theme="drak")


def test_grey_and_float_images_are_drawn():
    grey = report.figure_side_by_side(RNG.random((2, 8, 8, 1)), {"ce": MAPS["ce"][:2, :8, :8]}, labels=["a", "b"])
    assert grey.axes[0].images[0].get_cmap().name == "gray"


def test_curves_and_training_draw_what_they_are_given():
    figure = report.figure_curves(CURVES)
    insertion = figure.axes[0]
    np.testing.assert_allclose(insertion.lines[0].get_ydata(), CURVES["ce"]["insertion_curve"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Insertion", "Deletion"]
    assert [len(axes.lines) for axes in figure.axes] == [3, 1]
    rows = [
        {"step": 1, "split": "train", "loss": 2.0, "accuracy": 0.1},
        {"step": 2, "split": "train", "loss": 1.0},
        {"step": 2, "split": "val", "accuracy": 0.3},
    ]
    loss, accuracy = report.figure_training({"ce": rows}).axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 2.0], [2, 1.0]])
    assert [line.get_label() for line in accuracy.lines] == ["ce, train", "ce, val"]


def test_differences_point_to_the_right_when_better():
    flipped = {
        "a": {
            "accuracy": COMPARISONS["sdecor <b>"]["accuracy"],
            "deletion": {"mean": -0.2, "low": -0.3, "high": -0.1, "n": 9, "better": True},
        }
    }
    axes = report.figure_differences(flipped, reference="ce").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Accuracy", "Deletion area"]
    accuracy, deletion = axes.lines[1].get_xdata()[0], axes.lines[3].get_xdata()[0]
    assert accuracy < 0 < deletion
    assert {text.get_text() for text in axes.texts} == {"−1.8 pp", "−0.200"}


def test_figures_are_saved_whole_in_each_format(tmp_path):
    figure = report.figure_curves(CURVES)
    for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        report.save_figure(figure, tmp_path / f"figure.{kind}")
        assert (tmp_path / f"figure.{kind}").read_bytes().startswith(start)
    with pytest.raises(ValueError, match="format of the figure = 'gif'"):
        report.save_figure(figure, tmp_path / "figure.gif")
    assert len(list(tmp_path.iterdir())) == 3
