"""The start of train.py and evaluate.py: flags for lists of words, joining a job, and errors as one line."""

import os
import sys
from collections.abc import Callable

from absl import app, flags, logging

from sdecor.core import parallel, watchdog
from sdecor.core.commands import as_one_line, config_error

_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join a job of several processes (Slurm, TPU, …).")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, if the cluster does not provide it.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
_PROCESS = flags.DEFINE_integer("process", None, "This process's number, with --coordinator.")
_WATCHDOG = flags.DEFINE_float("watchdog", 1800.0, "End after so many seconds without progress; 0: never.")

EXPECTED = (ValueError, FileNotFoundError, FloatingPointError)  # errors in the request, not in the program


class _Words(flags.ListParser):
    """A parser of lists whose words may have commas in brackets."""

    def __init__(self, split: Callable[[str], list[str]]):
        super().__init__()
        self._split = split

    def parse(self, argument: str | list[str] | None) -> list[str]:
        """Return the words of a command line's argument, or those given as a default."""
        return self._split(argument) if isinstance(argument, str) else list(argument or ())


def define_words(name: str, default: list[str], about: str, split: Callable[[str], list[str]]) -> None:
    """Define a flag whose value is a list of words; `split` divides the command line's text into words."""
    flags.DEFINE(_Words(split), name, default, about, serializer=flags.ListSerializer(","))


def define_optional(
    name: str, default: str, about: str, values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder[str | None]:
    """Define a flag that is None if absent, `default` as `--name`, and VALUE as `--name=VALUE`."""
    parser = flags.ArgumentParser()
    flag = flags.Flag(parser, flags.ArgumentSerializer(), name, None, about)
    flag.boolean = True  # absl then takes the flag without a value, as "true" (or as "false" with --noNAME)
    parser.parse = lambda text: {"true": default, "false": None}.get(text, text)
    return flags.DEFINE_flag(flag, values)


def run(main: Callable[[], None]) -> None:
    """Parse flags, join the job and call `main`; `as_one_line` handles expected errors."""

    def started(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"{os.path.basename(sys.argv[0])}: unknown argument {argv[1]!r}; flags have the form --name=value")
        logging.set_verbosity(logging.WARNING)
        _guarded(_join)
        _guarded(lambda: _watched(main))

    app.run(started, flags_parser=lambda argv: _guarded(lambda: flags.FLAGS(argv), extra=(AttributeError, OSError)))


def _watched(main: Callable[[], None]) -> None:
    with watchdog.Watchdog(_WATCHDOG.value, os.path.basename(sys.argv[0])):
        main()


def _guarded(action: Callable, extra: tuple[type[Exception], ...] = ()) -> object:
    with as_one_line(os.path.basename(sys.argv[0]), (*EXPECTED, *extra, flags.Error), config_error):
        return action()


def _join() -> None:
    named = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if any(value is not None for value in named) and None in named:
        raise ValueError("--coordinator, --processes and --process belong together: give all three, or --distributed")
    if _DISTRIBUTED.value or _COORDINATOR.value:
        parallel.initialize(*named)
