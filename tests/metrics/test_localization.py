"""Tests of localization by rank and mass, and of masks from boxes. test_metrics.py tests energy and pointing game."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_network import objects as reference_objects, stored
from sklearn.metrics import roc_auc_score

from sdecor.metrics import localization
from sdecor.metrics.localization import boxes_to_masks

RNG = np.random.default_rng(0)
N, H, W = 12, 6, 7
OBJECTS = RNG.random((N, H, W)) < RNG.uniform(0.2, 0.6, (N, 1, 1))
IGNORE = RNG.random((N, H, W)) < 0.2
MAPS = (RNG.normal(size=(N, H, W)) + 0.5 * OBJECTS).astype(np.float32)
TIED = MAPS.round()

relevance_rank_accuracy = jax.jit(localization.relevance_rank_accuracy)
top_k_intersection = jax.jit(localization.top_k_intersection, static_argnames="k")
roc_auc = jax.jit(localization.roc_auc)
best_iou = jax.jit(localization.best_iou)
attribution_localization = jax.jit(localization.attribution_localization, static_argnames="weighted")
RANKINGS = [relevance_rank_accuracy, top_k_intersection, roc_auc, best_iou]


def each(oracle, maps, ignore=None):
    """Return the oracle's values of the maps, computed on the pixels that are not ignored."""
    counted = np.ones(maps.shape, bool) if ignore is None else ~ignore
    return [oracle(m[c].astype(np.float64), o[c]) for m, o, c in zip(maps, OBJECTS, counted, strict=True)]


def expected_share_of_top(values, labels, k):
    """Return the mean share over random orders of equal values: those tied with the k-th count in part."""
    threshold = np.sort(values)[-k]
    tied = values == threshold
    places = k - (values > threshold).sum()
    return (labels[values > threshold].sum() + places * labels[tied].mean()) / k


def iou_of_every_threshold(values, labels):
    return max((labels & (values >= t)).sum() / (labels | (values >= t)).sum() for t in np.unique(values))


@pytest.mark.parametrize("maps", [MAPS, TIED], ids=["distinct", "tied"])
@pytest.mark.parametrize("ignore", [None, IGNORE], ids=["all", "ignore"])
class TestRankingsAgainstNumPy:
    def test_relevance_rank_accuracy(self, maps, ignore):
        expected = each(lambda m, o: expected_share_of_top(m, o, o.sum()), maps, ignore)
        np.testing.assert_allclose(relevance_rank_accuracy(maps, OBJECTS, ignore=ignore), expected, rtol=1e-6)

    @pytest.mark.parametrize("k", [1, 10, 1000])
    def test_top_k_intersection(self, maps, ignore, k):
        expected = each(lambda m, o: expected_share_of_top(m, o, min(k, m.size)), maps, ignore)
        np.testing.assert_allclose(top_k_intersection(maps, OBJECTS, k=k, ignore=ignore), expected, rtol=1e-6)

    def test_roc_auc(self, maps, ignore):
        expected = each(lambda m, o: roc_auc_score(o, m), maps, ignore)
        np.testing.assert_allclose(roc_auc(maps, OBJECTS, ignore=ignore), expected, rtol=1e-6)

    def test_best_iou(self, maps, ignore):
        expected = each(iou_of_every_threshold, maps, ignore)
        np.testing.assert_allclose(best_iou(maps, OBJECTS, ignore=ignore), expected, rtol=1e-6)


