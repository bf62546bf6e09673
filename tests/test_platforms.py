"""Tests that every program of the project lowers for GPUs and TPUs: nothing of it is for CPUs only.

The cases are the rows of the project's tables, so that a new row is tested by itself.
"""

from functools import partial

import jax
import jax.numpy as jnp
import networks
import numpy as np
import platforms
import pytest
from jax.sharding import AxisType, PartitionSpec

from configs import default
from sdecor import losses, masking, metrics
from sdecor.attribution import METHOD_INFO, SALIENCY_OF, baselines, cams, paths, propagation
from sdecor.core import parallel
from sdecor.evaluation import GROUPS, Setup, choose_methods, make_explanation, make_measurement
from sdecor.evaluation.programs import make_prediction
from sdecor.evaluation.stored import make_reduction
from sdecor.export import programs as export_programs
from sdecor.export.encode import DTYPES
from sdecor.losses.decorrelation import FORMS
from sdecor.models import MODELS, ViT, create_model
from sdecor.rules.lrp import SOFTMAX
from sdecor.training import build, members, steps
from sdecor.training.objective import FORWARDS
from sdecor.training.state import OPTIMIZERS, create_optimizer, create_train_state
from sdecor.training.terms import METHODS, TERMS

AXIS, DEVICES = parallel.AXIS, 2


def on_devices(step, batch_axis: int):
    """Return a step that is mapped over two devices, as `parallel.pmap_step` does; `jax.export` refuses pmap itself."""
    mesh = jax.make_mesh((DEVICES,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:DEVICES])
    batch = PartitionSpec(*[None] * batch_axis, AXIS)
    specs = {"in_specs": (PartitionSpec(), batch, PartitionSpec(), PartitionSpec()), "out_specs": PartitionSpec()}
    return jax.jit(jax.shard_map(step, mesh=mesh, check_vma=False, **specs))


def lower_step(model, *, tx="sgd", replicas=None, accumulate=1, ema=False, batch=None, shape=networks.SHAPE, **options):
    """Lower a training step and return its text; `options` are those of `networks.objective`."""
    ema_decay = 0.9 if ema else None
    objective = networks.objective(**options)
    step = networks.make_step(objective, axis_name=AXIS, accumulate=accumulate, ema_decay=ema_decay)
    key = members.run_key(range(replicas or 1), 0, replicas)
    create = partial(create_train_state, model, create_optimizer(tx), image_shape=shape, ema=ema)
    state = jax.eval_shape(lambda key: create(key=key), key)
    batch = networks.tiny_batch(shape=shape) if batch is None else batch
    if accumulate > 1:
        batch = {name: x.reshape(accumulate, -1, *x.shape[1:]) for name, x in batch.items()}
    batch = members.join([batch] * (replicas or 1), replicas)
    values = members.join([networks.hyper(variance=0.1, gradient_penalty=0.1)] * (replicas or 1), replicas)
    leading = (accumulate > 1) + (replicas is not None)
    return platforms.lowered(on_devices(members.lift(step, replicas), leading), state, batch, values, key)


def tiny(**options):
    return networks.tiny_model(axis_name=AXIS, **options)


def terms_of(method: str) -> dict[str, bool]:
    """Return which terms a training method has, as options of `networks.objective`."""
    return {name: term.weight.partition(".")[0] in METHODS[method] for name, term in TERMS.items()}


@pytest.mark.parametrize("method", METHODS)
def test_the_step_of_every_training_method(method):
    assert "all_reduce" in lower_step(tiny(), **terms_of(method))


@pytest.mark.parametrize("form", FORMS)
def test_the_step_of_every_form(form):
    lower_step(tiny(), consistency=False, form=form, spatial="positions", variance=True)


def test_the_step_with_micro_batches_replicas_and_an_average():
    lower_step(tiny(), accumulate=2, replicas=2, ema=True)


def test_the_step_in_bfloat16():
    lower_step(tiny(dtype=jnp.bfloat16), tx="adamw", consistency=False)


def test_the_preparation_of_images():
    config = default.get_config()
    batch, mean_and_std = networks.tiny_batch(), ((0.5,) * 3, (0.25,) * 3)
    keys = jax.random.split(jax.random.key(0), networks.N)
    for changes in ({"crop_padding": 1, "flip": True}, {"crop_padding": 0, "resized_crop": (0.3, 1.0), "size": 10}):
        config.augment.update(changes)
        prepare, prepare_evaluation = build.create_preparation(config, *mean_and_std)
        platforms.lowered(prepare, keys, batch["image"])
        platforms.lowered(prepare_evaluation, batch["image"])


