"""Every field of a run, once: its meaning, its unit and why it has its value.

    python train.py --config=configs/default.py:method=sdecor --workdir=runs/sdecor

The default is the embedded data set `digit_scenes` and the small CNN, small enough for two CPU cores. The other
files in this folder are short differences over this one. The string after the colon chooses

    method=ce|sgt|decor|sdecor|gradpen   which terms the loss has (docs/method.md)
    model=NAME                           any name in sdecor.models.MODELS
    form=NAME                            the decorrelation: covariance is the paper's, the others are in `FORMS`
    runlocal                             shrink everything to about a minute at a desk

and every field can be changed on the command line: `--config.optim.lr=0.01`.
"""

from ml_collections import ConfigDict, config_dict

# Training methods by name: the groups below whose terms the loss has. The weights of the others become 0.
METHODS = {
    "ce": (),
    "sgt": ("consistency",),
    "decor": ("decorrelation",),
    "sdecor": ("consistency", "decorrelation"),
    "gradpen": ("gradient_penalty",),
}

# What enters the last linear layer; or all that ReLUs let through, each position of a map as a sample.
LAST = {"layers": (), "spatial": "pool", "rectify": False}
ACTIVATIONS = {"layers": ("activations",), "spatial": "positions", "rectify": True}

# What form=NAME sets: where the decorrelation is taken, and the weight to begin with. From validation data
# (docs/evidence.md): covariance 0.1, the best of 0.1, 1 and 10, on photographs alone; density. Not studied: the other
# weights, of which one value was tried, and any form but density on scenes.
FORMS = {
    "covariance": {"weight": 0.1, **LAST},
    "correlation": {"weight": 1.0, **LAST},
    "decov": {"weight": 0.01, **LAST},
    "whitening": {"weight": 1.0, **LAST},
    "cosine": {"weight": 1.0, **ACTIVATIONS},
    "density": {"weight": 3.0, **ACTIVATIONS},
}
PHOTOGRAPHS = FORMS | {"density": {"weight": 1.0, **ACTIVATIONS}}  # there a density of 3 costs accuracy


