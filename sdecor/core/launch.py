"""The start of train.py and evaluate.py: flags for lists of words, joining a job, and errors as one line."""

import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging

from sdecor.core import compile_cache, interrupt, processes, watchdog
from sdecor.core.commands import FAILED, INTERRUPTED, PARTLY, as_one_line, config_error, leave, program_name

_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join a job of several processes (Slurm, TPU, …).")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, if the cluster does not provide it.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
_PROCESS = flags.DEFINE_integer("process", None, "This process's number, with --coordinator.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat", processes.HEARTBEAT_SECONDS, "Seconds until a dead process ends the job.", lower_bound=1
)
_START_TIMEOUT = flags.DEFINE_integer(
    "start_timeout", processes.START_SECONDS, "Seconds to wait for all processes at the start.", lower_bound=1
)
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder of compiled programs for later starts; '' for none. Default: sdecor/compilation in $XDG_CACHE_HOME or "
    "~/.cache.",
)
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


def run(main: Callable[[], None], *, kept: str) -> None:
    """Parse flags, join the job, call `main` and end with the exit status of `sdecor.core.commands`.

    The compilation cache is opened before `main`. Errors of the request are shown on one line. In a job of several
    processes, all end together.

    Args:
      main: the program.
      kept: sentence about what a stopped program keeps.
    """
    interrupt.install()

    def started(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"{program_name()}: unknown argument {argv[1]!r}; flags have the form --name=value")
        logging.set_verbosity(logging.WARNING)
        status = 0
        try:
            _guarded(_join)
            _guarded(lambda: compile_cache.use(_CACHE.value))
            _guarded(lambda: _watched(main))
        except BaseException as error:
            status, text = _ending(error, kept)
            if not _is_agreed(error):
                processes.end_together(status, text)  # does not return in a job of several processes
            if isinstance(error, KeyboardInterrupt):
                leave(status)  # Python's shutdown may crash while a thread of XLA still compiles
        with interrupt.Interrupt():
            _guarded(processes.finish)
            interrupt.ignore()
        sys.exit(status)

    app.run(started, flags_parser=lambda argv: _guarded(lambda: flags.FLAGS(argv), extra=(AttributeError, OSError)))


def _watched(main: Callable[[], None]) -> None:
    with watchdog.Watchdog(_WATCHDOG.value, program_name(), leave=_leave):
        main()


def _leave(status: int) -> NoReturn:
    processes.end_together(status, f"{program_name()} makes no progress")
    leave(status)


def _is_agreed(error: BaseException) -> bool:
    """Return whether all processes end so, each when it has saved."""
    return isinstance(error, SystemExit) and error.code in (INTERRUPTED, PARTLY)


def _ending(error: BaseException, kept: str) -> tuple[int, str]:
    """Print an error that ends the program; return its exit status and its text."""
    if isinstance(error, KeyboardInterrupt):
        status, text = INTERRUPTED, f"{program_name()}: stopped. {kept}"
    elif isinstance(error, SystemExit):
        status, text = (FAILED, error.code) if isinstance(error.code, str) else (error.code or 0, "")
        if not text and error.__context__ is not None:  # printed already
            return status, str(error.__context__)
    else:
        traceback.print_exception(error)
        status, text = FAILED, ""
    if text:
        print(text, file=sys.stderr, flush=True)
    return status, text or f"status {status}"


def _guarded(action: Callable, extra: tuple[type[Exception], ...] = ()) -> object:
    with as_one_line(program_name(), (*EXPECTED, *extra, flags.Error), config_error):
        try:
            return action()
        except Exception as error:
            if processes.is_lost_process(error):
                processes.end_alone()
            raise


def _join() -> None:
    named = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if any(value is not None for value in named) and None in named:
        raise ValueError("--coordinator, --processes and --process belong together: give all three, or --distributed")
    if _DISTRIBUTED.value or _COORDINATOR.value:
        processes.join(*named, heartbeat=_HEARTBEAT.value, start_timeout=_START_TIMEOUT.value)
