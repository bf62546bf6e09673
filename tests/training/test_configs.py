"""Tests of configs: every file builds, config strings choose, impossible values are named with a remedy."""

import dataclasses
import importlib
import inspect
import pathlib
import re

import pytest

from configs import default, oxford_iiit_pet, tiny_imagenet
from configs.sweeps import setting
from sdecor import losses, models
from sdecor.core import files
from sdecor.sweep import plan
from sdecor.training import build, run_folder
from sdecor.training.build.checks import check_blocks
from sdecor.training.objective import Masking
from sdecor.training.terms import METHODS, TERMS

NAMES = sorted(path.stem for path in pathlib.Path(default.__file__).parent.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_possible_and_documented(name):
    module = importlib.import_module(f"configs.{name}")
    assert "python train.py --config=configs/" in module.__doc__
    arguments = (
        "",
        "method=ce",
        "method=gradpen",
        "method=sdecor,runlocal",
        "model=cnn,runlocal",
        "model=vit_ti",
        "model=vgg16",
    )
    for arg in arguments:
        config = module.get_config(arg)
        build.check_config(config)
        model = build.create_model(config, 10, (32, 32, config.data.channels))
        assert model is not None
        schedule = build.create_schedule(config, 50)
        build.create_learning_rate(config, schedule)


def test_methods_are_which_terms_the_loss_has():
    cells = {}
    for method in default.METHODS:
        config = default.get_config(f"method={method}")
        objective = build.create_objective(config)
        build.check_config(config)
        assert list(build.create_hyper(config, 10).weights) == list(objective.terms)
        assert (objective.masking is not None) == ("consistency" in objective.terms)
        assert (objective.penalty_of is not None) == ("gradient_penalty" in objective.terms)
        cells[method] = tuple(objective.terms)
    expected = {
        "ce": (),
        "sgt": ("consistency",),
        "decor": ("decorrelation",),
        "sdecor": ("consistency", "decorrelation"),
        "gradpen": ("gradient_penalty",),
    }
    assert cells == expected == default.METHODS == METHODS


def test_options_of_the_terms_are_those_of_the_config():
    """A term's function takes the options in its row of TERMS, and their defaults are the config's."""
    base = default.base()
    for name, term in TERMS.items():
        parameters = inspect.signature(term.function).parameters
        options = {field.rpartition(".")[2]: build.get_field(base, field) for field in term.options}
        assert set(options) == set(parameters) - {"outputs", "axis_name"}, name
        assert options == {option: parameters[option].default for option in options}, name
    assert dataclasses.asdict(Masking()) == {field: base.masking[field] for field in dataclasses.asdict(Masking())}


def test_config_string_chooses_model_and_shrinks():
    config = default.get_config("method=sgt,model=resnet18,runlocal")
    assert (config.method, config.model.name, config.data.limit) == ("sgt", "resnet18", 512)


@pytest.mark.parametrize("method,cell", [("sdecor", "sdecor-blocks-1"), ("ce", "ce"), ("decor", "decor")])
def test_scarce_is_the_setting_of_the_study(method, cell):
    config = tiny_imagenet.get_config(f"method={method},scarce")
    build.check_config(config)
    studied = tiny_imagenet.get_config(f"method={method}")
    for field, value in plan.make(setting.get_config("test_photographs20")).cells[cell].items():
        if field not in ("method", "log.tensorboard") and not field.startswith("data."):
            studied.update_from_flattened_dict({field: value})
    studied.train.batch_size = 96
    ours, theirs = config.to_dict(), studied.to_dict()
    for term, fields in {"consistency": ("masking", "consistency"), "decorrelation": ("decorrelation",)}.items():
        if term not in default.METHODS[method]:
            for name in fields:
                del ours[name], theirs[name]
    assert ours == theirs


def test_scarce_is_refused_where_it_was_not_studied():
    with pytest.raises(ValueError, match="'scarce' does not go with method=gradpen"):
        default.get_config("scarce,method=gradpen")
    with pytest.raises(ValueError, match="'scarce' does not go with init_from"):
        oxford_iiit_pet.get_config("scarce,init_from=x.safetensors")
    assert default.get_config("method=sgt,scarce").train.label_smoothing == 0.1


@pytest.mark.parametrize("arg", ["method=sgdt", "runlocal=1", "scarce=1", "modle=cnn", "model=", "form=densty"])
def test_unknown_config_string_says_what_is_right(arg):
    with pytest.raises(ValueError, match=re.escape("method=ce|sgt|decor|sdecor|gradpen")):
        default.get_config(arg)


@pytest.mark.parametrize("name", ["oxford_iiit_pet", "caltech_birds2011"])
def test_fine_tuning_is_a_word_of_the_config_string(name):
    get_config = importlib.import_module(f"configs.{name}").get_config
    config = get_config("method=sgt,init_from=weights/resnet18.safetensors,model=resnet18")
    build.check_config(config)
    assert (config.model.init_from, config.model.name) == ("weights/resnet18.safetensors", "resnet18")
    assert (config.optim.backbone_lr, config.train.epochs) == (0.1, 30.0)
    assert build.create_model(config, 10, (224, 224, 3)).stem == "imagenet"
    assert get_config("init_from=x.safetensors,runlocal").train.epochs == 2.0
    with pytest.raises(ValueError, match="init_from=FILE, scarce and runlocal"):
        get_config("init_from=")
    with pytest.raises(ValueError, match="'init_from=x.safetensors' is not known"):
        default.get_config("init_from=x.safetensors")


def test_blocks_divide_the_input():
    config = default.get_config()
    config.masking.block = 5
    with pytest.raises(ValueError, match="block = 5 does not divide the network's input of 32×40 .* such as 4"):
        check_blocks(config, (32, 40, 3))
    check_blocks(config, (25, 40, 3))
    config.masking.block, config.masking.fraction = 4, 0.2
    with pytest.raises(ValueError, match="fraction = 0.2 masks none of the 4 blocks .*: use 0.25 or more"):
        check_blocks(config, (8, 8, 3))
    check_blocks(default.get_config("method=ce"), (32, 40, 3))


def test_misspelt_field_is_an_error():
    config = default.get_config()
    config.lock()
    with pytest.raises(AttributeError):
        config.optim.learning_rte = 0.1


IMPOSSIBLE = [
    ("masking.fraction", 1.0, r"\[0, 1\)"),
    ("masking.fraction", -0.1, r"\[0, 1\)"),
    ("masking.fill", "unifrom", "did you mean 'uniform'"),
    ("masking.forward", "frozn", "did you mean 'frozen'"),
    ("masking.order", "lowst", "lowest"),
    ("masking.every", 0, "1 or more"),
    ("masking.block", 0, "1 or more"),
    ("masking.start_epoch", 8.0, r"\[0, 8.0\)"),
    ("train.loss", "bse", "did you mean 'bce'"),
    ("masking.every", 3, "does not divide the 16 images .* such as 2"),
    ("decorrelation.form", "covarianse", "did you mean 'covariance'"),
    ("decorrelation.weight", -1.0, "decorrelation.weight"),
    ("consistency.weight", 0.0, "contradicts config.method = 'sdecor'"),
    ("gradient_penalty.weight", 0.1, "contradicts config.method = 'sdecor', where it is 0"),
    ("gradient_penalty.weight", -0.1, r"\[0, inf\)"),
    ("gradient_penalty.ramp_epochs", -1.0, r"\[0, inf\)"),
    ("gradient_penalty.of", "cross_entrpy", "did you mean 'cross_entropy'"),
    ("optim.momentum", 1.0, "momentum"),
    ("optim.clip_norm", 0.0, "clip_norm"),
    ("optim.lr", float("inf"), "optim.lr"),
    ("data.canvas_fit", "strech", "did you mean 'stretch'"),
    ("data.workers", -1, "workers"),
    ("data.limit", 0, "limit"),
    ("augment.crop_padding", -1, "crop_padding"),
    ("evaluation.map_images", 0, "map_images"),
    ("evaluation.curve_images", 0, "curve_images"),
    ("evaluation.robustness_images", -1, "robustness_images"),
    ("train.batch_size", 100, "multiple of 8"),
    ("train.epochs", 0.0, "train.epochs"),
    ("train.label_smoothing", 1.0, "label_smoothing"),
    ("optim.name", "adam", "adamw"),
    ("optim.ema_decay", 1.0, "ema_decay"),
    ("optim.backbone_lr", 0.0, r"\(0, inf"),
    ("train.freeze", "stage1", "a sequence of names or patterns"),
    ("model.name", "resnet", "resnet"),
    ("model.dtype", "float16", "bfloat16"),
    ("data.loader", "ram", "memory"),
    ("data.val_fraction", 0.0, "val_fraction"),
    ("data.channels", 2, "3"),
    ("data.canvas", 0, "canvas"),
]


@pytest.mark.parametrize(("field", "value", "hint"), IMPOSSIBLE)
def test_impossible_value_names_field_value_and_what_is_right(field, value, hint):
    config = default.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=hint) as error:
        build.check_config(config)
        build.create_data(config)  # validates its own fields before it opens anything
    assert f"config.{field}" in str(error.value) or field.startswith("optim.")
    assert field in str(error.value) and repr(value) in str(error.value).replace("= 100 ", "100 ")


