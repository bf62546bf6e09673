"""Tests of figures: they show their arrays, and are written in each format."""

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from sdecor import report
from sdecor.report import style
from sdecor.report.gallery import common_scale, relative, shrink

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
MAPS = {"ce": RNG.random((5, 12, 10)), "sdecor": RNG.random((5, 12, 10)) ** 3}
CURVES = {
    "ce": {
        "gradient/insertion_curve": np.linspace(0.1, 0.9, 5),
        "gradient/insertion_curve_random": np.linspace(0.1, 0.5, 5),
        "gradient/road_curve": np.array([0.9, 0.6, 0.2]),
        "gradient/road_percentages": np.array([0.0, 20.0, 80.0]),
    },
    "sdecor": {
        "gradient/insertion_curve": np.linspace(0.2, 0.95, 5),
        "gradient/insertion_curve_low": np.linspace(0.1, 0.9, 5),
        "gradient/insertion_curve_high": np.linspace(0.3, 1.0, 5),
        "lrp/deletion_curve": np.linspace(0.95, 0.1, 5),
    },
}
DIFFERENCES = {
    "a": {
        "accuracy": {"mean": -0.0179, "low": -0.031, "high": -0.0042, "n": 9, "better": False},
        "effective_rank": {"mean": 17.64, "low": None, "high": None, "n": 9, "better": None},
        "confidence": {"mean": 0.1, "low": 0.0, "high": 0.2, "n": 9, "better": None},
    }
}


def pixels(figure) -> np.ndarray:
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60, facecolor=figure.get_facecolor())
    return np.asarray(Image.open(buffer).convert("RGB"))


def side_by_side(maps=MAPS, **options):
    labels = [f"class {i}" for i in range(5)]
    predictions = {run: labels for run in maps}
    correct = {run: np.arange(5) % 2 == 0 for run in maps}
    return report.figure_side_by_side(IMAGES, maps, labels=labels, predictions=predictions, correct=correct, **options)


@pytest.mark.parametrize("names", [("sdecor, pixels", "sdecor, blocks"), ("W" * 15, "$x$")])
def test_names_at_the_left_are_inside_the_figure(names):
    for figure in (
        side_by_side(dict(zip(names, MAPS.values(), strict=True))),
        report.figure_methods(IMAGES[:2], {"gradient": MAPS["ce"][:2]}, labels=names),
    ):
        renderer = FigureCanvasAgg(figure).get_renderer()
        extents = [text.get_window_extent(renderer) for text in figure.texts if text.get_text()]
        assert min(extent.x0 for extent in extents) > 0


def test_relative_maps_have_magnitude_one_and_keep_signs_where_asked():
    values = np.array([[3.0, -1.0], [0.0, 4.0]])
    np.testing.assert_allclose(relative(values), np.array([[3, 0], [0, 4]]) / 1.75)
    np.testing.assert_allclose(relative(values, signed=True), values / 2)
    for undefined in (np.zeros((2, 2)), np.full((2, 2), np.nan), np.array([[1.0, np.inf]])):
        assert np.isnan(relative(undefined)).all()
    assert common_scale([np.full((2, 2), np.nan)]) == 1


def test_shrinking_is_the_mean_over_areas():
    values = RNG.random((8, 12))
    np.testing.assert_allclose(shrink(values, 6), values.reshape(4, 2, 6, 2).mean((1, 3)))
    np.testing.assert_array_equal(shrink(values, 12), values)
    odd = shrink(np.arange(10.0)[:, None] * np.ones(3), 4)
    np.testing.assert_allclose(odd[:, 0], [0.5, 3.0, 5.5, 8.0])
    assert odd.shape == (4, 1)


def test_side_by_side_has_a_row_for_each_run_and_one_scale_for_each_image():
    figure = side_by_side(objects=np.ones((5, 12, 10), bool), columns=3)
    assert len(figure.axes) == 15
    for i in range(5):
        image, first, second = figure.axes[3 * i : 3 * i + 3]
        np.testing.assert_array_equal(image.images[0].get_array(), IMAGES[i])
        assert first.images[0].get_clim() == second.images[0].get_clim()
        assert first.images[0].get_array().mean() == pytest.approx(1)
        assert image.get_title() == f"class {i}"
        assert first.get_title() == f"{'✓' if i % 2 == 0 else '✗'} class {i}"
    texts = [text.get_text() for text in figure.texts]
    assert texts.count("ce") == texts.count("sdecor") == 2


