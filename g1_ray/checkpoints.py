"""Checkpoint folders: whole or not there at all, with a checksum for each file, the newest few kept.

<root>/step-N/                  Hugging Face format: config, weights, tokenizer, processor
<root>/step-N/learner/          master weights and optimizer moments (safetensors), state.json
<root>/step-N/adapter/          LoRA only: the adapter in peft's format
<root>/step-N/manifest.json     SHA-256 of every other file
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d+)")
_BLOCK = 1 << 22


def beside(folder: Path) -> Path:
    """An empty folder in which to write what `publish` makes `folder` of; what a crash left there is removed."""
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def publish(temporary: Path, folder: Path) -> None:
    """Checksums the files of `temporary`, brings them to disk and renames it to `folder`, in place of an older one."""
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {path.relative_to(temporary).as_posix(): _checksum(path, sync=True) for path in files}
    with open(temporary / MANIFEST, "w") as out:
        json.dump(manifest, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _checksum(path: Path, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()


def problem_of(folder: Path) -> str:
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
    found = [(int(m[1]), path) for path in root.glob("step-*") if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if (path / MANIFEST).is_file()]


def latest(root: Path) -> Path | None:
    """The newest checkpoint that is intact; None where there is none."""
    return next((path for path in reversed(checkpoints(root)) if not problem_of(path)), None)


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints."""
    assert keep >= 2, f"keep = {keep}: one checkpoint may break, so two are kept"
    for path in checkpoints(root)[:-keep]:
        shutil.rmtree(path)
