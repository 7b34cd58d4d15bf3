"""Whether the nodes of a run see its folder, and its model's: found out before anything is loaded."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

ANSWER_S = 120.0
"""Longest wait for a node's word: a process has to start there."""


def reaches(probe: str, token: str, model: str, writes: bool) -> str:
    """What keeps this process from reading a file of the run, writing a reply beside it, or finding the model.

    '' where nothing does. `model` is '' where it is not a folder.
    """
    file = Path(probe)
    try:
        if file.read_text() != token:
            return "another folder of that name is there"
        if writes:
            file.with_suffix(".reply").write_text(token)
    except OSError as error:
        return error.strerror or str(error)
    return "" if not model or Path(model).is_dir() else f"there is no {model}"


def check_storage(placed: "Mapping[str, PlacementGroup]", folder: str, model_path: str) -> None:
    """Asks every node that the groups of a run's roles are on, but this one.

    Raises `ValueError` where one does not see the folders, or a learner's can't write where this process can read.
    """
    import ray
    from ray.util.placement_group import placement_group_table
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    here, asked = ray.get_runtime_context().get_node_id(), {}
    token, probe = secrets.token_hex(8), Path(folder) / ".probe"
    model = model_path if Path(model_path).is_dir() else ""
    probe.write_text(token)
    try:
        for role, group in placed.items():
            for bundle, node in placement_group_table(group)["bundles_to_node_id"].items():
                if node == here or node in asked:
                    continue
                place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=int(bundle))
                task = ray.remote(reaches).options(num_cpus=0, max_retries=0, scheduling_strategy=place)
                asked[node] = role, task.remote(str(probe), token, model, role == "learner")
        for node, (role, answer) in asked.items():
            why = ray.get(answer, timeout=ANSWER_S)
            if not why and role == "learner" and not _replied(probe, token):
                why = "what is written there does not come to be here"
            if why:
                address = next(each["NodeManagerAddress"] for each in ray.nodes() if each["NodeID"] == node)
                raise ValueError(
                    f"{folder}: the node of {role}, {address}, does not see the run's folders as they are here: "
                    f"{why}.\n"
                    "Give out=... (and model.path) on storage that every node mounts at one path, such as NFS."
                )
    finally:
        probe.unlink(missing_ok=True)
        probe.with_suffix(".reply").unlink(missing_ok=True)


def _replied(probe: Path, token: str) -> bool:
    try:
        return probe.with_suffix(".reply").read_text() == token
    except OSError:
        return False
