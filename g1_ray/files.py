"""Files and folders that are whole or not there, files of lines that outlive a crash, and who may write to a folder.

What is read may come from anybody: it is bounded in size, stays in its folder, and has the shape that is asked for, or
is a `ValueError` that names it.
"""

import contextlib
import fcntl
import functools
import itertools
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pydantic import TypeAdapter

log = logging.getLogger(__name__)
LOCK = ".lock"
MOST_BYTES = 1 << 24
"""Of a file of text or JSON; parsed, it takes twenty times that."""
MOST_BYTES_OF_LINES = 1 << 27
"""Of a JSONL file: a ledger of a million groups."""
MOST_LINES = 2_000_000


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file or a folder to, that becomes `path` at the end; on an error nothing does.

    What a crash left in that place is removed first. Raises `ValueError` where a file would take a folder's place, or a
    folder a file's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    _remove(beside)
    try:
        yield beside
    except BaseException:
        _remove(beside)
        raise
    if path.exists() and path.is_dir() != beside.is_dir():
        _remove(beside)
        raise ValueError(_other_kind(path))
    if not path.is_dir():
        os.replace(beside, path)
        return
    old = path.with_name(f".{path.name}.old")  # a folder that holds something can't be replaced in one go
    _remove(old)
    path.rename(old)
    beside.rename(path)
    _remove(old)


def _other_kind(path: Path) -> str:
    there, name = ("folder", "file") if path.is_dir() else ("file", "folder")
    return f"{path}: there is a {there} of that name, which is not replaced; give the name of a {name}"


def folder_bytes(path: Path) -> int:
    """Of all files in a folder; 0 where there is none."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Renames what is broken to `broken-NAME` beside it, or `broken-2-NAME`, so that nothing is lost; gives that."""
    names = (f"broken-{number}-{path.name}" if number > 1 else f"broken-{path.name}" for number in itertools.count(1))
    aside = next(path.with_name(name) for name in names if not os.path.lexists(path.with_name(name)))
    path.rename(aside)
    return aside


def steps_in(folder: Path) -> list[Path]:
    """What is called `step-N` in a folder, in the order of N."""
    found = [(int(m[1]), path) for path in folder.glob("step-*") if (m := re.fullmatch(r"step-(\d+)", path.name))]
    return [path for _, path in sorted(found)]


def part_of(folder: Path, name: str) -> Path:
    """What is called so in a folder, there or not: a file, or a folder in it.

    Raises `ValueError` where it leads out of the folder, by `..`, an absolute path or a link, and for a pipe.
    """
    path = folder / name
    place = path.resolve()
    if not place.is_relative_to(folder.resolve()):
        raise ValueError(f"{path}: leads out of the folder, to {place}, and is not followed; put the file itself there")
    if place.exists() and not (place.is_file() or place.is_dir()):
        raise ValueError(f"{path}: neither a file nor a folder; remove it")
    return path


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """What is in a file. Raises `ValueError` where that is more than `most` bytes."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path}: is larger than the {most / 1e6:.0f} MB that such a file may have")
    return data


def read_text(path: Path) -> str:
    """A text file that somebody gave, in UTF-8 with or without a byte-order mark, with lines ended by any system.

    Raises `ValueError` that names the file and its encoding, where it is another one.
    """
    return _decoded(path, read_bytes(path))


def _decoded(path: Path, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = next((name for mark, name in WIDE.items() if data.startswith(mark)), "")
        if not wide and b"\0" in data:
            raise ValueError(f"{path}: expected text in UTF-8, and this is no text; give another file") from None
        line = data.count(b"\n", 0, error.start) + 1
        found = f"it is {wide}" if wide else f"byte {data[error.start]:#x} in line {line} is not: latin-1 perhaps"
        raise ValueError(
            f"{path}: expected text in UTF-8, and {found}.\n"
            f"Save it as UTF-8, or convert it: iconv -f {wide or 'latin1'} -t UTF-8 {path} > NEW"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


WIDE = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte-order marks."""


def read_json(path: Path, shape: Any = None, most: int = MOST_BYTES) -> Any:
    """The value of a JSON file that somebody gave, of a `shape`: a type that pydantic knows, looked at strictly.

    Raises `ValueError` that names the file.
    """
    text = _decoded(path, read_bytes(path, most))
    if not text.strip():
        raise ValueError(f"{path}: an empty file, no JSON")
    return _value(text, str(path), shape)


