"""Whether a run fits on a cluster, before it starts.

A node is what Ray says it has: {"CPU": 8, "GPU": 1, "memory": 3e10, "accelerator_type:H100": 1}; memory in bytes. A
label of it is there as {"label g1-ray-role=learner": 1}.
"""

import functools
import math
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from g1_ray.cluster import kuberay
from g1_ray.cluster.memory import KNOWN, ModelShape, Need, gb, memory_table, needs_of, shape_of
from g1_ray.config import RunConfig

Node = Mapping[str, float]
"""Resources of a node by name; what is left out, such as memory, is not checked."""
RAY_HEAD, RAY_MAX_WORKERS = "ray.head.default", 2
"""What Ray takes where a cluster file does not say."""
GPU_MEMORY = "gpu_memory"
"""Bytes of each GPU of a node, where they are known; Ray has no such resource."""


def gpu_memory(node: Node) -> float:
    """Bytes of each GPU of a node; 0: unknown."""
    if GPU_MEMORY in node:
        return node[GPU_MEMORY]
    types = [name.partition(":")[2] for name in node if name.startswith("accelerator_type:")]
    return max((KNOWN["gpu_gib"].get(kind, 0) * 2.0**30 for kind in types), default=0.0)


def this_machine() -> list[Node]:
    """The machine that this runs on, as Ray would see it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
        file = Path("/sys/fs/cgroup") / name
        if file.is_file() and file.read_text().strip().isdecimal():
            limits.append(int(file.read_text()))
    node = {"CPU": float(len(os.sched_getaffinity(0))), "memory": kuberay.HEAP_SHARE * min(limits)}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.split("\n")
        gpus = [name for name in names if name.strip()]
        node["GPU"] = float(len(gpus))
        for kind in sorted(KNOWN["gpu_gib"], key=len):
            if gpus and kind in gpus[0].replace(" ", "-"):
                node[f"accelerator_type:{kind}"] = 1.0
    return [node]


def nodes_of_ray(nodes: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The living nodes of `ray.nodes()`."""
    return [{**node["Resources"], **_labels(node.get("Labels"))} for node in nodes if node["Alive"]]


def _labels(labels: Mapping[str, str] | None) -> dict[str, float]:
    return {f"label {key}={value}": 1.0 for key, value in (labels or {}).items()}


def nodes_of_yaml(path: str | Path) -> list[Node]:
    """The nodes that a cluster file allows when it is scaled up all the way; what it leaves out is what Ray takes.

    A file for `ray up`, or a manifest for KubeRay. Where the types allow more workers than the cluster as a whole, they
    get one each in turn until it is full. Raises `ValueError` of at most three lines.
    """
    values = _yaml(path)
    if isinstance(values, dict) and values.get("kind") in kuberay.KINDS:
        try:
            pods = list(kuberay.groups_of(values))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return [{**resources, **_labels(labels)} for resources, labels, count in pods for _ in range(count)]
    kinds, head, most = _kinds_of(path, values)
    left = {}
    for name, kind in kinds.items():
        left[name] = _number(path, f"{name}.max_workers", kind.get("max_workers", 0 if name == head else most))
        if left[name] and not (kind.get("resources") or {}).get("CPU"):
            raise ValueError(
                f"{path}: {name} says no resources, or no CPU; Ray finds them out once such a node has started.\n"
                "Write down what it has, such as resources: {CPU: 32, GPU: 4}."
            )
    nodes: list[Node] = [_node_of(kinds[head])]
    while len(nodes) <= most and any(left.values()):
        for name in left:
            if left[name] and len(nodes) <= most:
                left[name] -= 1
                nodes.append(_node_of(kinds[name]))
    return nodes


def _node_of(kind: Mapping[str, Any]) -> Node:
    return {**(kind.get("resources") or {}), **_labels(kind.get("labels"))}


def _yaml(path: str | Path) -> Any:
    import yaml

    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such cluster file")
    try:
        return yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not YAML: {' '.join(str(error).split())[:200]}") from None


def _kinds_of(path: str | Path, values: Any) -> tuple[dict[str, Any], str, int]:
    """The node types of a cluster file, the name of the head's, and the most workers of all types."""
    kinds = values.get("available_node_types") if isinstance(values, dict) else None
    if not isinstance(kinds, dict) or not all(isinstance(kind, dict) for kind in kinds.values()) or not kinds:
        raise ValueError(
            f"{path}: no node types in it; a cluster file for `ray up` has available_node_types, a "
            f"manifest for KubeRay is a {', '.join(kuberay.KINDS)}"
        )
    for name, kind in kinds.items():
        resources = kind.get("resources") or {}
        numbers = resources.values() if isinstance(resources, dict) else [resources]
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError(f"{path}: {name}.resources = {resources!r}: numbers by name, such as {{CPU: 32, GPU: 4}}")
    head = values.get("head_node_type", RAY_HEAD)
    if head not in kinds:
        raise ValueError(f"{path}: head_node_type = {head!r} is not among its node types: {', '.join(map(str, kinds))}")
    return kinds, head, _number(path, "max_workers", values.get("max_workers", RAY_MAX_WORKERS))


