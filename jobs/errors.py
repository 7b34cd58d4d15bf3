"""What went wrong, told to a person in at most three lines: which thing, why, what helps.

    ValueError of our own        as it says
    a package that is missing    which extra has it
    files, folders, disks        which one, and what to do about it
    what a library says of it    its words, where it came from, and how to see all of it

Faults of g1_ray are none of these, and keep their traceback. G1_RAY_DEBUG=1 shows that of everything.
"""

import errno
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from g1_ray.tables import visible

VARIABLE = "G1_RAY_DEBUG"
EXTRAS = {
    "train": (
        "ray", "torch", "torchvision", "transformers", "tokenizers", "peft", "pydantic", "safetensors", "pyarrow",
        "tensorboardX", "tensorboard", "matplotlib", "grpc", "openai", "yaml", "huggingface_hub", "shtab", "psutil",
        "fastapi",
    ),
    "vllm": ("vllm",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
    "trl": ("trl",),
    "export": ("datasets", "inspect_ai", "av"),
}  # fmt: skip
"""Extra of pyproject.toml -> modules that come with it."""
HELPS = {
    errno.EACCES: "give a place that you may write to, or change its permissions",
    errno.EPERM: "give a place that you may write to, or change its permissions",
    errno.EROFS: "give a place that can be written to",
    errno.ENOSPC: "make room there, or give a place on another disk",
    errno.EDQUOT: "make room there, or give a place on another disk",
    errno.ENOENT: "is the path right?",
    errno.ENOTDIR: "one part of that path is a file; give another path",
    errno.EISDIR: "that is a folder; give a file",
    errno.EEXIST: "something of that name is there; give another path",
    errno.ENAMETOOLONG: "give a shorter name",
}
"""What helps where a file can't be read or written."""
OTHERS = ("SafetensorError", "TemplateError", "UndefinedError", "TemplateSyntaxError", "ArrowException", "YAMLError")
"""Errors of libraries about a user's files that are no `ValueError`s; by name, as the library may be missing."""
OURS = ("envs", "g1_ray", "jobs")
MAX_LINE = 400  # characters


def told(error: BaseException) -> str:
    """An error about what a user gave, in one to three lines; '' for any other."""
    error = cause_of(error)
    match error:
        case ModuleNotFoundError():
            lines = _missing(error)
        case SyntaxError(filename=str(file)):
            lines = [f"{file}, line {error.lineno}: {error.msg}"]
        case OSError(errno=int()):
            lines = _file(error)
        case ValueError() if _is_ours(error):
            lines = str(error).splitlines()
        case OSError() | ValueError():
            lines = [*_words(error)[:2], _from(error)]
        case _ if any(kind.__name__ in OTHERS for kind in type(error).__mro__):
            lines = [*_words(error)[:2], _from(error)]
        case _:
            lines = []
    lines = [visible(line) for line in lines[:3]]
    return "\n".join(line if len(line) <= MAX_LINE else line[: MAX_LINE - 3] + "..." for line in lines)


def cause_of(error: BaseException) -> BaseException:
    """What an error of Ray is about: the error of the task, or of the making of an actor."""
    for _ in range(8):
        if type(error).__module__.partition(".")[0] != "ray":
            break
        cause = getattr(error, "cause", None)
        if isinstance(cause, BaseException):
            error = cause
        elif getattr(error, "actor_init_failed", False) and (
            said := re.findall(r"^ValueError: (.+)", str(error), re.M)
        ):
            return ValueError(said[-1])  # Ray keeps but the text
        else:
            break
    return error


def _missing(error: ModuleNotFoundError) -> list[str]:
    """A package that is not installed: one of ours, by its extra, or what a module of the user's own imports."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return [f"this needs the package {module}, which is not installed: {install(extra)}"]
    where = next(iter(_places(error)), None)
    return [] if where is None or _ours(where) else [f"{where}: {error.msg}; install it, or mend that import"]


def install(extra: str) -> str:
    """What installs an extra, e.g. "pip install -e '.[train]' in g1_ray's folder"."""
    return f"pip install -e '.[{extra}]' in g1_ray's folder ({Path(__file__).parents[1]})"


def _file(error: OSError) -> list[str]:
    """A file, a folder or a connection, with the system's words."""
    path = error.filename2 or error.filename
    said = f"{path}: {error.strerror}" if path is not None else str(error.strerror or error)
    helps = HELPS.get(error.errno or 0, "")
    return [f"{said}; {helps}" if helps and (path is not None or error.errno == errno.ENOSPC) else said] + (
        [] if path is not None and helps else [_from(error)]
    )


def _words(error: BaseException) -> list[str]:
    """What an error says, without empty lines; its kind where that is nothing."""
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]


def _from(error: BaseException) -> str:
    """Where a library's error came from."""
    where = next((Path(place).stem for place in _places(error)), "elsewhere")
    return f"({type(error).__name__} in {where}; if it is not about what you gave: {VARIABLE}=1 shows where it arose)"


def _places(error: BaseException) -> Iterator[str]:
    """The files of the traceback, the innermost first, Python's own left out."""
    standard = os.path.dirname(os.__file__)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        own = frame.filename.startswith(standard) and "site-packages" not in frame.filename
        if not own and not frame.filename.startswith("<"):
            yield frame.filename


def _is_ours(error: ValueError) -> bool:
    """Whether our code raised it, or it came out of another process, whose traceback stayed there."""
    frames = traceback.extract_tb(error.__traceback__)
    kind = type(error).__module__.partition(".")[0]
    return kind in OURS or (
        kind == "builtins" and type(error) is ValueError and (not frames or _ours(frames[-1].filename))
    )


def _ours(file: str) -> bool:
    return any(Path(file).is_relative_to(Path(__file__).parents[1] / name) for name in OURS)