def base() -> ConfigDict:
    """Return every field with its default."""
    config = ConfigDict()
    config.method = "sdecor"  # which cell of the method; set by the config string, recorded for tables
    config.seed = 0  # of initialisation, order, augmentation, masks and fills alike

    config.data = data = ConfigDict()
    data.name = "digit_scenes"  # digit_scenes, folder, tiny_imagenet, or any TFDS name with image and label
    data.path = config_dict.placeholder(str)  # root of a folder or tiny_imagenet data set
    data.data_dir = config_dict.placeholder(str)  # where TFDS data sets lie; None => ~/tensorflow_datasets
    data.canvas = config_dict.placeholder(int)  # pixels; images are resized to canvas × canvas; None => as stored
    data.canvas_fit = "stretch"  # the whole image whatever its shape, or crop: its proportions and its centre
    data.mask_encoding = "auto"  # of a TFDS segmentation_mask: binary, trimap, or auto
    data.channels = 3  # 1 or 3; grey images are repeated, colour images converted
    data.val_fraction = 0.1  # of train, stratified, where the data set has no validation split
    data.split_seed = 0  # of that split: the same for all runs that are compared
    data.mean = config_dict.placeholder(object)  # per channel in [0, 1]; None => known, or measured on train
    data.std = config_dict.placeholder(object)  # the same
    data.limit = config_dict.placeholder(int)  # examples kept of each split; None => all
    data.loader = "auto"  # memory (decoded once), grain (streams), or auto: memory where it fits
    data.memory_limit_mb = 4096  # what "fits" means
    data.workers = 0  # decoding processes of the grain loader; 0 => threads

    config.augment = augment = ConfigDict()
    augment.crop_padding = 0  # pixels of black border before a random crop of the original size
    augment.flip = False  # random horizontal flip (not for digits)
    augment.resized_crop = config_dict.placeholder(object)  # (least, most) share of the area; None => none
    augment.size = config_dict.placeholder(int)  # pixels the model sees; None => the canvas

    config.model = model = ConfigDict()
    model.name = "cnn"  # a name in sdecor.models.MODELS
    model.dtype = "float32"  # of compute: float32 or bfloat16; parameters and statistics stay float32
    # Options of single models; None => the model's own default.
    model.widths = config_dict.placeholder(object)  # cnn: channels of each stage
    model.norm = config_dict.placeholder(str)  # cnn: batch, layer, group or none
    model.dropout = config_dict.placeholder(float)  # cnn, vgg16, vit_*, wide_resnet28_10: rate
    model.stem = config_dict.placeholder(str)  # resnet*: cifar or imagenet
    model.stem_stride = config_dict.placeholder(int)  # cnn: 1 or 2
    model.patch_size = config_dict.placeholder(int)  # vit_*: pixels

    config.optim = optim = ConfigDict()
    optim.name = "adamw"  # sgd (Nesterov), adamw or adadelta
    optim.lr = 2e-3  # peak
    optim.momentum = 0.9  # sgd only
    optim.weight_decay = 1e-4  # of kernels only; decoupled in adamw, L2 in the others
    optim.schedule = "cosine"  # to zero at the last step, or constant; both after the warm-up
    optim.warmup_epochs = 0.5  # linear
    optim.clip_norm = config_dict.placeholder(float)  # of the global gradient; None => no clipping
    optim.ema_decay = config_dict.placeholder(float)  # of the parameters, used in evaluation; None => no average

    config.train = train = ConfigDict()
    train.batch_size = 128  # examples over all devices and processes
    train.accumulate = 1  # micro-batches a step; statistics are taken over batch_size / accumulate examples
    train.epochs = 8.0
    train.eval_every_epochs = 1.0  # on the validation split; each evaluation is followed by a checkpoint
    train.checkpoint_every_steps = config_dict.placeholder(int)  # besides; None => only after evaluations
    train.label_smoothing = 0.0

    config.consistency = consistency = ConfigDict()
    # Of KL(p(x) ‖ p(masked x)), SGT's λ. Weight and ramp: chosen on scenes, on validation data, beside the density
    # (docs/evidence.md); beside the covariance none was studied there.
    consistency.weight = 1.0
    consistency.ramp_epochs = config_dict.placeholder(float)  # linear from 0; None => through the whole training
    consistency.direction = "clean_masked"  # KL(clean ‖ masked) as in SGT, or masked_clean
    consistency.stop_gradient = False  # through the clean prediction; SGT lets it flow

    config.masking = masking = ConfigDict()
    masking.fraction = 0.5  # of the positions, in [0, 1)
    masking.ramp_epochs = 0.0  # linear from 0
    masking.rank_by = "abs"  # mean of |gradient| over channels, or signed (SGT's published code)
    masking.saliency_of = "logit"  # of the true class, or log_probability (SGT)
    masking.order = "lowest"  # least salient masked; highest and alternate (by step) are ablations
    masking.fill = "uniform"  # in the image's own range; mean, zero or blur
    masking.blur_sigma = 2.0  # pixels, for blur
    masking.forward = "shared"  # saliency through the loss's own forward; frozen or eval (docs/method.md)

    config.decorrelation = decorrelation = ConfigDict()
    decorrelation.form = "covariance"  # the paper's; a name in FORMS, and better chosen by form=NAME
    chosen = FORMS[decorrelation.form]
    decorrelation.weight = chosen["weight"]  # where it comes from is said at FORMS
    decorrelation.ramp_epochs = 0.0  # linear from 0
    # Module paths or patterns such as "norm*"; "activations": all that a ReLU follows; () => before the last layer.
    decorrelation.layers = chosen["layers"]
    decorrelation.spatial = chosen["spatial"]  # of maps [N, H, W, D]: pool over space, or positions as samples
    decorrelation.rectify = chosen["rectify"]  # ReLU first: a layer before one then stands for what comes after it
    decorrelation.variance_weight = 0.0  # of VICReg's hinge on small standard deviations
    decorrelation.epsilon = config_dict.placeholder(float)  # of correlation and whitening; None => the form's own
    decorrelation.iterations = 20  # of Newton–Schulz, for whitening

    config.gradient_penalty = gradient_penalty = ConfigDict()
    gradient_penalty.weight = 0.1  # of the input gradient's squared norm, over pixels and channels; method gradpen only
    gradient_penalty.ramp_epochs = 0.0  # linear from 0
    gradient_penalty.of = "cross_entropy"  # double backpropagation; log_probabilities (RRR) or the true class's logit

    config.evaluation = evaluation = ConfigDict()
    evaluation.batch_size = 200  # over all devices; changes no result
    evaluation.map_images = config_dict.placeholder(int)  # chosen at random, for measures of maps; None => all
    evaluation.curve_images = config_dict.placeholder(int)  # for measures that evaluate the network; None => all
    evaluation.robustness_images = 100  # for measures that explain an image many times; None => all
    evaluation.saliency_of = "logit"  # what is explained: logit, log_probability or probability
    evaluation.curve_steps = 16  # points of insertion and deletion curves after the first
    evaluation.resamples = 2000  # of the bootstrap

    config.log = log = ConfigDict()
    log.every_steps = 10  # lines in metrics.jsonl and TensorBoard
    log.tensorboard = True
    log.progress = True
    return config