CHOICES = [
    *({"forward": each} for each in FORWARDS),
    *({"saliency_of": each} for each in masking.SALIENCY_OF),
    *({"order": each} for each in masking.ORDERS),
    *({"rank_by": each} for each in masking.RANKINGS),
    *({"fill": each} for each in masking.FILLS),
    *({"direction": each} for each in losses.DIRECTIONS),
    *({"gradient_penalty": True, "penalty_of": each} for each in losses.PENALTY_OF),
]


@pytest.mark.full
@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_the_step_with_every_option(options):
    lower_step(tiny(), **options)


@pytest.mark.full
@pytest.mark.parametrize("tx", OPTIMIZERS)
def test_the_step_of_every_optimizer(tx):
    lower_step(tiny(), tx=tx, **terms_of("ce"))


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_the_step_of_every_model(name):
    shape = {"mnist_net": (28, 28, 3), "cnn1d": (32, 3)}.get(name, (32, 32, 3))
    model = create_model(name, num_classes=4, axis_name=AXIS)
    lower_step(model, shape=shape, batch=networks.tiny_batch(4, shape=shape))


def test_the_validation_step():
    model = tiny()
    variables = jax.eval_shape(lambda: networks.tiny_state(model).variables)
    batch = networks.tiny_batch()
    images = jnp.zeros(batch["image"].shape)
    batch = {"label": batch["label"], "weight": np.ones(networks.N, np.float32)}
    several = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), variables)
    for replicas, given in ((None, variables), (2, several)):
        step = members.lift_evaluation(partial(steps.evaluation_step, model.apply), replicas)
        platforms.lowered(step, given, images, batch)


MODEL = networks.tiny_model()
VARIABLES = jax.eval_shape(lambda: networks.tiny_state(MODEL).variables)
N, SIDE = 2, networks.SHAPE[0]


def apply(variables, images):
    return MODEL.apply(variables, images, train=False)


SETUP = Setup(apply, (0.5,) * 3, (0.25,) * 3, target="label", chunk_size=2)
INTEGERS, FLOATS = np.zeros(N, np.int32), np.ones(N, np.float32)
EXAMPLES = {"image": networks.tiny_batch(N)["image"], "label": INTEGERS, "index": INTEGERS, "weight": FLOATS}
EXAMPLES |= {"object": np.zeros((N, SIDE, SIDE), np.uint8)}
KEY = jax.random.key(0)


def method_of(word: str):
    ((method, _),) = choose_methods([word]).values()
    return method


def test_the_predictions_of_an_evaluation():
    for target in ("predicted", "label"):
        platforms.lowered(make_prediction(SETUP._replace(target=target)), VARIABLES, EXAMPLES, KEY)


OF_ATTENTION = ("attention_rollout", "attention_relevance", "legrad")
ALLOWED = {"eigen_cam": platforms.EIGENVALUES, "kernel_shap": platforms.EQUATIONS, "lime": platforms.EQUATIONS}


# One method of each family is lowered in the quick suite.
QUICK = {
    *("gradient", "smoothgrad", "integrated_gradients", "guided_integrated_gradients", "grad_cam", "eigen_cam", "lrp"),
    *("guided_backpropagation", "deeplift", "occlusion", "rise", "kernel_shap", "attention_relevance", "ablation_cam"),
}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in METHOD_INFO]
)
def test_every_attribution_method(name):
    setup, variables = SETUP, VARIABLES
    if name in OF_ATTENTION:
        model = ViT(num_classes=4, width=8, depth=1, heads=2, patch_size=4)
        setup = SETUP._replace(apply=lambda variables, images: model.apply(variables, images, train=False))
        variables = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, *networks.SHAPE))))
    explain, allowed = make_explanation(setup, method_of(name)), ALLOWED.get(name, frozenset())
    platforms.lowered(explain, variables, EXAMPLES | {"target": INTEGERS}, KEY, allowed=allowed)


