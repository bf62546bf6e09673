"""Build the objects of a run from its config.

Only this folder, train.py, evaluate.py, `training.run`, `training.preview`, `evaluation.runs` and `sdecor.sweep` read
configs; other files take plain values.
"""

from sdecor.training.build.checks import check_config as check_config
from sdecor.training.build.inputs import (
    DataFacts as DataFacts,
    assume_facts as assume_facts,
    check_preparation as check_preparation,
    create_data as create_data,
    create_preparation as create_preparation,
    image_size as image_size,
    read_facts as read_facts,
)
from sdecor.training.build.loss import (
    MASK_RAMP as MASK_RAMP,
    create_hyper as create_hyper,
    create_objective as create_objective,
    get_field as get_field,
)
from sdecor.training.build.network import (
    WHITENED as WHITENED,
    create_model as create_model,
    warn_small_batch as warn_small_batch,
    without_whitening as without_whitening,
)
from sdecor.training.build.program import (
    Program as Program,
    change_method as change_method,
    create_program as create_program,
    create_replicas as create_replicas,
)
from sdecor.training.build.schedule import (
    Schedule as Schedule,
    create_learning_rate as create_learning_rate,
    create_policy as create_policy,
    create_schedule as create_schedule,
)
from sdecor.training.build.weights import (
    create_state as create_state,
    initialise_from as initialise_from,
    state_shapes as state_shapes,
)