def choose(config: ConfigDict, arg: str = "", *, forms: dict[str, dict] = FORMS) -> ConfigDict:
    """Apply a config string such as `method=sdecor,form=density,runlocal` to `config` and return it.

    Args:
      config: of the run.
      arg: the config string.
      forms: what `form=NAME` sets, for data of this kind: `FORMS` or `PHOTOGRAPHS`.

    Raises:
      ValueError: for a word or a method that is not known.
    """
    words = [word.partition("=") for word in arg.split(",") if word]
    for name, equals, value in words:
        if name == "method" and value in METHODS:
            config.method = value
        elif name == "model" and value:
            _change_model(config, value)
        elif name == "form" and value in forms:
            config.decorrelation.update({"form": value, **forms[value]})
        elif name != "runlocal" or equals:
            raise ValueError(
                f"config string {name + equals + value!r} is not known. It is a comma-separated list of "
                f"method={'|'.join(METHODS)}, model=NAME, form={'|'.join(forms)} and runlocal"
            )
    for group in sorted({group for groups in METHODS.values() for group in groups}):
        if group not in METHODS[config.method]:
            config[group].weight = 0.0
    if "decorrelation" not in METHODS[config.method]:
        config.decorrelation.variance_weight = 0.0
    if any(name == "runlocal" for name, _, _ in words):
        shrink(config)
    return config


def _change_model(config: ConfigDict, name: str) -> None:
    """Choose another model; options of the former one are kept only within a family, such as resnet18 and resnet50."""
    if name.rstrip("0123456789") != config.model.name.rstrip("0123456789"):
        for option in set(config.model) - {"name", "dtype"}:
            config.model[option] = None
    config.model.name = name


def shrink(config: ConfigDict) -> None:
    """Make a run last about a minute on two CPU cores, with every part still exercised."""
    config.data.limit = 512
    if (config.data.canvas or 0) > 64:
        config.data.canvas = 64
        config.augment.size = None
    config.optim.warmup_epochs = 0.25
    config.train.batch_size = 32 * config.train.accumulate
    config.train.epochs = 2.0
    config.train.eval_every_epochs = 1.0
    config.train.checkpoint_every_steps = None
    config.evaluation.batch_size = 64
    config.evaluation.curve_images = 64
    config.evaluation.robustness_images = 32
    config.log.every_steps = 1


def get_config(arg: str = "") -> ConfigDict:
    """Return the default run, changed by the config string `arg`."""
    return choose(base(), arg)


def spare(config: ConfigDict) -> None:
    """Set the consistency that was chosen for photographs of 32×32 and the small CNN, on validation data.

    It is the one beside which the forms and their weights were tried there (docs/evidence.md). For other networks and
    sizes it is where to begin, and not measured.
    """
    config.consistency.weight = 0.3
    config.consistency.ramp_epochs = 0.0


def cifar(config: ConfigDict) -> None:
    """Set the usual recipe for small photographs on an accelerator: ResNet-18 (CIFAR stem), 200 epochs of SGD."""
    spare(config)
    config.model.name = "resnet18"
    config.model.stem = "cifar"
    config.augment.flip = True
    config.augment.crop_padding = 4
    config.optim.name = "sgd"
    config.optim.lr = 0.1
    config.optim.weight_decay = 5e-4
    config.optim.warmup_epochs = 5.0
    config.train.epochs = 200.0
    config.train.eval_every_epochs = 5.0
    config.log.every_steps = 50


def photographs(config: ConfigDict) -> None:
    """Set what photographs of 224×224 have in common: ResNet-50 in bfloat16, random resized crops, SGD."""
    spare(config)
    config.data.canvas = 256
    config.augment.size = 224
    config.augment.resized_crop = (0.25, 1.0)
    config.augment.flip = True
    config.model.name = "resnet50"
    config.model.stem = "imagenet"
    config.model.dtype = "bfloat16"
    config.optim.name = "sgd"
    config.optim.lr = 0.05
    config.optim.weight_decay = 1e-4
    config.optim.warmup_epochs = 5.0
    config.train.batch_size = 64
    config.train.epochs = 200.0
    config.train.eval_every_epochs = 5.0
    config.evaluation.batch_size = 64
