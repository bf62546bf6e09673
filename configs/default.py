"""The fields of a run's config: the meaning, unit and default of each, and the reason for the default.

    python train.py --config=configs/default.py:method=sdecor --workdir=runs/sdecor

The default trains the small CNN on the embedded data set `digit_scenes`, which two CPU cores can do. The other files
in this folder change a few fields of this one. The config string, after the colon, is a comma-separated list of

    method=ce|sgt|decor|sdecor|gradpen   training method: the terms of the loss (docs/method.md)
    model=NAME                           network, one of sdecor.models.MODELS
    form=NAME                            form of the decorrelation, one of `FORMS`; covariance is the paper's
    scarce                               setting for about a thousand training images (docs/evidence/setting.md)
    runlocal                             smaller data and training, for a run of about a minute on a desktop
    init_from=FILE                       pretrained weights, with a recipe of fine-tuning, where a file has one

Each field can be changed on the command line: `--config.optim.lr=0.01`.
"""

from ml_collections import ConfigDict, config_dict

# Training method → the config groups whose terms are in its loss. The weights of the other groups become 0.
METHODS = {
    "ce": (),
    "sgt": ("consistency",),
    "decor": ("decorrelation",),
    "sdecor": ("consistency", "decorrelation"),
    "gradpen": ("gradient_penalty",),
}

# Layers to decorrelate: the input of the last linear layer; or the outputs of all ReLUs, where each position of a map
# is a sample.
LAST = {"layers": (), "spatial": "pool", "rectify": False}
ACTIVATIONS = {"layers": ("activations",), "spatial": "positions", "rectify": True}

# The values that form=NAME sets: the layers to decorrelate, and a first weight. Two weights were chosen on validation
# data (docs/evidence.md): covariance 0.1, the best of 0.1, 1 and 10, on photographs only; and density. For each other
# form but zca one weight was tried. On scenes, no form but density was studied.
FORMS = {
    "covariance": {"weight": 0.1, **LAST},
    "correlation": {"weight": 1.0, **LAST},
    "decov": {"weight": 0.01, **LAST},
    "whitening": {"weight": 1.0, **LAST},
    "cosine": {"weight": 1.0, **ACTIVATIONS},
    "density": {"weight": 3.0, **ACTIVATIONS},
    "zca": {"weight": 1.0, **LAST},  # no term of the loss: the network whitens its features; the weight stays 1
}
PHOTOGRAPH_FORMS = FORMS | {"density": {"weight": 1.0, **ACTIVATIONS}}  # there, a weight of 3 lowers the accuracy