def _number(path: str | Path, key: str, value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{path}: {key} = {value!r}: a whole number, 0 or more")
    return value


def nodes_assumed(text: str) -> list[Node]:
    """Nodes that are not there: `8x80GB,4x24GB` is one node with eight GPUs of 80 GB and one with four of 24 GB.

    GB as cards are sold by, 2^30 bytes. CPUs and memory of the nodes are not checked. Raises `ValueError`.
    """
    nodes: list[Node] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)x(\d+(?:\.\d+)?)\s*G(?:i?B)?\s*", part, re.IGNORECASE)
        if not found or not int(found[1]) or not float(found[2]):
            raise ValueError(f"--assume {text}: {part.strip()!r} is not GPUs x memory; write 1x24GB, or 8x80GB,4x24GB")
        nodes.append({"CPU": math.inf, "GPU": float(found[1]), GPU_MEMORY: float(found[2]) * 2**30})
    return nodes


def check_task(what: str, asks: Node, nodes: Sequence[Node]) -> None:
    """Raises `ValueError` where no node is large enough for a process, `what`, that asks for so much."""
    for resource, amount in asks.items():
        largest = max((node.get(resource, 0) for node in nodes), default=0)
        if amount > largest + 1e-6:
            raise ValueError(
                f"{what} asks for {_amount(resource, amount)}, the largest node has {_amount(resource, largest)}.\n"
                "Give it less (engine.gpus=0 answers on CPUs), or a cluster with a node that has so much."
            )


def check_placement(needs: Sequence[Need], nodes: Sequence[Node]) -> list[Counter[str]]:
    """The roles on every node. Raises `ValueError` of at most three lines that says what is missing and what helps."""
    if not nodes:
        raise ValueError("the cluster has no nodes")
    for resource in ("GPU", "CPU", "memory"):
        _check_total(resource, needs, nodes)
    for need in needs:
        _check_labels(need, nodes)
        _check_gpu_memory(need, [node for node in nodes if _is_labelled(need, node)])
    return _pack(needs, nodes)


def _is_labelled(need: Need, node: Node) -> bool:
    return all(label in node for label in _labels(need.labels))


def _check_labels(need: Need, nodes: Sequence[Node]) -> None:
    if any(_is_labelled(need, node) for node in nodes):
        return
    known = sorted({name.removeprefix("label ") for node in nodes for name in node if name.startswith("label ")})
    own = [label for label in known if not label.startswith("ray.io/")]
    raise ValueError(
        f"{need.role}: no node has the labels {', '.join(f'{key}={value}' for key, value in need.labels.items())}.\n"
        f"There are {', '.join(own or known) or 'no labels'}; give it one of these, nodes that label "
        "(ray start --labels, or labels in the cluster file), or none."
    )


def _asks(need: Need) -> dict[str, float]:
    """What one process takes of a node."""
    return {"GPU": need.gpus, "CPU": need.cpus, "memory": need.node_memory}


def _check_gpu_memory(need: Need, nodes: Sequence[Node]) -> None:
    sizes = [gpu_memory(node) for node in nodes if node.get("GPU", 0)]
    if not need.gpus or not sizes or 0 in sizes or need.total <= max(sizes) * need.gpu_share:
        return
    largest = sorted(need.parts, key=lambda part: -need.parts[part])[:3]
    parts = ", ".join(f"{part} {gb(need.parts[part])}" for part in largest)
    share = "" if need.gpu_share == 1 else f"{need.gpu_share:g} of "
    if need.role == "engine":
        fix = "engine.gpus=2 (tensor parallel), a larger engine.memory_utilization or a smaller engine.max_model_len"
    else:
        fix = "more learner.num_ranks, model.lora.rank=16, a smaller learner.tokens_per_pack or algorithm.kl_coef=0"
    raise ValueError(
        f"{need.role}: needs {gb(need.total)} of GPU memory, and may take {share}{gb(max(sizes))}.\n"
        f"Most of it: {parts}.\nWhat helps: {fix}."
    )


def _check_total(resource: str, needs: Sequence[Need], nodes: Sequence[Node]) -> None:
    if resource == "memory" and not all("memory" in node for node in nodes):
        return
    asked = sum(need.count * _asks(need)[resource] for need in needs)
    there = sum(node.get(resource, 0) for node in nodes)
    if asked <= there + 1e-6:
        return
    by_role = ", ".join(
        f"{need.count} x {need.role} {_amount(resource, _asks(need)[resource])}"
        for need in needs
        if _asks(need)[resource]
    )
    raise ValueError(
        f"the run asks for {_amount(resource, asked)}, the cluster has {_amount(resource, there)}: {by_role}.\n"
        f"What helps: {_fix(resource, needs, there)}."
    )


def _amount(resource: str, amount: float) -> str:
    if resource == "memory":
        return f"{gb(amount)} of memory"
    return f"{amount:g} {resource}{'' if amount == 1 else 's'}"


