"""The checksums of a folder that was written whole: a checkpoint's, and so a model's."""

import hashlib
import json
import os
from pathlib import Path

from g1_ray.files import part_of, read_json

MANIFEST = "manifest.json"
_BLOCK = 1 << 22


def write_manifest(folder: Path, but: str) -> None:
    """Writes the SHA-256 and the size of every file of a folder, one in it aside, once all of them are on disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / but)
    manifest = {
        path.relative_to(folder).as_posix(): f"{_checksum(path, sync=True)} {path.stat().st_size}" for path in files
    }
    with open(folder / MANIFEST, "w") as out:
        json.dump(manifest, out, indent=1)
        out.flush()
        os.fsync(out.fileno())


def fault_of(folder: Path, but: str = "", only: str = "") -> str:
    """What is wrong with a folder that has a manifest, in a line: '' for nothing. Reads every file, those of the
    subfolder `but` aside, or `only` one."""
    if not (folder / MANIFEST).is_file():
        return f"{folder}: no {MANIFEST}; it is no checkpoint, or was not finished"
    try:
        manifest: dict[str, str] = read_json(part_of(folder, MANIFEST), dict[str, str])
        if not any(name.endswith(".safetensors") and "/" not in name for name in manifest):
            return f"{folder / MANIFEST}: lists no weights, so it is no checkpoint's"
        for name, checksum in manifest.items():
            if (but and name.startswith(f"{but}/")) or (only and name != only):
                continue
            if not part_of(folder, name).is_file():
                return f"{folder}: {name} is missing"
            checksum, _, size = checksum.partition(" ")
            if size and size != str((folder / name).stat().st_size):  # older ones have no sizes
                return f"{folder}: {name} is not of the size that was written"
            if _checksum(folder / name) != checksum:
                return f"{folder}: {name} is not what was written (its SHA-256 differs)"
    except (ValueError, OSError) as error:
        return str(error).partition("\n")[0]
    return ""


def _checksum(path: Path, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()
