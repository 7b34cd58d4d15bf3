"""Checkpoint folders: whole or not there at all, with a checksum for each file, the newest few kept.

<root>/step-N/                  Hugging Face format: config, weights, tokenizer, processor
<root>/step-N/learner/          master weights and optimizer moments (safetensors), state.json
<root>/step-N/adapter/          LoRA only: the adapter in peft's format
<root>/step-N/README.md         the model card
<root>/step-N/manifest.json     SHA-256 of every other file but the card, which is there to be written on
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from g1_ray.files import steps_in, written
from g1_ray.models.card import CARD

MANIFEST = "manifest.json"
_BLOCK = 1 << 22


@contextlib.contextmanager
def published(folder: Path) -> Iterator[Path]:
    """An empty folder to write to. At the end its files are checksummed and on disk, and it takes `folder`'s place."""
    with written(folder) as beside:
        beside.mkdir()
        yield beside
        files = sorted(path for path in beside.rglob("*") if path.is_file() and path != beside / CARD)
        manifest = {path.relative_to(beside).as_posix(): _checksum(path, sync=True) for path in files}
        with open(beside / MANIFEST, "w") as out:
            json.dump(manifest, out, indent=1)
            out.flush()
            os.fsync(out.fileno())


def _checksum(path: Path, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()


def fault_of(folder: Path) -> str:
    """What is wrong with a checkpoint: '' for nothing. Reads every file."""
    if not (folder / MANIFEST).is_file():
        return f"{folder}: no {MANIFEST}; it is no checkpoint, or was not finished"
    manifest: dict[str, str] = json.loads((folder / MANIFEST).read_text())
    for name, checksum in manifest.items():
        if not (folder / name).is_file():
            return f"{folder}: {name} is missing"
        if _checksum(folder / name) != checksum:
            return f"{folder}: {name} is not what was written (its SHA-256 differs)"
    return ""


def checkpoints(root: Path) -> list[Path]:
    """The finished checkpoints in a folder, oldest first."""
    return [path for path in steps_in(root) if (path / MANIFEST).is_file()]


def latest(root: Path) -> Path | None:
    """The newest checkpoint that is intact; None where there is none."""
    return next((path for path in reversed(checkpoints(root)) if not fault_of(path)), None)


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints."""
    assert keep >= 2, f"keep = {keep}: one checkpoint may break, so two are kept"
    for path in checkpoints(root)[:-keep]:
        shutil.rmtree(path)