def _fix(resource: str, needs: Sequence[Need], there: float) -> str:
    by_role = {need.role: need for need in needs}
    engine, learner = by_role["engine"], by_role["learner rank"]
    if resource == "memory":
        return "a smaller engine.kv_cache_gb or learner.tokens_per_pack, or a machine with more memory"
    if resource == "GPU" and not there:
        return "engine.gpus=0 learner.gpus=0 to run on CPUs, or a cluster with GPUs"
    left = there - sum(need.count * _asks(need)[resource] for need in needs if need is not learner)
    ranks = int((left + 1e-6) / _asks(learner)[resource]) if _asks(learner)[resource] else 0
    if ranks >= 1:
        return f"learner.num_ranks={ranks}, or add nodes"
    if engine.count > 1:
        return f"fewer engines (engine.num_engines={engine.count - 1}), or add nodes"
    if resource == "CPU":
        return "fewer asynchrony.num_env_workers, smaller shares such as asynchrony.env_cpus=0.1, or add nodes"
    return "smaller shares such as engine.gpus=0.5 learner.gpus=0.5, or add nodes"


def _pack(needs: Sequence[Need], nodes: Sequence[Node]) -> list[Counter[str]]:
    """Largest first. What needs GPUs is packed; what needs none is spread, off the nodes that have some."""
    left = [dict(node) for node in nodes]
    placed: list[Counter[str]] = [Counter() for _ in nodes]
    for need in sorted(needs, key=lambda need: (-need.gpus, -need.cpus, -need.node_memory)):
        asks = {name: amount for name, amount in _asks(need).items() if amount}
        for number in range(need.count):
            at_once = need.count if need.one_node and not number else 1
            fitting = [
                i
                for i, node in enumerate(left)
                if _is_labelled(need, nodes[i])
                and (at_once > 1 or not need.one_node or not number or placed[i][need.role])
                and all(
                    at_once * amount <= node.get(name, math.inf if name == "memory" else 0) + 1e-6
                    for name, amount in asks.items()
                )
            ]
            if not fitting:
                free = max(left, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
                wanted = ", ".join(_amount(name, amount) for name, amount in asks.items())
                most = ", ".join(_amount(name, free.get(name, 0)) for name in asks)
                raise ValueError(
                    f"{need.role} {number + 1} of {need.count} needs {wanted} on one node.\n"
                    f"The node with the most left has {most}.\n"
                    "What helps: fewer of them, smaller ones, or larger nodes."
                )
            best = min(fitting, key=functools.partial(_cost, need, nodes, left))
            placed[best][need.role] += 1
            for name, amount in asks.items():
                if name in left[best]:
                    left[best][name] -= amount
    return placed


def _cost(need: Need, nodes: Sequence[Node], left: Sequence[Node], i: int) -> tuple[float, float]:
    """The node where this is least is the one to take."""
    if need.gpus:
        return left[i].get("GPU", 0), left[i].get("CPU", 0)
    if not need.cpus:
        return float(i), 0.0  # the driver is on the head, which comes first
    return nodes[i].get("GPU", 0), -left[i].get("CPU", 0)


def placement_table(placed: Sequence[Counter[str]], nodes: Sequence[Node]) -> str:
    """Where everything goes, a line a node that has something on it."""
    lines = ["placement"]
    for i, (roles, node) in enumerate(zip(placed, nodes, strict=True)):
        cpus = node.get("CPU", 0)
        size = f"{node.get('GPU', 0):g} GPUs" if cpus == math.inf else f"{cpus:g} CPUs, {node.get('GPU', 0):g} GPUs"
        memory = f", {gb(node['memory'])}" if "memory" in node else ""
        here = ", ".join(f"{count} x {role}" for role, count in roles.items())
        lines.append(f"  {f'node {i} ({size}{memory})':44} {here or '-'}")
    return "\n".join(lines)


def check_run(config: RunConfig, nodes: Sequence[Node] | None = None) -> str:
    """The tables of memory and placement. `nodes` not given: this machine.

    Raises `ValueError` of at most three lines where the run does not fit.
    """
    nodes = this_machine() if nodes is None else nodes
    shape = shape_of(config.model.path)
    needs = needs_of(config, shape)
    return _about_memory(config, shape) + "\n" + placement_table(check_placement(needs, nodes), nodes)


def _about_memory(config: RunConfig, shape: ModelShape | None) -> str:
    if shape is None:
        return f"memory: unknown, like the sizes of {config.model.path}"
    return memory_table(needs_of(config, shape), shape)


def dry_run(config: RunConfig, nodes: Sequence[Node] | None = None, work: str = "") -> tuple[str, bool]:
    """What `--dry-run` prints: whether the run fits or what helps, memory by role, placement, the run as resolved.

    And whether it fits. `work`, what a step takes in words, stands before the run.
    """
    told = f"{work}\n{config.to_json()}".lstrip()
    try:
        return f"{config.name} fits\n{check_run(config, nodes)}\n{told}", True
    except ValueError as error:  # the rest is told all the same
        about = _about_memory(config, shape_of(config.model.path))
        return f"{config.name} does not fit: {error}\n{about}\n{told}", False
