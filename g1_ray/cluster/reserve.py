"""What the actors of a run ask of a cluster, and the groups of resources that keep it for them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from g1_ray.cluster.join import nodes_to_come
from g1_ray.cluster.memory import needs_of, shape_of
from g1_ray.config import RunConfig

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

ROOM_S = 3600.0
"""Longest wait for room: nodes of a cluster that grows have to start, and what they need be installed on them."""
NEWS_S = 15.0
"""Between two words about what is still waited for."""


@dataclass(frozen=True)
class Team:
    """The actors of a role, and what each of them asks for."""

    count: int
    each: Mapping[str, float]
    """Resources by Ray's names, e.g. {"CPU": 8, "GPU": 1, "memory": 6.4e10}."""
    labels: Mapping[str, str]
    """What the labels of its node have to be."""
    strategy: str
    """PACK: on as few nodes as they fit on; STRICT_PACK: on one; SPREAD: on as many as there are."""

    def __str__(self) -> str:
        each = ", ".join(f"{amount:g} {name}" for name, amount in self.each.items() if name != "memory")
        labels = "".join(f", {key}={value}" for key, value in self.labels.items())
        return f"{self.count} x ({each}{labels}), {self.strategy}"


def teams(config: RunConfig, memory: bool = False) -> dict[str, Team]:
    """The roles of a run: "learner", "engine" and "env". With their `memory` (`needs_of`), Ray books it, too."""
    learner, engine, envs = config.learner, config.engine, config.asynchrony
    needs = {need.role: need.node_memory for need in needs_of(config, shape_of(config.model.path))} if memory else {}

    def team(count: int, role: str, cpus: float, gpus: float, labels: Mapping[str, str], strategy: str) -> Team:
        asked = {"CPU": cpus, "GPU": gpus, "memory": float(int(needs.get(role, 0)))}
        each = {name: amount for name, amount in asked.items() if amount}
        return Team(count, each if each.keys() & {"CPU", "GPU"} else {"CPU": 0.01, **each}, labels, strategy)

    together = "STRICT_PACK" if learner.one_node else "PACK"
    return {
        "learner": team(learner.num_ranks, "learner rank", learner.cpus, learner.gpus, learner.labels, together),
        "engine": team(engine.num_engines, "engine", engine.cpus, engine.gpus, engine.labels, "PACK"),
        "env": team(envs.num_env_workers, "env worker", envs.env_cpus, 0, envs.env_labels, "SPREAD"),
    }


def reserve(
    wanted: Mapping[str, Team], tell: Callable[[str], None] = lambda text: None, timeout_s: float = ROOM_S
) -> "dict[str, PlacementGroup]":
    """A group of resources for each role, once there is room for all; `tell` hears what is still waited for.

    Raises `RuntimeError` that names what the cluster does not have in time.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    placed = {}
    for role, team in wanted.items():
        selector = [dict(team.labels)] * team.count if team.labels else None
        bundles = [dict(team.each)] * team.count
        placed[role] = placement_group(bundles, team.strategy, bundle_label_selector=selector)
    deadline = time.monotonic() + timeout_s
    for role, group in placed.items():
        while not group.wait(min(NEWS_S, max(0.0, deadline - time.monotonic()))):
            total = ray.cluster_resources()
            there = f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs"
            if time.monotonic() >= deadline:
                for other in placed.values():
                    remove_placement_group(other)
                raise RuntimeError(
                    f"the cluster has no room for {role}: {wanted[role]}; it has {there}: free some, add nodes, or "
                    "ask for fewer in the config"
                )
            tell(f"waiting for room for {role}: {wanted[role]}; the cluster has {there}")
    return placed


def memory_is_booked() -> bool:
    """Whether there are several nodes to choose among, and all of them say how much memory they have.

    Of a type of node that says nothing of it, an autoscaler starts none for who asks for memory.
    """
    nodes = nodes_to_come()
    return len(nodes) > 1 and all("memory" in node for node in nodes)