OPTIONS = [f"{name}:{option}" for name, option in (
    *(("integrated_gradients", f"rule={each}") for each in paths.RULES),
    *(("integrated_gradients", f"baseline={each}") for each in baselines.BASELINES),
    *(("lrp", f"rule={each}") for each in (*propagation.COMPOSITES, "composite:low=-2.0:high=2.0")),
    *(("lrp", f"softmax={each}") for each in SOFTMAX),
    *(("gradient", f"saliency_of={each}") for each in SALIENCY_OF),
    *(("grad_cam", f"upsample={each}") for each in cams.UPSAMPLING),
)]  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("word", OPTIONS)
def test_every_option_of_the_attribution_methods(word):
    platforms.lowered(make_explanation(SETUP, method_of(word)), VARIABLES, EXAMPLES | {"target": INTEGERS}, KEY)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in METHOD_INFO if name not in OF_ATTENTION])
def test_every_attribution_method_of_a_deeper_network(name):
    model = create_model("resnet18", num_classes=4)
    variables = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3))))
    setup = SETUP._replace(apply=lambda variables, images: model.apply(variables, images, train=False))
    batch = EXAMPLES | {"target": INTEGERS, "image": np.zeros((N, 32, 32, 3), np.uint8)}
    explain, allowed = make_explanation(setup, method_of(name)), ALLOWED.get(name, frozenset())
    platforms.lowered(explain, variables, batch, KEY, allowed=allowed)


MAPS = np.zeros((N, SIDE, SIDE), np.float32)
EXPLAINED = EXAMPLES | {"target": INTEGERS, "maps": MAPS, "signed": MAPS}
EXPLAINED |= {"attributions": np.zeros((N, *networks.SHAPE), np.float32)}
NOT_OF_A_BATCH = {  # metrics of many maps together: their function on the device, and its arguments
    "sufficiency": (metrics.sufficiency, MAPS, INTEGERS),
    "consistency": (metrics.consistency, INTEGERS, INTEGERS),
    "grid_pointing_game": (partial(metrics.grid_pointing_game, size=2), np.zeros((N, 24, 24), np.float32), INTEGERS),
}


@pytest.mark.parametrize("name", GROUPS)
def test_every_metric_of_explanations(name):
    group, method = GROUPS[name], method_of("integrated_gradients:steps=2")
    if group.needs in ("set", "mosaic"):
        platforms.lowered(*NOT_OF_A_BATCH[name])
        return
    group = group.of(method, SETUP.saliency_of)
    platforms.lowered(make_measurement(SETUP, (group,), method), VARIABLES, EXPLAINED, KEY)


def test_every_metric_is_in_a_group_or_a_prediction():
    given = {name for group in GROUPS.values() for name in group.gives}
    others = {name for name, row in metrics.METRICS.items() if name not in given and row.derived_from is None}
    assert {metrics.METRICS[name].needs for name in others} == {"model", "mask"}


def test_mosaics_and_stored_maps():
    images = np.zeros((N, 4, *networks.SHAPE), np.float32)
    for resize in (True, False):
        platforms.lowered(partial(metrics.make_mosaics, size=2, resize=resize), images)
    platforms.lowered(make_reduction(SETUP), VARIABLES, {"attributions": EXPLAINED["attributions"]}, KEY)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_programs_of_an_export(dtype):
    task = export_programs.Task(
        images_of=lambda images: networks.prepare(None, images),
        fn_of=lambda variables: lambda image: apply(variables, image[None])[0][0],
        methods={"gradient": method_of("gradient"), "integrated_gradients": method_of("integrated_gradients")},
        dtype=dtype,
        clip_percentile=99.0,
    )
    platforms.lowered(export_programs.make_prediction(task), VARIABLES, EXAMPLES, KEY)
    for name in task.methods:
        explain = export_programs.make_explanation(task, name)
        platforms.lowered(explain, VARIABLES, EXAMPLES | {"target": INTEGERS}, KEY)


def host(x):
    return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def printed(x):
    jax.debug.print("{}", x)
    return x


@pytest.mark.parametrize("function", [host, printed, jnp.linalg.eigvalsh, jnp.linalg.svd], ids=lambda f: f.__name__)
def test_a_program_for_the_host_or_a_library_is_found(function):
    with pytest.raises((AssertionError, ValueError, NotImplementedError, TypeError)):
        platforms.lowered(function, jnp.eye(3))
