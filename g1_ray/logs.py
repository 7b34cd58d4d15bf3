"""Logging: each module has a logger of its own name, `log = logging.getLogger(__name__)`, each process this set-up.

Warnings go to the screen, and with information to `logs/<process>.log` in the run's folder. `G1_RAY_LOG=debug` shows
everything in both places, `info` what the files have.
"""

import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from envs.options import nearest
from g1_ray.tables import visible

VARIABLE = "G1_RAY_LOG"
LEVELS = ("debug", "info", "warning", "error")
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Formatter(logging.Formatter):
    """Quotes what others said such that it can be looked at on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class _Screen(logging.StreamHandler[TextIO]):
    """Writes to whatever stderr is at the time; the one of before may be closed (pytest, notebooks)."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def start_logging(process: str, folder: Path | None = None) -> None:
    """Sets up the loggers of this process, which is called e.g. "engine-0"; a `folder` that is not here is left out.

    Raises `ValueError` where `G1_RAY_LOG` is no level.
    """
    wanted = os.environ.get(VARIABLE) or "warning"
    if wanted.lower() not in LEVELS:
        raise ValueError(f"{VARIABLE} = {wanted!r} is no level{nearest(wanted.lower(), LEVELS)}")
    level = getattr(logging, wanted.upper())
    handlers: list[logging.Handler] = [_Screen()]
    handlers[0].setLevel(level)
    if folder is not None and folder.is_dir():
        (folder / "logs").mkdir(exist_ok=True)
        handlers.append(logging.FileHandler(folder / "logs" / f"{process}.log", encoding="utf-8"))
        handlers[1].setLevel(min(level, logging.INFO))
    for name in ("g1_ray", "jobs"):
        logger = logging.getLogger(name)
        for old in logger.handlers[:]:
            logger.removeHandler(old)
            old.close()
        for handler in handlers:
            handler.setFormatter(_Formatter(_FORMAT if handler is not handlers[0] else "%(name)s: %(message)s"))
            logger.addHandler(handler)
        logger.setLevel(min(handler.level for handler in handlers))
        logger.propagate = False