def base() -> ConfigDict:
    """Return a config with every field at its default."""
    config = ConfigDict()
    config.method = "sdecor"  # training method; set it by the config string, which also sets the weights
    config.seed = 0  # seed of initialisation, order, augmentation, masks and fills

    config.data = data = ConfigDict()
    # digit_scenes, xai_tris/…, series/…, folder, tiny_imagenet, or a TFDS data set with image and label (docs/data.md)
    data.name = "digit_scenes"
    data.path = config_dict.placeholder(str)  # root directory, for folder and tiny_imagenet
    data.data_dir = config_dict.placeholder(str)  # directory of TFDS data sets; None => ~/tensorflow_datasets
    data.canvas = config_dict.placeholder(int)  # pixels; images are resized to canvas × canvas; None => stored size
    data.canvas_fit = "stretch"  # stretch the whole image, or crop: its center, with its proportions
    data.mask_encoding = "auto"  # encoding of TFDS segmentation masks: binary, trimap, or auto
    data.channels = 3  # 1 or 3; gray images are repeated, color images converted. Of series: their own number
    data.val_fraction = 0.1  # share of train, stratified, if the data set has no validation split
    data.split_seed = 0  # seed of that split; use the same for all runs that are compared
    data.train_fraction = 1.0  # share of the training images that is used, evenly over the classes
    data.mean = config_dict.placeholder(object)  # per channel, in [0, 1]; None => known values, or measured on train
    data.std = config_dict.placeholder(object)  # as for mean
    data.limit = config_dict.placeholder(int)  # number of examples kept of each split; None => all
    # memory (decoded once), grain (streamed), auto (memory if the split fits), or device (decoded once, and kept on the
    # devices, so that only indices travel; docs/data.md). The batches are the same.
    data.loader = "auto"
    data.memory_limit_mb = 4096  # largest decoded split for auto
    data.workers = 0  # number of decoding processes of the grain loader; 0 => threads
    data.on_error = "stop"  # at an example that cannot be read: stop, or skip (leave it out; docs/data.md)

    config.augment = augment = ConfigDict()
    augment.crop_padding = 0  # pixels of black border, before a random crop to the original size
    augment.flip = False  # random horizontal flip (not for digits)
    augment.resized_crop = config_dict.placeholder(object)  # (smallest, largest) share of the area; None => no crop
    augment.size = config_dict.placeholder(int)  # pixels of the model's input; None => the canvas

    config.model = model = ConfigDict()
    model.name = "cnn"  # a name in sdecor.models.MODELS
    model.dtype = "float32"  # compute type: float32 or bfloat16; parameters and statistics stay float32
    # Options of single models; None => the model's own default.
    model.widths = config_dict.placeholder(object)  # cnn, cnn1d: channels of each stage
    model.norm = config_dict.placeholder(str)  # cnn, cnn1d: batch, layer, group or none
    model.dropout = config_dict.placeholder(float)  # cnn, cnn1d, vgg16, vit_*, wide_resnet28_10: rate
    model.stem = config_dict.placeholder(str)  # resnet*: cifar or imagenet
    model.width = config_dict.placeholder(int)  # resnet*: channels of the first stage
    model.stem_stride = config_dict.placeholder(int)  # cnn, cnn1d: 1 or 2
    model.patch_size = config_dict.placeholder(int)  # vit_*: pixels
    model.head = config_dict.placeholder(str)  # vgg16: cifar or imagenet
    # resnet*, wide_resnet28_10, vit_*: what the backward computes again to save memory (docs/performance.md):
    # none or blocks (all of a block but its input).
    model.remat = config_dict.placeholder(str)
    # Weights at the start: a .safetensors file in timm's or torchvision's names, or a run: its folder, or
    # RUN/checkpoints/STEP (docs/pretrained.md); None => drawn.
    model.init_from = config_dict.placeholder(str)

    config.optim = optim = ConfigDict()
    optim.name = "adamw"  # sgd (Nesterov), adamw or adadelta
    optim.lr = 2e-3  # peak of the schedule
    optim.momentum = 0.9  # for sgd only
    optim.weight_decay = 1e-4  # applies to kernels only; decoupled in adamw, L2 in the others
    optim.schedule = "cosine"  # cosine, to zero at the last step, or constant; after the warm-up
    optim.warmup_epochs = 0.5  # linear
    optim.backbone_lr = config_dict.placeholder(float)  # factor on lr for all but the head; None => 1
    optim.clip_norm = config_dict.placeholder(float)  # bound of the global gradient norm; None => no clipping
    optim.ema_decay = config_dict.placeholder(float)  # decay of the parameters' average, for evaluation; None => none

    config.train = train = ConfigDict()
    train.batch_size = 128  # examples over all devices and processes
    train.accumulate = 1  # micro-batches per step; statistics are over batch_size / accumulate examples
    # Steps that one call of the compiled program takes, for small networks that leave an accelerator waiting between
    # steps. It changes no result. Validations and checkpoints by steps end a call: a divisor of their steps is best.
    train.steps_per_call = 1
    train.epochs = 8.0
    train.eval_every_epochs = 1.0  # validation, each time followed by a checkpoint
    train.checkpoint_every_minutes = 10.0  # about the longest time without a checkpoint; 0 => no bound
    train.checkpoint_every_steps = config_dict.placeholder(int)  # additional checkpoints; None => none
    train.loss = "cross_entropy"  # or bce: binary cross-entropy of each class against all others (docs/method.md)
    train.label_smoothing = 0.0
    # Modules whose parameters and BatchNorm statistics stay: paths or patterns such as "stage1" or "norm*", or
    # "backbone", which is all but the head (docs/pretrained.md).
    train.freeze = ()
    # When the loss or its gradient is not finite: stop; skip the step; or rollback to the last good checkpoint and
    # continue with another order of the data (not for replicas). All of it is in metrics.jsonl.
    train.on_nonfinite = "stop"
    train.max_skips = 10  # steps skipped in a row, after which the run stops
    train.max_rollbacks = 3  # rollbacks of a run, after which it stops
    # A checkpoint is good if the loss after it is at most this; None => 100 times the loss of the first step, or 100.
    train.loss_limit = config_dict.placeholder(float)

    config.consistency = consistency = ConfigDict()
    # Weight of KL(p(x) ‖ p(masked x)), SGT's λ. Weight and ramp were chosen on validation data of scenes, together with
    # the density (docs/evidence.md); together with the covariance, none was studied on scenes.
    consistency.weight = 1.0
    consistency.ramp_epochs = config_dict.placeholder(float)  # linear from 0; None => the whole training
    consistency.direction = "clean_masked"  # KL(clean ‖ masked) as in SGT, or masked_clean
    consistency.stop_gradient = False  # whether the clean prediction gets no gradient; SGT: False

    config.masking = masking = ConfigDict()
    masking.fraction = 0.5  # share of masked positions, in [0, 1)
    masking.ramp_epochs = 0.0  # linear from 0
    masking.start_epoch = 0.0  # masked fraction and weight of the consistency are 0 before; ramps begin there
    masking.rank_by = "abs"  # abs: mean |gradient| over channels, or signed (SGT's published code)
    masking.saliency_of = "logit"  # logit of the true class, or log_probability (SGT)
    masking.order = "lowest"  # mask the least salient; highest and alternate (by step) are ablations
    masking.fill = "uniform"  # uniform noise in the image's own range, mean, zero or blur
    masking.blur_sigma = 2.0  # pixels, for fill blur
    masking.forward = "shared"  # forward of the saliency: shared with the loss, frozen or eval (docs/method.md)
    masking.every = 1  # 2 masks every second example of a batch, and so on: a cheaper step (docs/method.md)
    # Side of the square blocks that are masked whole; 1 masks single pixels, as in the paper. A network that reads
    # images with a stride can learn to read a part of the pixels, if the consistency is strong: then use the stride.
    masking.block = 1
    masking.remat = False  # compute the masked forward again in its backward: half the memory (docs/performance.md)

    config.decorrelation = decorrelation = ConfigDict()
    decorrelation.form = "covariance"  # a name in FORMS; set it by form=NAME, which also sets the fields below
    chosen = FORMS[decorrelation.form]
    decorrelation.weight = chosen["weight"]  # for its origin see FORMS
    decorrelation.ramp_epochs = 0.0  # linear from 0
    # Module paths or patterns such as "norm*"; "activations": all layers before a ReLU; (): input of the last layer.
    decorrelation.layers = chosen["layers"]
    decorrelation.spatial = chosen["spatial"]  # for maps [N, H, W, D]: pool over space, or positions as samples
    decorrelation.rectify = chosen["rectify"]  # apply a ReLU first, which turns a layer's output into that of its ReLU
    decorrelation.variance_weight = 0.0  # weight of VICReg's hinge on small standard deviations
    # For correlation, whitening and zca; None => the form's default.
    decorrelation.epsilon = config_dict.placeholder(float)
    decorrelation.iterations = 20  # Newton–Schulz iterations, for whitening and zca
    # For zca, whose layers are linear: the input of a dense layer, the output of a convolution (docs/method.md).
    decorrelation.group = config_dict.placeholder(int)  # features that are whitened together; None => all of a layer
    decorrelation.through_root = True  # whether gradients flow through the whitening matrix

    config.gradient_penalty = gradient_penalty = ConfigDict()
    gradient_penalty.weight = 0.1  # weight of the input gradient's squared norm; for method gradpen only
    gradient_penalty.ramp_epochs = 0.0  # linear from 0
    gradient_penalty.of = "cross_entropy"  # cross_entropy (double backpropagation), log_probabilities (RRR) or logit

    config.evaluation = evaluation = ConfigDict()
    evaluation.batch_size = 200  # examples over all devices; changes no result
    evaluation.map_images = config_dict.placeholder(int)  # random images for metrics of maps; None => all
    evaluation.curve_images = config_dict.placeholder(int)  # images for metrics that evaluate the network; None => all
    evaluation.robustness_images = 100  # images for metrics that explain an image many times; None => all
    evaluation.saliency_of = "logit"  # explained score: logit, log_probability or probability
    evaluation.curve_steps = 16  # points of insertion and deletion curves, after the first
    evaluation.resamples = 2000  # resamples of the bootstrap

    config.log = log = ConfigDict()
    log.every_steps = 10  # steps between lines in metrics.jsonl and TensorBoard
    log.tensorboard = True
    log.progress = True
    return config


