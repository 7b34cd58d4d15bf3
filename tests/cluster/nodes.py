"""Clusters of several raylets on this machine: `python nodes.py SCENARIO FOLDER [MORE]`, for test_nodes.py.

What a scenario prints last is a line of JSON.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "pipeline")]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:3])

import psutil  # noqa: E402
import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

GB = 10**9
KINDS = {
    "learner": {"num_cpus": 192, "num_gpus": 8, "memory": 1400 * GB},
    "inference": {"num_cpus": 48, "num_gpus": 4, "memory": 270 * GB},
    "env": {"num_cpus": 32, "num_gpus": 0, "memory": 44 * GB},
}
"""The nodes of cluster.yaml, with the labels of their roles."""
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_timeout_ms": 500,
         "health_check_failure_threshold": 2}  # fmt: skip


def started(**head) -> Cluster:
    store = {"object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**store, **head})
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    return cluster


def arrivals(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Where each role of the cluster preset comes to be, for every order in which the kinds of nodes come."""
    from ray.util.placement_group import placement_group_table, remove_placement_group

    from g1_ray.cluster.reserve import reserve, teams
    from g1_ray.config import load_config

    config = load_config(TESTS.parent / "jobs/configs/paper-7b-cluster.toml")
    # A node of each kind is enough to place on: a quarter of the engines and of the env workers.
    config = config.model_copy(update={
        "engine": config.engine.model_copy(update={"num_engines": 4}),
        "asynchrony": config.asynchrony.model_copy(update={"num_env_workers": 12}),
    })  # fmt: skip
    cluster = started(num_cpus=0)
    found = {}
    for order in itertools.permutations(KINDS):
        nodes, told, result = {}, [], {}

        def ask(told=told, result=result) -> None:
            result.update(reserve(teams(config, memory=True), told.append, 120))

        asking = threading.Thread(target=ask)
        asking.start()
        for kind in order:
            time.sleep(1)
            labels = {"g1-ray-role": kind}
            nodes[kind] = cluster.add_node(**KINDS[kind], labels=labels, object_store_memory=100_000_000)
        asking.join()
        kinds = {node.node_id: kind for kind, node in nodes.items()}
        where = {
            role: sorted({kinds[node] for node in placement_group_table(group)["bundles_to_node_id"].values()})
            for role, group in result.items()
        }
        found[" ".join(order)] = where
        for group in result.values():
            remove_placement_group(group)
        for node in nodes.values():
            cluster.remove_node(node)
    return found


def loss(folder: Path, part: str) -> dict[str, object]:
    """A run on a head and two nodes; the one with a part is killed while it trains: what the report says at its end."""
    from test_chaos import small

    from jobs.train import train

    cluster = started(num_cpus=0, _system_config=QUICK)
    nodes = [cluster.add_node(num_cpus=4, object_store_memory=100_000_000) for _ in range(2)]
    base = small(folder, "transformers")
    run = base.model_copy(update={"checkpoint_every": 2})
    metrics, lost = run.folder / "metrics.jsonl", {}

    def steps() -> int:
        return metrics.read_text().count("\n") if metrics.is_file() else 0

    def parts_of(node) -> list[str]:
        """Where parts are is known once they have been asked, which may be some steps after the start."""
        status = run.folder / "status.json"
        parts = json.loads(status.read_text())["parts"] if status.is_file() else []
        return [its["name"] for its in parts if its["node"] == node.node_id]

    def kill() -> None:
        while steps() < 3 or not any(part in parts_of(node) for node in nodes):
            time.sleep(0.2)
        victim = next(node for node in nodes if part in parts_of(node))
        lost.update(parts=parts_of(victim), step=steps(), at=time.time())
        cluster.remove_node(victim, allow_graceful=False)
        while steps() < lost["step"] + 4:
            time.sleep(0.2)
        lost["took"] = time.time() - lost["at"]
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=kill, daemon=True).start()
    status = train(run)
    report = json.loads((run.folder / "report.json").read_text())
    return {"status": status, "lost": lost, "report": report, "folder": str(run.folder)}


def received(settled_s: float = 3.0) -> dict[str, float]:
    """Bytes of objects that have come to each living node from others, by its id, once they grow no more.

    Ray's own count, of whole objects in pieces: what is below 100 KB travels within calls, and is not in it.
    """
    before: dict[str, float] = {}
    while True:
        now = {}
        for node in ray.nodes():
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            lines = urllib.request.urlopen(address, timeout=10).read().decode().splitlines()
            its = [line for line in lines if line.startswith("ray_object_manager_bytes{") and 'Type="Received"' in line]
            now[node["NodeID"]] = sum(float(line.rpartition(" ")[2]) for line in its)
        if now == before:
            return now
        before = now
        time.sleep(settled_s)


