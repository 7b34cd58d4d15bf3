"""What a manifest for KubeRay lets a Ray cluster grow to."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

KINDS = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
"""Kinds of manifests, and where in its spec each has the cluster's."""
_UNITS = {"": 1, "m": 1e-3, **{unit: 1000 ** (i + 1) for i, unit in enumerate("kMGTP")}}
_UNITS |= {f"{unit}i": 1024 ** (i + 1) for i, unit in enumerate("KMGTP")}
HEAP_SHARE = 0.7
"""Of a pod's memory, what Ray gives to processes; the rest is for its object store."""


def quantity(value: object) -> float:
    """A number as Kubernetes writes it: "14", "500m", "56Gi". Raises `ValueError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", str(value))
    if not found or found[2] not in _UNITS:
        raise ValueError(f"{value!r} is no quantity, such as 14, 500m or 56Gi")
    return float(found[1]) * _UNITS[found[2]]


def groups_of(manifest: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, float], Mapping[str, str], int]]:
    """Of the head, and of each group of workers: resources of a pod by Ray's names, labels, how many there may be.

    Raises `ValueError` where something is missing.
    """
    spec: Any = manifest
    try:
        for key in ("spec", *KINDS[manifest["kind"]]):
            spec = spec[key]
        groups: Sequence[Mapping[str, Any]] = [spec["headGroupSpec"], *spec.get("workerGroupSpecs", ())]
        for i, group in enumerate(groups):
            most = 1 if i == 0 else group.get("maxReplicas", group.get("replicas", 1))
            yield _resources(group), group.get("labels") or {}, int(most)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"no {error} where a {manifest['kind']} has its containers' resources") from None


def _resources(group: Mapping[str, Any]) -> dict[str, float]:
    """What Ray finds in a pod: its first container's limits, or what `rayStartParams` say in their place."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    said, gpus = group.get("rayStartParams") or {}, limits.get("nvidia.com/gpu", 0)
    return {
        "CPU": float(said.get("num-cpus", quantity(limits["cpu"]))),
        "GPU": float(said.get("num-gpus", quantity(gpus))),
        "memory": float(said.get("memory", HEAP_SHARE * quantity(limits["memory"]))),
    }