def choose(
    config: ConfigDict,
    arg: str = "",
    *,
    forms: dict[str, dict] = FORMS,
    fine_tuned: bool = False,
) -> ConfigDict:
    """Apply a config string such as `method=sdecor,form=density,runlocal` to `config` and return it.

    Args:
      config: config of the run.
      arg: the config string.
      forms: values that `form=NAME` sets for this kind of data: `FORMS` or `PHOTOGRAPH_FORMS`.
      fine_tuned: whether the word `init_from=FILE` is known for this data; it also sets the values of `fine_tuning`.

    Raises:
      ValueError: for an unknown word or method.
    """
    words = [word.partition("=") for word in arg.split(",") if word]
    for name, equals, value in words:
        if name == "method" and value in METHODS:
            config.method = value
        elif name == "model" and value:
            _change_model(config, value)
        elif name == "form" and value in forms:
            config.decorrelation.update({"form": value, **forms[value]})
        elif name == "init_from" and value and fine_tuned:
            config.model.init_from = value
            fine_tuning(config)
        elif name not in ("scarce", "runlocal") or equals:
            tuned = ", init_from=FILE" if fine_tuned else ""
            raise ValueError(
                f"config string {name + equals + value!r} is not known. It is a comma-separated list of "
                f"method={'|'.join(METHODS)}, model=NAME, form={'|'.join(forms)}{tuned}, scarce and runlocal"
            )
    flags = [name for name, equals, _ in words if not equals]
    if "scarce" in flags:
        if config.model.init_from or config.method == "gradpen":
            other = "init_from" if config.model.init_from else "method=gradpen"
            raise ValueError(f"config string 'scarce' does not go with {other}, for which it was not studied")
        few_images(config)
    for group in sorted({group for groups in METHODS.values() for group in groups}):
        if group not in METHODS[config.method]:
            config[group].weight = 0.0
    if "decorrelation" not in METHODS[config.method]:
        config.decorrelation.variance_weight = 0.0
    if "runlocal" in flags:
        shrink(config)
    return config