def test_scale_of_a_map_does_not_change_the_picture():
    huge = {run: maps * 1e6 for run, maps in MAPS.items()}
    np.testing.assert_array_equal(pixels(side_by_side()), pixels(side_by_side(huge)))


def test_undefined_maps_say_so():
    axes = side_by_side({"zero": np.zeros((5, 12, 10)), "ok": MAPS["ce"]}).axes
    assert [text.get_text() for text in axes[1].texts] == ["undefined"] and not axes[2].texts


def test_object_is_outlined_on_the_edges_of_its_pixels():
    mask = np.zeros((5, 12, 10), bool)
    mask[:, 2, 3] = True
    outline = side_by_side(objects=mask).axes[0].collections[0]
    corners = {tuple(point) for path in outline.get_paths() for point in path.vertices}
    assert corners == {(2.5, 1.5), (3.5, 1.5), (2.5, 2.5), (3.5, 2.5)}


@pytest.mark.parametrize("signed", [False, True])
def test_methods_stand_in_columns_on_one_scale_a_row(signed):
    maps = {"gradient": MAPS["ce"] - 0.5 * signed, "grad_cam": MAPS["sdecor"]}
    figure = report.figure_methods(IMAGES[:2], maps, signed=signed, labels=["a", "b"], objects=MAPS["ce"] > 0.5)
    assert len(figure.axes) == 2 * (1 + 2 + 1)
    image, first, second, bar = figure.axes[:4]
    assert [axes.get_title() for axes in (image, first, second)] == ["image", "Gradient", "Grad-CAM"]
    low, high = first.images[0].get_clim()
    assert (low, high) == second.images[0].get_clim() and low == (-high if signed else 0)
    top = max(np.percentile(np.abs(relative(m[0], signed=signed)), 99.5) for m in maps.values())
    assert high == pytest.approx(top)
    assert bar.get_yticklabels()[-1].get_text() == f"{high:.2g}×"
    assert np.abs(first.images[0].get_array()).mean() == pytest.approx(1)


def test_methods_may_have_their_own_scales_and_colors():
    maps = {"a": MAPS["ce"], "b": MAPS["sdecor"]}
    figure = report.figure_methods(IMAGES, maps, common=False, colormap="viridis", theme="dark")
    assert len(figure.axes) == 15
    _, first, second = figure.axes[:3]
    assert first.images[0].get_clim() != second.images[0].get_clim()
    assert first.images[0].get_cmap().name == "viridis"
    assert [text.get_text() for text in first.texts] == [f"{first.images[0].get_clim()[1]:.2g}×"]


def test_themes_differ_and_an_unknown_one_is_named():
    assert pixels(side_by_side())[0, 0].min() > 240 and pixels(side_by_side(theme="dark"))[0, 0].max() < 60
    with pytest.raises(ValueError, match="theme = 'drak' is not known; did you mean 'dark'"):
        side_by_side(theme="drak")


def test_grey_and_float_images_are_drawn():
    grey = report.figure_side_by_side(RNG.random((2, 8, 8, 1)), {"ce": MAPS["ce"][:2, :8, :8]}, labels=["a", "b"])
    assert grey.axes[0].images[0].get_cmap().name == "gray"


def test_curves_have_a_row_for_each_method_and_a_panel_for_each_kind():
    figure = report.figure_curves(CURVES)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    kinds = ("Insertion", "Deletion", "ROAD")
    assert titles == [f"{method} · {kind}" for method in ("Gradient", "LRP") for kind in kinds]
    insertion, _, road = figure.axes[:3]
    np.testing.assert_allclose(insertion.lines[0].get_ydata(), CURVES["ce"]["gradient/insertion_curve"])
    np.testing.assert_allclose(insertion.lines[0].get_xdata(), [0, 25, 50, 75, 100])
    assert [len(axes.lines) for axes in figure.axes] == [3, 0, 1, 0, 1, 0]
    assert len(insertion.collections) == 1, "the band"
    np.testing.assert_array_equal(road.lines[0].get_xdata(), [0, 20, 80])


