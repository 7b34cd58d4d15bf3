"""Checkpoint folders: whole or not there at all, with a checksum for each file, the newest few kept.

<root>/step-N/                  Hugging Face format: config, weights, tokenizer, processor
<root>/step-N/learner/          master weights and optimizer moments (safetensors), state.json
<root>/step-N/adapter/          LoRA only: the adapter in peft's format
<root>/step-N/README.md         the model card
<root>/step-N/manifest.json     SHA-256 and size of every other file but the card, which is there to be written on
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from g1_ray.files import steps_in, written
from g1_ray.models.card import CARD
from g1_ray.models.manifest import MANIFEST, fault_of, write_manifest


@contextlib.contextmanager
def published(folder: Path) -> Iterator[Path]:
    """An empty folder to write to. At the end its files are checksummed and on disk, and it takes `folder`'s place."""
    with written(folder) as beside:
        beside.mkdir()
        yield beside
        write_manifest(beside, but=CARD)


def checkpoints(root: Path) -> list[Path]:
    """The finished checkpoints in a folder, oldest first."""
    return [path for path in steps_in(root) if (path / MANIFEST).is_file()]


def newest(root: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that is intact, None where none is; and what is wrong with each newer one."""
    broken: dict[Path, str] = {}
    for path in reversed(steps_in(root)):
        if not (fault := fault_of(path)):
            return path, broken
        broken[path] = fault
    return None, broken


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints."""
    assert keep >= 2, f"keep = {keep}: one checkpoint may break, so two are kept"
    for path in checkpoints(root)[:-keep]:
        shutil.rmtree(path)
