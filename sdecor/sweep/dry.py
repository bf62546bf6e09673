"""Start every cell dry, in a process of its own: `python -m sdecor.sweep.dry < request.json > answer.json`.

For each cell this parses the flags as train.py does, validates the config, opens the data and builds the model. It also
parses the flags of evaluate.py. The sweep itself starts no JAX backend: that would occupy its accelerators.
"""

import contextlib
import functools
import json
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from sdecor import evaluation, metrics
from sdecor.core import files
from sdecor.core.checks import check_choice
from sdecor.core.commands import config_error
from sdecor.training import build


def main() -> None:
    """Read a request from standard input and write its answer to standard output, both JSON."""
    request = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):  # building a data set may print
        answer = answer_to(request)
    json.dump(answer, sys.stdout)


def answer_to(request: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the cells and the evaluation of a sweep.

    Args:
      request: `cells`, name → `arguments` of train.py and `overrides`; `evaluate`, the arguments of evaluate.py;
        `tests` and `measures` of the sweep.

    Returns:
      `configs`, name → config, and `errors`, a list of texts.
    """
    errors, configs = [], {}
    for name, cell in request["cells"].items():
        try:
            config = read_config(cell["arguments"])
            check_overrides(config, cell["overrides"])
            check_start(config)
            configs[name] = files.plain(config)
        except Exception as error:  # any error would stop the trial as well
            errors.append(f"cell {name!r}: {config_error(error)}")
    try:
        check_evaluation(request["evaluate"], request["tests"], request["measures"])
    except Exception as error:
        errors.append(f"evaluate: {config_error(error)}")
    return {"errors": errors, "configs": configs}


def read_config(arguments: Sequence[str]) -> ConfigDict:
    """Return the config that train.py reads from these arguments."""
    values, argv = flags.FlagValues(), ["train.py", *arguments]
    config_flags.DEFINE_config_file("config", None, "", values, lock_config=True, sys_argv=argv)
    values(argv)
    _ = values.config.method  # the file is read at the first use
    return values.config


def check_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless each field has the value that the sweep file gives it."""
    for field, value in overrides.items():
        if "." not in field:
            continue
        found = functools.reduce(lambda group, name: group[name], field.split("."), config)
        if files.plain(found) != files.plain(value):
            raise ValueError(f"config.{field} = {value!r} was read as {found!r}: give a value of the field's type")


def check_start(config: ConfigDict) -> None:
    """Raise the errors that train.py would raise before its first step."""
    build.check_config(config)
    data = _data(json.dumps(files.plain(config.data), sort_keys=True))
    canvas = tuple(data.image_shape)
    build.create_model(config, data.num_classes, build.image_size(config, canvas))
    prepare, _ = build.create_preparation(config, data.mean, data.std)
    build.check_preparation(prepare, canvas, data.dtype)
    build.create_schedule(config, len(data.source("train")) * config.train.accumulate // config.train.batch_size)


def check_evaluation(arguments: Sequence[str], tests: Sequence[Sequence[str]], measures: Sequence[str]) -> None:
    """Raise an error if evaluate.py would refuse its arguments, or would not compute a measure of the sweep."""
    script = runpy.run_path("evaluate.py", run_name="evaluate")
    script["define_flags"]()
    flags.FLAGS(["evaluate.py", "--workdir=none", *arguments])
    methods = evaluation.choose_methods(flags.FLAGS.methods)
    evaluation.choose_metrics(flags.FLAGS.metrics)
    for key in [*measures, *(test[1] for test in tests)]:
        method, _, measure = key.rpartition("/")
        check_choice(f"measure of {key!r}", measure, metrics.METRICS | metrics.DATASET_METRICS)
        if method:
            check_choice(f"method of {key!r}", method, methods)


@functools.cache
def _data(options: str) -> Any:
    """Open a data set, once for all cells that use it."""
    return build.create_data(ConfigDict({"data": json.loads(options)}))


if __name__ == "__main__":
    main()