def _value(text: str, where: str, shape: Any) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError, too
        raise ValueError(f"{where}: no JSON ({error})") from None
    return value if shape is None else checked(value, shape, where)


def checked(value: Any, shape: Any, where: str) -> Any:
    """A value, as it is, that has the shape. Raises `ValueError` that says where in `where` it has another."""
    from pydantic import ValidationError

    try:
        _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {place + ': ' if place else ''}{first['msg']}"[:300]) from None
    return value


@functools.cache
def _adapter(shape: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def check_writable(path: Path, kind: Literal["file", "folder", ""] = "") -> None:
    """Raises `ValueError` where nothing of a `kind`, or with '' nothing at all, can be written there: before work is
    done that would be lost.

    Nothing is left: what of the path is not there yet is not made.
    """
    place = path.expanduser().absolute()
    if kind and place.exists() and place.is_dir() != (kind == "folder"):
        raise ValueError(_other_kind(path))
    folder = place if place.is_dir() else next(above for above in place.parents if above.exists())
    try:
        if place.is_file():
            place.open("ab").close()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{path}: can't be written, {folder}: {error.strerror}; give another place") from None


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with written(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    """The same for JSON."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def read_lines(path: Path, shape: Any = None) -> list[Any]:
    """The values of a JSONL file, each of a `shape` (see `read_json`); none where it is not there.

    A last line that a crash cut off is left out. Raises `ValueError` that names the file and the line.
    """
    data = read_bytes(path, MOST_BYTES_OF_LINES) if os.path.lexists(path) else b""
    lines = _decoded(path, _whole_lines(data)).split("\n")[:-1]
    if len(lines) > MOST_LINES:
        raise ValueError(f"{path}: has {len(lines):,} lines, more than the {MOST_LINES:,} that such a file may have")
    return [_value(line, f"{path}, line {number}", shape) for number, line in enumerate(lines, 1)]


def _whole_lines(data: bytes) -> bytes:
    """What a killed process left of a JSONL file, without a last line that is cut off; one that lacks only its end of
    line is whole."""
    before, end, last = data.rpartition(b"\n")
    if last.endswith(b"}"):  # what is cut off earlier closes nothing
        with contextlib.suppress(ValueError):
            json.loads(last)
            return data + b"\n"
    return before + end


def write_lines(path: Path, lines: Sequence[Any]) -> None:
    """Writes a JSONL file, whole or not at all."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def take_back(path: Path, kept: Sequence[Any], back: Sequence[Any], aside: Path) -> None:
    """Leaves the lines `kept` in a JSONL file; those that are taken `back` go to the end of its namesake in `aside`."""
    if back:
        aside.mkdir(exist_ok=True)
        with contextlib.closing(Journal(aside / path.name)) as journal:
            for line in back:
                journal.append(line)
    write_lines(path, kept)


class Journal:
    """A JSONL file that is appended to, each line on disk before the next; opened, and mended, at the first one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def append(self, line: Any) -> None:
        """Adds a line."""
        if self._file is None:
            if self.path.is_symlink():
                raise ValueError(f"{self.path}: is a link, and what it leads to is not written on; put a file there")
            data = self.path.read_bytes() if self.path.is_file() else b""
            if (mended := _whole_lines(data)) != data:
                self.path.write_bytes(mended)
            self._file = self.path.open("a")
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file; another line opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Lock:
    """What makes this process the only one that writes to a folder, until `release` or its end, whatever ends it.

    The folder is made where it is not there. Who only reads needs no lock. It is flock(2) on a file `.lock`, which says
    who has it: between machines it holds on network file systems that know locks, as NFS does by default; on those that
    know none a warning is logged, and nothing keeps two processes apart.

    Raises `ValueError` where another process has the folder, or it can't be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(folder / LOCK, "a+", opener=_no_link)
        except OSError as error:
            raise ValueError(f"{folder} can't be written: {error.strerror}; give another folder") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read() or "another process"
            self._file.close()
            raise ValueError(
                f"{folder} is in use by {owner}.\nWait until that has ended, end it, or give another folder."
            ) from None
        except OSError as error:
            log.warning("%s: no lock can be had (%s); see to it that nobody else writes there", folder, error.strerror)
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        self._file.flush()

    def release(self) -> None:
        """Lets others have the folder."""
        self._file.close()


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def in_use(folder: Path) -> bool:
    """Whether a process has the folder's lock; to be asked by who only looks."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock there, or a file system that knows none
        return False
    return False