class TestRankings:
    def test_at_224_pixels(self):
        objects = np.zeros((2, 224, 224), bool)
        objects[0, 50:120, 30:200], objects[1, 3:220, 2:223] = True, True
        maps = (RNG.normal(size=objects.shape) + 0.3 * objects).astype(np.float32)
        expected = [roc_auc_score(o.ravel(), m.ravel()) for m, o in zip(maps, objects, strict=True)]
        np.testing.assert_allclose(roc_auc(maps, objects), expected, rtol=1e-6)
        expected = [expected_share_of_top(m.ravel(), o.ravel(), o.sum()) for m, o in zip(maps, objects, strict=True)]
        np.testing.assert_allclose(relevance_rank_accuracy(maps, objects), expected, rtol=1e-6)

    @pytest.mark.parametrize("constant", [1.0, -3e-20])
    def test_constant_map_scores_chance(self, constant):
        flat = np.full(MAPS.shape, constant, np.float32)
        area = localization.area_share(OBJECTS, ignore=IGNORE)
        for measure in (relevance_rank_accuracy, top_k_intersection, best_iou):
            np.testing.assert_allclose(measure(flat, OBJECTS, ignore=IGNORE), area, rtol=1e-6)
        np.testing.assert_allclose(roc_auc(flat, OBJECTS, ignore=IGNORE), 0.5, rtol=1e-6)

    @pytest.mark.parametrize("sign, extremes", [(1, [1, 1, 1]), (-1, [0, 0, None])])
    def test_the_object_itself_is_the_best_map_and_its_opposite_the_worst(self, sign, extremes):
        half = np.arange(H * W).reshape(1, H, W) % 2 == 0
        maps = sign * half.astype(np.float32)
        for measure, value in zip((relevance_rank_accuracy, roc_auc, best_iou), extremes, strict=True):
            assert measure(maps, half) == (0.5 if value is None else value)

    @pytest.mark.parametrize("change", [lambda m: m * 2.0**-90, lambda m: m * 2.0**120, lambda m: np.exp(m) - 9])
    def test_only_the_order_counts(self, change):
        for measure in RANKINGS:
            changed = measure(change(MAPS).astype(np.float32), OBJECTS, ignore=IGNORE)
            np.testing.assert_allclose(changed, measure(MAPS, OBJECTS, ignore=IGNORE), rtol=1e-6)

    def test_neighbouring_floats_are_no_tie(self):
        maps = np.ones((1, H, W), np.float32)
        maps[0, 2, 3] = np.nextafter(np.float32(1), np.float32(2))
        objects = maps > 1
        for measure in (relevance_rank_accuracy, roc_auc, best_iou):
            assert measure(maps, objects) == 1

    def test_no_answer_is_nan(self):
        maps, objects, ignore = MAPS.copy(), OBJECTS.copy(), np.zeros_like(IGNORE)
        objects[0], objects[1] = False, True
        maps[2], maps[3, 1, 1], maps[4, 2, 2] = 0, np.nan, -np.inf
        ignore[5], ignore[6] = OBJECTS[5], ~OBJECTS[6]
        ignore[7], maps[7] = IGNORE[7], np.where(IGNORE[7], np.nan, maps[7])
        for measure in RANKINGS:
            undefined = np.isnan(measure(maps, objects, ignore=ignore))
            np.testing.assert_array_equal(undefined, [True] * 7 + [False] * 5)

    def test_values_belong_to_their_example(self):
        for measure in RANKINGS:
            whole = measure(TIED, OBJECTS)
            np.testing.assert_allclose(measure(TIED[::-1], OBJECTS[::-1]), whole[::-1], rtol=1e-6)
            np.testing.assert_allclose(measure(TIED[3:4], OBJECTS[3:4]), whole[3:4], rtol=1e-6)

    def test_sums_of_places_beyond_32_bits(self):
        """One half of 2048×2048 pixels is ranked last (area 0) or first (area 1)."""
        half, every = np.arange(2**22)[None] >= 2**21, np.ones((1, 2**11, 2**11), bool)
        area = jax.jit(localization._area_under_roc)
        assert area(half, every)[0] == 0 and area(~half, every)[0] == 1
        huge = [jax.ShapeDtypeStruct(shape, bool) for shape in ((1, 2**24 + 1), (1, 1, 2**24 + 1))]
        with pytest.raises(ValueError, match="at most 16777216"):
            jax.eval_shape(area, *huge)

    def test_maps_of_integers(self):
        codes = np.clip(MAPS * 60 + 100, 0, 255).astype(np.uint8)
        for measure in (roc_auc, best_iou):  # these rank −maps
            np.testing.assert_allclose(measure(codes, OBJECTS), measure(codes.astype(np.float32), OBJECTS), rtol=1e-6)

    def test_errors(self):
        with pytest.raises(ValueError, match="k = 0 is no such count"):
            localization.top_k_intersection(MAPS, OBJECTS, k=0)


