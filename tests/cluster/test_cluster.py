"""The cluster file against Ray's own checks, and the run as a Ray job on a cluster with token authentication."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from endpoints import vllm_serving

from envs import Codec, State
from g1_ray.cluster.kuberay import quantity
from g1_ray.cluster.placement import check_run, nodes_of_yaml
from g1_ray.config import load_config
from g1_ray.evaluation.endpoint import Endpoint, EndpointConfig
from g1_ray.models.find import model_path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


MIB = 1 << 20
EC2 = {"m7i.4xlarge": (16, 65536, "", 0), "c7i.8xlarge": (32, 65536, "", 0),
       "g6e.12xlarge": (48, 393216, "L40S", 4), "p5.48xlarge": (192, 2097152, "H100", 8)}  # fmt: skip
"""What EC2 says of its machines (`aws ec2 describe-instance-types`): CPUs, MiB, kind and number of GPUs."""


def described(name):
    """A machine as EC2's API describes it, as far as Ray looks."""
    cpus, memory, kind, number = EC2[name]
    gpus = {"GpuInfo": {"Gpus": [{"Name": kind, "Count": number}]}} if kind else {}
    return {"InstanceType": name, "VCpuInfo": {"DefaultVCpus": cpus}, "MemoryInfo": {"SizeInMiB": memory}, **gpus}


