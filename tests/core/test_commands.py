"""Tests of what the command lines share: errors as one text without a traceback of our own, values from text."""

import pytest

from sdecor.core.commands import RETRY, TemporaryFailure, as_one_line, config_error, parse_value

# What a process that died wrote, and what the config library makes of an error in a config file.
TRACEBACK = 'it ended with status 1:\nTraceback (most recent call last):\n  File "x.py"\nMemoryError'
OF_A_CONFIG = 'Error whilst reading:\nTraceback (most recent call last):\n  File "x.py"\nValueError: no such method'


def ending(error, **options):
    with pytest.raises(SystemExit) as ended, as_one_line("program", (ValueError, AttributeError), **options):
        raise error
    return ended.value.code


def test_the_text_of_an_error_is_whole():
    assert ending(ValueError(TRACEBACK)) == f"program: {TRACEBACK}"


def test_an_error_in_a_config_is_its_last_line():
    assert ending(ValueError(OF_A_CONFIG), text=config_error) == "program: no such method"
    quoted = AttributeError(str(KeyError("lrr, did you mean 'lr'?")))
    assert ending(quoted, text=config_error) == "program: no such field: lrr, did you mean 'lr'?"


def test_a_fault_of_the_surroundings_has_a_status_of_its_own(capsys):
    assert ending(TemporaryFailure("the disk is full")) == RETRY
    assert capsys.readouterr().err == "program: the disk is full\n"


def test_the_traceback_can_be_shown(monkeypatch):
    monkeypatch.setenv("SDECOR_TRACEBACK", "1")
    with pytest.raises(ValueError, match="wrong"), as_one_line("program", (ValueError,)):
        raise ValueError("wrong")


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("(1, 2)", (1, 2)), ("None", None), ("1e-3", 1e-3), ("blur", "blur")]
)
def test_a_value_from_text(text, value):
    assert parse_value(text) == value