def traffic(folder: Path) -> dict[str, object]:
    """Runs of a learner, two engines on a node and one on another: bytes that came to each node, and were loaded.

    By what is trained, the whole language model or an adapter.
    """
    from test_pipeline import config

    from g1_ray.cluster.memory import shape_of
    from g1_ray.cluster.work import work_of
    from g1_ray.models.tiny import make_tiny
    from jobs.train import train

    quick = {"metrics_report_interval_ms": 500}
    cluster = started(num_cpus=0, _system_config=quick)
    where = {"learner": ("learner", 1), "two": ("inference", 2), "one": ("inference", 1), "env": ("env", 1)}
    nodes = {
        name: cluster.add_node(num_cpus=cpus, labels={"g1-ray-role": role}, object_store_memory=200_000_000).node_id
        for name, (role, cpus) in where.items()
    }
    found: dict[str, object] = {}
    for name, lora in (("whole", 0), ("adapter", 64)):
        made = config(folder, name, 4, "transformers", staleness=1, lora=lora)
        model = made.model.model_copy(update={"path": str(folder / "model")})
        if not found:
            heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
            text = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, **heads}
            make_tiny(model.path, [game.task() for game in made.games], 0, text=text)
        at = {role: {"labels": {"g1-ray-role": role}, "cpus": 1.0} for role in ("learner", "inference")}
        run = made.model_copy(
            update={
                "model": model,
                "checkpoint_every": 0,
                "canary_every": 0,
                "algorithm": made.algorithm.model_copy(update={"skip_flat_groups": False}),  # nothing is learned here
                "eval": made.eval.model_copy(update={"every": 0, "lab_every": 0, "runs": 0}),
                "learner": made.learner.model_copy(update=at["learner"]),
                "engine": made.engine.model_copy(update={**at["inference"], "num_engines": 3}),
                "asynchrony": made.asynchrony.model_copy(update={"env_labels": {"g1-ray-role": "env"}}),
            }
        )
        before = received()
        status = train(run)
        after = received()
        parts = json.loads((run.folder / "status.json").read_text())["parts"]
        shape = shape_of(model.path)
        found[name] = {
            "status": status,
            "engines": {name: sum(p["name"].startswith("engine") and p["node"] == node for p in parts)
                        for name, node in nodes.items()},
            "came": {name: after[node] - before[node] for name, node in nodes.items()},
            "trained": work_of(run, shape).synced,
            "frozen tower": 4 * shape.vision_params,
            "loaded": [json.loads(line)["sync/bytes"] for line in (run.folder / "metrics.jsonl").open()],
        }  # fmt: skip
    return found


def hidden(folder: Path) -> dict[str, object]:
    """A run whose learner is on a node that has another folder under the run's name: what it says, and what is left."""
    from test_chaos import small

    from jobs.train import train

    cluster = started(num_cpus=0)
    script = (
        f"mount -t tmpfs tmpfs {folder} && exec {sys.executable} -m ray.scripts.scripts start --block --num-cpus=4 "
        f"--address={cluster.address} --object-store-memory=100000000"
    )
    node = subprocess.Popen(["unshare", "-m", "bash", "-c", script], stdout=subprocess.DEVNULL)
    try:
        while sum(each["Alive"] for each in ray.nodes()) < 2:
            assert node.poll() is None
            time.sleep(0.2)
        run = small(folder, "transformers")
        try:
            train(run)
            said = ""
        except ValueError as error:
            said = str(error)
        groups = [each for each in ray.util.placement_group_table().values() if each["state"] == "CREATED"]
        return {"said": said, "groups": len(groups), "left": sorted(map(str, run.folder.rglob(".probe*")))}
    finally:
        node.terminate()


GROWS = {
    "cluster_name": "grows",
    "max_workers": 2,
    "idle_timeout_minutes": 0.1,
    "upscaling_speed": 1.0,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    },
    "head_node_type": "ray.head.default",
    "file_mounts_sync_continuously": False,
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0},
        "work": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    **dict.fromkeys(("auth", "docker", "file_mounts"), {}),
    **dict.fromkeys(("cluster_synced_files", "rsync_exclude", "rsync_filter",
                     "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
                     "head_start_ray_commands", "worker_start_ray_commands"), []),
}  # fmt: skip
"""Ray's own autoscaler, with a provider that starts raylets on this machine for nodes."""


def grow(folder: Path) -> dict[str, object]:
    """A run on a head without CPUs whose autoscaler adds nodes: how many there were, and how many are left."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
    from test_chaos import small

    from jobs.train import train

    file, log = folder / "grows.json", (folder / "head.log").open("w")
    file.write_text(json.dumps(GROWS))
    env = os.environ | dict.fromkeys(
        ("RAY_FAKE_CLUSTER", "RAY_enable_autoscaler_v2", "AUTOSCALER_UPDATE_INTERVAL_S"), "1"
    )
    env |= dict.fromkeys(("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING"), FAKE_HEAD_NODE_ID)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=6379", "--num-cpus=0"]
    command += [f"--autoscaling-config={file}", "--include-dashboard=false", "--object-store-memory=100000000"]
    head = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        time.sleep(15)
        os.environ["RAY_ADDRESS"] = "127.0.0.1:6379"
        run = small(folder, "transformers").model_copy(update={"steps": 2})
        status = train(run)
        most = sum(each["Alive"] for each in ray.nodes()) - 1
        began = time.monotonic()
        while (left := sum(each["Alive"] for each in ray.nodes()) - 1) and time.monotonic() - began < 90:
            time.sleep(1)
        report = json.loads((run.folder / "report.json").read_text())
        return {"status": status, "most": most, "left": left, "took": time.monotonic() - began, "report": report}
    finally:
        family = psutil.Process(head.pid).children(recursive=True)
        for process in [psutil.Process(head.pid), *family]:
            process.terminate()
        _, left = psutil.wait_procs(family, 15)
        for process in left:
            process.kill()


if __name__ == "__main__":
    scenario = {"arrivals": arrivals, "loss": loss, "traffic": traffic, "hidden": hidden, "grow": grow}[sys.argv[1]]
    print("\n" + json.dumps(scenario(Path(sys.argv[2]), *sys.argv[3:])))
    sys.stdout.flush()
    ray.shutdown()
    os._exit(0)
