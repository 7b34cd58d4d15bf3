"""Each process says what it does, to the screen and to a file of its own."""

import contextlib
import io
import logging

import pytest

from g1_ray.logs import start_logging

LOGGERS = ("g1_ray", "jobs")


@pytest.fixture(autouse=True)
def as_they_were(monkeypatch):
    """No level from outside, and afterwards the loggers of this process as they were."""
    monkeypatch.delenv("G1_RAY_LOG", raising=False)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    kept = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers = []  # else they would be closed
    yield
    for logger, (handlers, level, propagate) in zip(loggers, kept, strict=True):
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def say():
    log = logging.getLogger("g1_ray.engines.make")
    log.debug("a detail")
    log.info("it starts")
    log.warning("it is late")


def lines(folder, process="engine-0"):
    return [line.partition(" ")[2].partition(" ")[2] for line in (folder / "logs" / f"{process}.log").open()]


TOLD = ["INFO g1_ray.engines.make: it starts\n", "WARNING g1_ray.engines.make: it is late\n"]


def test_a_process_writes_warnings_and_information_to_its_file_and_warnings_to_the_screen(tmp_path, capsys):
    start_logging("engine-0", tmp_path)
    say()
    logging.getLogger("jobs.train").info("at work")
    assert lines(tmp_path) == [*TOLD, "INFO jobs.train: at work\n"]
    assert capsys.readouterr().err == "g1_ray.engines.make: it is late\n"
    start_logging("env-1", tmp_path)  # another process's, and nothing twice
    say()
    assert lines(tmp_path, "env-1") == TOLD and len(lines(tmp_path)) == 3


def test_a_level_shows_more_in_both_places(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("G1_RAY_LOG", "debug")
    start_logging("engine-0", tmp_path)
    say()
    assert lines(tmp_path) == ["DEBUG g1_ray.engines.make: a detail\n", *TOLD]
    assert capsys.readouterr().err.splitlines() == [
        f"g1_ray.engines.make: {what}" for what in ("a detail", "it starts", "it is late")
    ]


def test_errors_alone_on_the_screen_leave_the_file_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("G1_RAY_LOG", "error")
    start_logging("engine-0", tmp_path)
    say()
    assert lines(tmp_path) == TOLD and not capsys.readouterr().err


def test_what_is_said_goes_to_the_screen_of_now(capsys):
    with contextlib.redirect_stderr(io.StringIO()) as before:
        start_logging("engine-0")
    before.close()
    say()
    assert capsys.readouterr().err == "g1_ray.engines.make: it is late\n"


def test_a_folder_that_is_not_here_is_left_out(tmp_path, capsys):
    start_logging("engine-0", tmp_path / "elsewhere")
    say()
    assert not list(tmp_path.iterdir()) and "it is late" in capsys.readouterr().err


def test_a_level_that_is_none_is_named(monkeypatch):
    monkeypatch.setenv("G1_RAY_LOG", "debgu")
    with pytest.raises(ValueError, match="G1_RAY_LOG = 'debgu' is no level; did you mean 'debug'"):
        start_logging("engine-0")
