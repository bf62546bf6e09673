"""MNIST recipe of Saliency-Guided Training (Ismail et al. 2021, arXiv 2111.14338), as in its published code.

    python train.py --config=configs/sgt_mnist.py:method=sgt --workdir=runs/sgt_mnist

Positions are ranked by the signed gradient of the log-probability in evaluation mode. The lower half is masked with
uniform noise in the image's own range. KL(clean ‖ masked) has weight 1, with gradients through both predictions.
Adadelta with learning rate 1.0, batch 512. The published code stops early on test accuracy; here the best checkpoint is
chosen on a validation split.
Prepare the data set once, on a machine with TensorFlow and internet access (docs/data.md); reading needs neither.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config, changed by the config string `arg` (configs/default.py)."""
    config = default.base()
    config.method = "sgt"
    config.data.name = "mnist"
    config.data.channels = 1
    config.data.mean = (0.1307,)
    config.data.std = (0.3081,)
    config.model.name = "mnist_net"
    config.optim.name = "adadelta"
    config.optim.lr = 1.0
    config.optim.weight_decay = 0.0
    config.optim.schedule = "constant"
    config.optim.warmup_epochs = 0.0
    config.train.batch_size = 512
    config.train.epochs = 100.0
    config.consistency.weight = 1.0
    config.consistency.ramp_epochs = 0.0
    config.masking.fraction = 0.5
    config.masking.rank_by = "signed"
    config.masking.saliency_of = "log_probability"
    config.masking.forward = "eval"
    config.masking.fill = "uniform"
    return default.choose(config, arg)