def prepared():
    """The cluster file with all that `ray up` fills in before it asks the cloud for anything."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def test_ray_accepts_the_cluster_file(monkeypatch):
    """What `ray up` does before it needs an account: defaults, resources of EC2's machines, the schema.

    What comes after that, roles, keys, networks and machines, needs an account, and is not checked.
    """
    pytest.importorskip("boto3")
    from ray.autoscaler._private.aws import node_provider
    from ray.autoscaler._private.util import validate_config

    monkeypatch.setattr(node_provider, "list_ec2_instances", lambda region, credentials: map(described, EC2))
    filled = node_provider.AWSNodeProvider.fillout_available_node_types_resources(prepared())
    validate_config(filled)
    kinds = filled["available_node_types"]
    assert set(kinds) == {"head", "env", "inference", "learner"}
    assert all(kinds[name]["min_workers"] < kinds[name]["max_workers"] for name in ("env", "inference", "learner"))
    assert sum(kind["max_workers"] for kind in kinds.values()) <= filled["max_workers"]
    assert len({kind["node_config"]["ImageId"] for kind in kinds.values()}) == 1
    for name, kind in kinds.items():
        cpus, memory, gpu, number = EC2[kind["node_config"]["InstanceType"]]
        has = kind["resources"]
        assert kind["labels"] == {"g1-ray-role": name}
        assert has["CPU"] == (0 if name == "head" else cpus)
        assert has.get("GPU", 0) == number and (not gpu or has[f"accelerator_type:{gpu}"] == 1)
        # Ray keeps 30 % for the object store.
        assert 0.6 * memory * MIB < has["memory"] <= 0.7 * memory * MIB or name == "head"


def test_nodes_are_set_up_by_commands_that_a_shell_can_read(tmp_path):
    made = prepared()
    kinds = ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray", "initialization")
    commands = {kind: made[f"{kind}_commands"] for kind in kinds}
    assert commands["head_setup"] and commands["worker_setup"]
    for command in (command for its in commands.values() for command in its):
        read = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert read.returncode == 0 and not read.stderr, f"{command}: {read.stderr}"
    (about_env,) = (command for command in commands["worker_setup"] if "RAY_AUTH_MODE" in command)
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for _ in range(2):  # a node may be set up again
        subprocess.run(["bash", "-c", about_env], env=env, check=True, capture_output=True)
    assert (tmp_path / ".profile").read_text() == (tmp_path / ".bashrc").read_text()
    assert len((tmp_path / ".profile").read_text().splitlines()) == 1
    start = commands["head_start_ray"][0].replace("ray stop", "echo $RAY_AUTH_MODE $PATH")
    said = subprocess.run(["bash", "-c", start], env=env, check=True, capture_output=True, text=True).stdout
    assert said.startswith(f"token {tmp_path}/venv/bin:")


def test_each_role_of_the_cluster_preset_lands_on_its_own_nodes():
    nodes = nodes_of_yaml(ROOT / "cluster.yaml")
    lines = (
        check_run(load_config(ROOT / "jobs/configs/paper-7b-cluster.toml"), nodes).split("placement\n")[1].split("\n")
    )
    assert len(lines) == len(nodes)
    for line in lines:
        if "learner rank" in line:
            assert "8 GPUs" in line and "engine" not in line and "env worker" not in line
        if "engine" in line:
            assert "4 GPUs" in line and "env worker" not in line
        if "env worker" in line:
            assert "0 GPUs" in line


def free_ports(number):
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def head_with_token(cpus=2):
    """A Ray head of our own, on free ports, with token authentication: its dashboard's address, and an environment.

    What is stopped at the end is what was started here: other clusters on the machine go on.
    """
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # paths of sockets have to be short
    gcs, dashboard, client, agent = free_ports(4)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PATH": f"{BIN}:{os.environ['PATH']}"}
    command = [
        BIN / "ray",
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        f"--num-cpus={cpus}",
        f"--temp-dir={folder}",
    ]
    command += ["--object-store-memory=200000000", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}"]
    with open(Path(folder) / "head.log", "w") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(dashboard, head)
        env |= {"GCS": f"127.0.0.1:{gcs}", "FOLDER": folder}
        yield f"http://127.0.0.1:{dashboard}", env
    finally:
        ours = [head, *psutil.Process(head.pid).children(recursive=True)] if head.poll() is None else []
        if ours:
            head.send_signal(signal.SIGTERM)
            head.wait(30)
        _, left = psutil.wait_procs(ours[1:], timeout=15)
        for process in left:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def can_unshare():
    """Whether a process here may have mounts of its own."""
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True) if shutil.which("unshare") else None
    return bool(done) and done.returncode == 0


def wait_for(port, process):
    """Until somebody listens on a port."""
    deadline = time.monotonic() + 120
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert process.poll() is None, f"{process.args[:2]} ended"
        assert time.monotonic() < deadline, f"nobody listens on port {port}"
        time.sleep(0.2)


def submit(address, env, *entrypoint, cwd=ROOT, more=()):
    command = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ".", *more, "--", *entrypoint]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_is_submitted_with_a_token_and_uploads_little():
    with head_with_token() as (address, env):
        done = submit(
            address,
            env,
            "bash",
            "-c",
            "du -sb . && ls -A && python -m jobs.train jobs/configs/quickstart.toml --dry-run",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout
        # The shipped job ran, from what was uploaded, and found its model there.
        assert '"name": "quickstart"' in done.stdout and "1 x learner rank" in done.stdout
        assert "_ray_pkg_" in next(line for line in done.stdout.splitlines() if "million parameters" in line)
        size = next(int(line.split()[0]) for line in done.stdout.splitlines() if line.endswith("\t."))
        assert size < 10_000_000
        assert not {".git", ".venv", "runs", "tests", "docs"} & set(done.stdout.split())

        refused = submit(address, {**env, "RAY_AUTH_TOKEN": secrets.token_hex(32)}, "true")
        assert refused.returncode != 0 and "auth" in (refused.stdout + refused.stderr).lower()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not can_unshare(), reason="needs a mount namespace of its own")
def test_a_job_waits_for_nodes_and_goes_on_after_it_was_stopped_and_a_file_was_edited(tmp_path):
    """As the README submits it, to a head without CPUs; nodes come later."""
    here = tmp_path / "checkout"
    shutil.copytree(ROOT, here, ignore=shutil.ignore_patterns(".*", "runs", "docs", "tests"))
    run = tmp_path / "runs" / "quickstart"
    small = ["rollout.groups_per_step=4", "rollout.group_size=4", "asynchrony.groups_per_tick=2", "eval.runs=0"]
    small += ["engine.kind=transformers", "engine.num_engines=1", "checkpoint_every=2", f"out={run.parent}"]
    train = ["python", "-m", "jobs.train", "jobs/configs/quickstart.toml", *small, "--resume", "auto"]

    def steps():
        file = run / "metrics.jsonl"
        return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.is_file() else []

    with head_with_token(cpus=0) as (address, env):
        done = submit(address, env, *train, cwd=here, more=["--no-wait", "--submission-id", "first"])
        assert done.returncode == 0, done.stdout + done.stderr
        time.sleep(30)
        said = subprocess.run(
            [BIN / "ray", "job", "logs", "--address", address, "first"], env=env, capture_output=True, text=True
        )
        assert "the cluster has no node for work yet" in said.stdout and not steps(), said.stdout + said.stderr
        # On one machine a second node would unpack the job's files anew in the very folder that the first one uses.
        script = (
            f"mount -t tmpfs tmpfs {env['FOLDER']}/session_latest/runtime_resources && exec {BIN}/ray start --block "
            f"--address={env['GCS']} --num-cpus=4 --disable-usage-stats --object-store-memory=200000000"
        )
        with open(tmp_path / "node.log", "w") as log:
            node = subprocess.Popen(["unshare", "-m", "bash", "-c", script], env=env, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 300
            while len(steps()) < 5:
                assert time.monotonic() < deadline, "no steps"
                time.sleep(0.5)
            subprocess.run([BIN / "ray", "job", "stop", "--address", address, "first"], env=env, check=True, timeout=60)
            before = steps()
            (here / "README.md").write_text("edited\n")  # Ray unpacks what is uploaded under another name now
            done = submit(address, env, *train, f"steps={before[-1] + 3}", cwd=here)
            assert done.returncode == 0 and "succeeded" in done.stdout, done.stdout + done.stderr
        finally:
            family = psutil.Process(node.pid).children(recursive=True)
            node.send_signal(signal.SIGTERM)
            node.wait(30)
            for process in psutil.wait_procs(family, timeout=15)[1]:
                process.kill()
    assert steps() == list(range(1, before[-1] + 4))
    notes = [json.loads(line)["note"] for line in (run / "notes.jsonl").read_text().splitlines()]
    (went_on,) = [note for note in notes if note.startswith("goes on from step-")]
    assert int(went_on.partition("step-")[2].partition(":")[0]) >= before[-1] - 2  # no more than since a checkpoint


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_trains_and_vllm_serves_its_checkpoint(tmp_path):
    pytest.importorskip("vllm")
    small = ["steps=2", "rollout.groups_per_step=4", "rollout.group_size=4", "asynchrony.groups_per_tick=2"]
    table = ["eval.runs=1", "eval.moves=3"]
    with head_with_token() as (address, env):
        train = ["python", "-m", "jobs.train", "jobs/configs/quickstart.toml", f"out={tmp_path}", *small, *table]
        done = submit(address, env, *train)
        assert done.returncode == 0 and "succeeded" in done.stdout, done.stdout + done.stderr
    run = tmp_path / "quickstart"
    report = json.loads((run / "report.json").read_text())
    assert report["steps"] == 2 and report["groups_add_up"] and report["ledger_agrees"]

    with vllm_serving(model_path(str(run)), tmp_path / "serve.log") as url:
        task = load_config(ROOT / "jobs/configs/quickstart.toml").games[1].task()
        endpoint = Endpoint(EndpointConfig(url=url, model="m", max_tokens=160))
        game, codec = task.new_game(), Codec(task)
        game.reset(0)
        replies = [endpoint.ask(State.of(task, game), codec.prompt(), seed) for seed in range(8)]
        assert any(codec.read(reply.text).action in game.legal_actions() for reply in replies)


def test_the_manifests_make_one_cluster_that_the_preset_fits_on():
    job, cluster = (yaml.safe_load((ROOT / "jobs" / f"{name}.yaml").read_text()) for name in ("rayjob", "raycluster"))
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"} and job["spec"]["backoffLimit"] > 0
    assert "--resume auto" in job["spec"]["entrypoint"] and "out=/shared/" in job["spec"]["entrypoint"]
    config = load_config(ROOT / "jobs/configs/paper-7b-cluster.toml")
    for name in ("rayjob", "raycluster"):
        nodes = nodes_of_yaml(ROOT / "jobs" / f"{name}.yaml")
        assert len(nodes) == 1 + 4 + 4 + 1 and nodes[0]["CPU"] == 0
        assert "8 x learner rank" in check_run(config, nodes).splitlines()[-1]


@pytest.mark.parametrize("said, amount", [("14", 14), ("500m", 0.5), ("56Gi", 56 * 2**30), (8, 8), ("2k", 2000)])
def test_a_quantity_is_read_as_kubernetes_means_it(said, amount):
    assert quantity(said) == amount


@pytest.mark.parametrize("change, said", [
    (lambda spec: spec.clear(), "no 'headGroupSpec'"),
    (lambda spec: spec["headGroupSpec"].pop("template"), "no 'template' where a RayCluster has its containers'"),
    (lambda spec: spec.pop("headGroupSpec"), "no 'headGroupSpec'"),
    (lambda spec: spec["workerGroupSpecs"][0]["template"]["spec"].update(containers=[]), "no list index out of range"),
    (lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"].update(
        memory="many"), "'many' is no quantity"),
])  # fmt: skip
def test_a_manifest_that_lacks_something_is_told(tmp_path, change, said):
    manifest = yaml.safe_load((ROOT / "jobs" / "raycluster.yaml").read_text())
    change(manifest["spec"])
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(manifest))
    with pytest.raises(ValueError, match=said) as error:
        nodes_of_yaml(file)
    assert str(error.value).startswith(str(file))