@pytest.mark.parametrize("field", ["consistency.weight", "decorrelation.weight", "decorrelation.variance_weight"])
def test_gradient_penalty_stands_alone(field):
    config = default.get_config("method=gradpen")
    config.update_from_flattened_dict({field: 0.5})
    message = rf"config.{field} = 0.5 contradicts config.method = 'gradpen', where it is 0"
    with pytest.raises(ValueError, match=message):
        build.check_config(config)


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [
        ("decorrelation.weight", 0.1, "no term of the loss .* leave it at 1.0"),
        ("decorrelation.ramp_epochs", 2.0, "leave it at 0.0"),
        ("decorrelation.variance_weight", 1.0, "leave it at 0.0"),
        ("decorrelation.rectify", True, "leave it at False"),
        ("decorrelation.epsilon", 0.0, "above 0"),
        ("decorrelation.group", 0, "group"),
        ("masking.forward", "frozen", "use 'shared' or 'eval'"),
    ],
)
def test_whitening_in_the_network_refuses_fields_of_a_term(field, value, hint):
    config = default.get_config("method=sdecor,form=zca")
    build.check_config(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=hint) as error:
        build.check_config(config)
    assert f"config.{field}" in str(error.value)


def test_whitening_in_the_network_is_no_term_and_wraps_the_model():
    config = default.get_config("method=sdecor,form=zca")
    assert list(build.create_objective(config).terms) == ["consistency"]
    assert build.create_model(config, 10, (32, 32, 3)).layers == ("head",)
    config.update_from_flattened_dict({"decorrelation.layers": ("conv*",), "decorrelation.group": 8})
    model = build.create_model(config, 10, (32, 32, 3), tapped=False)
    assert (model.layers, model.group) == (("conv0", "conv1", "conv2"), 8)