def test_curves_at_percentages_stand_where_their_metric_took_them():
    run = {"road_curve": np.linspace(0.8, 0.1, 9), "masked_accuracy_curve": np.linspace(0.9, 0.1, 10)}
    road, masked = report.figure_curves({"a": run}).axes
    np.testing.assert_array_equal(road.lines[0].get_xdata(), np.arange(10, 100, 10))
    np.testing.assert_array_equal(masked.lines[0].get_xdata(), np.arange(0, 100, 10))


def test_one_random_order_of_all_is_drawn_once():
    same = {name: CURVES["ce"] for name in ("a", "b", "c")}
    assert [line.get_label() for line in report.figure_curves(same).axes[0].lines] == ["a", "b", "c", "random order"]


def test_training_draws_what_it_is_given():
    rows = [
        {"step": 1, "split": "train", "loss": 2.0, "accuracy": 0.1},
        {"step": 2, "split": "train", "loss": 1.0},
        {"step": 2, "split": "val", "accuracy": 0.3},
    ]
    loss, accuracy = report.figure_training({"ce": rows}).axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 2.0], [2, 1.0]])
    assert [line.get_label() for line in accuracy.lines] == ["ce, train", "ce, val"]


def test_differences_point_to_the_right_when_better():
    deletion = {"mean": -0.2, "low": -0.3, "high": -0.1, "n": 9, "better": True}
    axes = report.figure_differences({"a": DIFFERENCES["a"] | {"deletion": deletion}}, reference="ce").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Accuracy", "Deletion area"]
    accuracy, deletion = axes.lines[1].get_xdata()[0], axes.lines[3].get_xdata()[0]
    assert accuracy < 0 < deletion
    assert {text.get_text() for text in axes.texts} == {"−1.8 pp", "−0.200"}


def _gap(figure):
    """Return the pixels between a figure's lowest panel, labels included, and its legend."""
    figure.canvas.draw()
    lowest = min(axes.get_tightbbox().y0 for axes in figure.axes)
    return lowest - figure.legends[0].get_window_extent().y1


@pytest.mark.parametrize("names", [2, 40])
def test_a_legend_of_any_length_stands_below_the_panels(names):
    figure = style.new_figure(3.2, 3.0, style.theme_colors("light"))
    axes = figure.subplots()
    for k in range(names):
        axes.plot([0, 1], label=f"sdecor_0.1_3.0_decay{k}")
    style.legend_below(figure, style.theme_colors("light"), lay_out=True)
    assert _gap(figure) >= 0
    runs = {f"a run with a long name {k}": DIFFERENCES["a"] for k in range(names)}
    assert _gap(report.figure_differences(runs, reference="ce")) >= 0


def test_differences_have_a_panel_for_each_method():
    gini = {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 9, "better": True}
    figure = report.figure_differences(
        {"a": DIFFERENCES["a"] | {"gradient/gini": gini, "lrp/gini": gini}, "b": {"lrp/gini": gini}}, reference="ce"
    )
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Model", "Gradient", "LRP"]
    assert len(figure.legends[0].get_texts()) == 2
    assert report.figure_differences({"a": {}}, reference="ce").axes, "nothing to draw is no error"


def test_figures_are_saved_whole_in_each_format(tmp_path):
    figure = report.figure_methods(IMAGES[:1], {"gradient": MAPS["ce"][:1]})
    for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        report.save_figure(figure, tmp_path / f"figure.{kind}", dpi=50)
        content = (tmp_path / f"figure.{kind}").read_bytes()
        assert content.startswith(start) and len(content) > 2000
        report.save_figure(figure, tmp_path / f"figure.{kind}", dpi=50)
        assert (tmp_path / f"figure.{kind}").read_bytes() == content, "the same figure gives the same bytes"
    assert b"/FontFile2" in (tmp_path / "figure.pdf").read_bytes(), "TrueType fonts are embedded"
    assert b"<text" not in (tmp_path / "figure.svg").read_bytes(), "letters are outlines"
    with pytest.raises(ValueError, match="format of the figure = 'gif'"):
        report.save_figure(figure, tmp_path / "figure.gif")
    assert len(list(tmp_path.iterdir())) == 3