MEASURES = [
    *(
        localization.relevance_rank_accuracy,
        localization.top_k_intersection,
        localization.roc_auc,
        localization.best_iou,
    ),
    *(localization.energy_inside, localization.attribution_localization, localization.pointing_game),
]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_arrays_that_are_no_maps_or_masks_are_refused(measure):
    for maps, objects, ignore, message in (
        (MAPS[0, 0], OBJECTS[0, 0], None, r"maps has shape \(7,\): pass \[N, H, W\], or \[N, T\]"),
        (MAPS[..., None], OBJECTS[..., None], None, r"maps has shape \(12, 6, 7, 1\): pass \[N, H, W\]"),
        (MAPS, OBJECTS[:1], None, r"objects has shape \(1, 6, 7\): pass \(12, 6, 7\)"),
        (MAPS, OBJECTS.astype(np.uint8), None, "objects has dtype uint8: pass bool"),  # code 2 is not an object
        (MAPS, OBJECTS, IGNORE[:, :5], r"ignore has shape \(12, 5, 7\)"),
        (MAPS, OBJECTS, IGNORE * 1.0, "ignore has dtype float64: pass bool"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(maps, objects, ignore=ignore)


def test_masks_without_maps_are_checked_too():
    with pytest.raises(ValueError, match="objects has dtype int64"):
        localization.area_share(OBJECTS.astype(int))
    with pytest.raises(ValueError, match="ignore has shape"):
        localization.area_share(OBJECTS, ignore=IGNORE[:3])


class TestAttributionLocalization:
    def test_against_numpy(self):
        energy = localization.energy_inside(MAPS, OBJECTS, ignore=IGNORE)
        np.testing.assert_allclose(attribution_localization(MAPS, OBJECTS, ignore=IGNORE), energy, rtol=1e-6)
        expected = each(lambda m, o: np.maximum(m, 0)[o].sum() / np.maximum(m, 0).sum() / o.mean(), MAPS, IGNORE)
        found = attribution_localization(MAPS, OBJECTS, weighted=True, ignore=IGNORE)
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_weighted_chance_is_1(self):
        flat = np.full(MAPS.shape, 0.1, np.float32)
        np.testing.assert_allclose(attribution_localization(flat, OBJECTS, weighted=True), 1, rtol=1e-6)


class TestBoxes:
    def test_union_of_boxes_against_slices(self):
        boxes = np.array([[[0, 0, 2, 3], [1, 2, 4, 4]], [[3, 1, 6, 7], [0, 0, 0, 0]]])
        expected = np.zeros((2, H, W), bool)
        expected[0, 0:2, 0:3] = expected[0, 1:4, 2:4] = expected[1, 3:6, 1:7] = True
        np.testing.assert_array_equal(jax.jit(boxes_to_masks, static_argnums=1)(boxes, (H, W)), expected)
        np.testing.assert_array_equal(boxes_to_masks(boxes[:, 0], (H, W))[1], expected[1])

    def test_padding_and_empty_boxes_contribute_nothing(self):
        nothing = jnp.array([[[4.0, 4, 2, 6], [3, 3, 3, 5], [jnp.nan] * 4, [0, 0, 0, 0], [-5, -5, -1, -1]]])
        assert not boxes_to_masks(nothing, (H, W)).any()
        assert not boxes_to_masks(jnp.zeros((2, 0, 4)), (H, W)).any()

    def test_outside_is_cut_off_and_a_pixel_belongs_to_its_center(self):
        mask = boxes_to_masks(jnp.array([[-2.0, 1.5, 1.4, 99.0]]), (3, 4))
        expected = np.zeros((1, 3, 4), bool)
        expected[0, 0, 1:] = True
        np.testing.assert_array_equal(mask, expected)

    @pytest.mark.parametrize("shape", [(4,), (2, 5), (1, 1, 1, 4)])
    def test_shape_errors(self, shape):
        with pytest.raises(ValueError, match="boxes have shape"):
            boxes_to_masks(jnp.zeros(shape), (H, W))


class TestAgainstQuantus:
    @pytest.mark.parametrize("kind", ["signed", "positive"])
    def test_values(self, kind):
        reference = stored("quantus_localization")
        maps, objects = reference[f"maps/{kind}"], reference_objects()
        for name, found in {
            "PointingGame": localization.pointing_game(maps, objects),
            "RelevanceRankAccuracy": relevance_rank_accuracy(maps, objects),
            "TopKIntersection": top_k_intersection(maps, objects, k=40),
            "AttributionLocalisation": attribution_localization(np.abs(maps), objects),  # as Quantus does itself
            "AUC": roc_auc(maps, objects),
        }.items():
            np.testing.assert_allclose(found, reference[f"{kind}/{name}"], rtol=1e-5, err_msg=name)

    def test_relevance_mass(self):
        """Quantus divides signed sums, whose ratio can leave [0, 1]; here negative values are no mass."""
        reference = stored("quantus_localization")
        found = localization.energy_inside(reference["maps/positive"], reference_objects())
        np.testing.assert_allclose(found, reference["positive/RelevanceMassAccuracy"], rtol=1e-5)
        assert (np.abs(reference["signed/RelevanceMassAccuracy"]) > 1).any()
        share = localization.energy_inside(reference["maps/signed"], reference_objects())
        assert ((share > 0) & (share < 1)).all()

    def test_an_empty_object_is_no_hit(self):
        """Quantus stores NaN as a boolean, so that every map hits an empty object."""
        reference = stored("quantus_localization")
        assert (reference["defect/PointingGame"] == 1).all()
        nothing = jnp.zeros_like(reference_objects())
        assert np.isnan(localization.pointing_game(reference["maps/positive"], nothing)).all()

    def test_weighting_divides_by_the_object_s_share(self):
        """Quantus multiplies by the object's share instead, computed over all but two of the batch's images."""
        reference = stored("quantus_localization")
        maps, objects = reference["maps/positive"], reference_objects()
        pixels = objects.sum((1, 2))
        wrong = attribution_localization(maps, objects) * pixels / (6 * 3 * 16 * 16)
        np.testing.assert_allclose(wrong, reference["defect/AttributionLocalisation"], rtol=1e-5)
        right = attribution_localization(maps, objects) / pixels * 256
        np.testing.assert_allclose(attribution_localization(maps, objects, weighted=True), right, rtol=1e-5)