def test_masking_starts_after_its_epoch():
    config = default.get_config("method=sgt")
    config.update_from_flattened_dict({"masking.start_epoch": 2.0, "consistency.ramp_epochs": None})
    hyper = build.create_hyper(config, 10)
    weight = lambda step: float(hyper.weights["consistency"].at(step))  # noqa: E731
    assert [weight(step) for step in (0, 19, 20, 50, 80)] == [0.0, 0.0, 0.0, 0.5, 1.0]
    assert [float(hyper.mask_fraction.at(step)) for step in (0, 19, 20, 80)] == [0.0, 0.0, 0.5, 0.5]


def test_remat_refuses_what_needs_values_from_inside_a_block():
    config = default.get_config("method=sdecor,model=resnet18")
    config.model.remat = "blocks"
    build.check_config(config)
    config.decorrelation.layers = ("activations",)
    with pytest.raises(ValueError, match=r"remat = 'blocks' .* config.decorrelation.layers = \('activations',\)"):
        build.check_config(config)
    config.decorrelation.layers = ()
    config.masking.forward = "frozen"
    with pytest.raises(ValueError, match="remat = 'blocks' .* config.masking.forward = 'frozen'.* use 'shared' or"):
        build.check_config(config)


def test_unknown_layer_lists_the_known_ones():
    config = default.get_config()
    config.decorrelation.layers = ("stage9",)
    model = models.create_model("cnn", num_classes=10)
    known = models.layer_names(model, (32, 32, 3))
    with pytest.raises(ValueError, match="decorrelation.layers") as error:
        build.create_model(config, 10, (32, 32, 3))
    assert known[0] in str(error.value)


def test_layers_may_be_patterns():
    config = default.get_config("model=resnet18")
    config.model.stem = "cifar"
    for patterns, expected in {
        ("stage1/*/norm1", "stage1/block1/norm1"): ("stage1/block1/norm1", "stage1/block2/norm1"),
        ("norm*",): ("norm_stem",),
    }.items():
        config.decorrelation.layers = patterns
        assert build.create_model(config, 10, (32, 32, 3)).layers == expected