def _change_model(config: ConfigDict, name: str) -> None:
    """Change the model; its options are kept only within a family, such as resnet18 and resnet50."""
    if name.rstrip("0123456789") != config.model.name.rstrip("0123456789"):
        for option in set(config.model) - {"name", "dtype", "init_from"}:
            config.model[option] = None
    config.model.name = name


def shrink(config: ConfigDict) -> None:
    """Shrink a run to about a minute on two CPU cores, with every part still in use."""
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
    """Return the default config, changed by the config string `arg`."""
    return choose(base(), arg)


def few_images(config: ConfigDict) -> None:
    """Set what was chosen for a thousand photographs of 32×32 and the small CNN, trained to saturation.

    The values belong together (docs/evidence/setting.md): the covariance needs the strong decay to raise accuracy, and
    the consistency needs blocks to have no shortcut. Tune the decay for other data and networks.
    """
    config.optim.name = "adamw"
    config.optim.lr = 2e-3
    config.optim.weight_decay = 3.0
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 5.0
    config.train.batch_size = 96  # 100 in the study, which 8 devices do not divide
    config.train.epochs = 100.0
    config.train.eval_every_epochs = 10.0
    config.consistency.weight = 1.0
    config.consistency.ramp_epochs = 0.0
    config.masking.block = 4
    if config.decorrelation.form == "covariance":
        config.decorrelation.weight = 3.0
    # The covariance makes a network less sure, as smoothing does; methods without it get what was best for them.
    config.train.label_smoothing = {"ce": 0.2, "sgt": 0.1}.get(config.method, 0.0)


def photograph_consistency(config: ConfigDict) -> None:
    """Set the consistency that was chosen on validation data for photographs of 32×32 and the small CNN.

    All forms and their weights were tried with this consistency (docs/evidence.md). For other networks and sizes it is
    a first value that was not measured.
    """
    config.consistency.weight = 0.3
    config.consistency.ramp_epochs = 0.0


def small_photographs(config: ConfigDict) -> None:
    """Set the usual recipe for small photographs on an accelerator: ResNet-18 (CIFAR stem), 200 epochs of SGD."""
    photograph_consistency(config)
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


def large_photographs(config: ConfigDict) -> None:
    """Set the common recipe for photographs of 224×224: ResNet-50 in bfloat16, random resized crops, SGD."""
    photograph_consistency(config)
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


def fine_tuning(config: ConfigDict) -> None:
    """Set a recipe of fine-tuning for photographs of 224×224: a short training at a low learning rate.

    All are first values that were not measured. Mean and standard deviation are ImageNet's, as torchvision's weights
    and timm's ResNets expect them; timm's vit_*_augreg weights expect 0.5 and 0.5.
    """
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.optim.lr = 0.01
    config.optim.backbone_lr = 0.1
    config.optim.warmup_epochs = 1.0
    config.train.epochs = 30.0
    config.train.eval_every_epochs = 1.0