@pytest.mark.parametrize("method", ["ce", "sgt", "gradpen"])
def test_a_model_is_tapped_only_for_decorrelation(method):
    config = default.get_config(f"method={method},form=density")
    assert isinstance(build.create_model(config, 10, (32, 32, 3)), models.SmallCNN)


@pytest.mark.parametrize("name", NAMES)
def test_sdecor_is_the_papers_method(name):
    """Every config has cross-entropy, KL under masking and the covariance of the last layer's inputs."""
    config = importlib.import_module(f"configs.{name}").get_config("method=sdecor")
    decor = config.decorrelation
    assert (decor.form, decor.weight, decor.layers) == ("covariance", 0.1, ())
    assert (decor.spatial, decor.rectify) == ("pool", False)
    assert config.consistency.weight > 0 and config.masking.order == "lowest"
    assert not isinstance(build.create_model(config, 10, (32, 32, config.data.channels)), models.Tap)


def test_forms_are_those_of_the_losses_and_their_defaults_are_the_papers():
    assert set(default.FORMS) == set(default.PHOTOGRAPH_FORMS) == {*losses.FORMS, build.WHITENED}
    signature = inspect.signature(losses.decorrelation)
    assert signature.parameters["form"].default == run_folder.PAPERS_FORM == "covariance"
    assert default.base().decorrelation.form == run_folder.PAPERS_FORM


@pytest.mark.parametrize("name", ["default", "tiny_imagenet"])
@pytest.mark.parametrize("form", default.FORMS)
def test_a_form_sets_where_it_is_taken_and_its_weight(name, form):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config(f"method=sdecor,form={form}")
    build.check_config(config)
    row = (default.FORMS if name == "default" else default.PHOTOGRAPH_FORMS)[form]
    assert {field: config.decorrelation[field] for field in ("form", *row)} == {"form": form, **row}
    assert module.get_config(f"method=ce,form={form}").decorrelation.weight == 0


@pytest.mark.parametrize("name", models.MODELS)
def test_density_is_of_all_activations_of_every_model(name):
    shape = (32, 3) if name == "cnn1d" else (32, 32, 3)
    model = build.create_model(default.get_config(f"form=density,model={name}"), 10, shape)
    assert model.layers == model.module.activations


@pytest.mark.parametrize(
    ("arg", "title"),
    {
        "method=sdecor": "sdecor",
        "method=sdecor,form=density": "sdecor (density)",
        "method=decor,form=whitening": "decor (whitening)",
        "method=sgt,form=density": "sgt",
    }.items(),
)
def test_a_run_is_named_by_its_form_where_it_is_not_the_papers(arg, title):
    assert run_folder.title(files.plain(default.get_config(arg))) == title


@pytest.mark.parametrize("epochs", [None, 2.0])
def test_a_ramp_lasts_as_long_as_training_unless_it_is_set(epochs):
    config = default.get_config()
    config.train.epochs, config.consistency.ramp_epochs = 3.5, epochs
    build.check_config(config)
    assert build.create_hyper(config, 10).weights["consistency"].steps == 10 * (epochs or 3.5)


def test_option_of_another_model_is_an_error():
    config = default.get_config()
    config.model.stem = "cifar"
    with pytest.raises(ValueError, match="stem"):
        build.create_model(config, 10, (32, 32, 3))


def test_run_without_steps_is_an_error():
    config = default.get_config()
    config.train.epochs = 0.001
    with pytest.raises(ValueError, match="train.epochs"):
        build.create_schedule(config, 10)


def test_impossible_augmentation_fails_before_training():
    config = default.get_config()
    with config.ignore_type():
        config.augment.resized_crop, config.augment.crop_padding = (0.5, 1.0), 4
    prepare, _ = build.create_preparation(config, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ValueError, match="config.augment: crop_padding = 4 and resized_crop"):
        build.check_preparation(prepare, (32, 32, 3))


@pytest.mark.parametrize("arg", ["", "runlocal", "model=cnn"])
def test_sgt_recipe_is_sgt_whatever_else_is_chosen(arg):
    config = importlib.import_module("configs.sgt_mnist").get_config(arg)
    objective = build.create_objective(config)
    assert config.method == "sgt" and list(objective.terms) == ["consistency"]
