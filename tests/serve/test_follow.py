"""A run trains, a server follows it, people watch: every answer names its policy version, none is mixed of two."""

import asyncio
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("ray.serve")
torch = pytest.importorskip("torch")

from arena_client import ROOT, Client, serving  # noqa: E402

from envs import State, Task  # noqa: E402
from g1_ray.engines.weight_sync import pack_weights  # noqa: E402
from g1_ray.evaluation.play import Question  # noqa: E402
from g1_ray.models.find import model_path  # noqa: E402
from g1_ray.models.weights import load_model  # noqa: E402
from g1_ray.runs.checkpoints import checkpoints, published  # noqa: E402
from g1_ray.serve import models  # noqa: E402

TASK = Task.make("2048", reasoning={"size": 3}, perception={"tile_px": 28})


def checkpoint(run, step: int, scale: float) -> None:
    """A checkpoint of a run: the shipped model with its weights scaled."""
    import shutil

    model = load_model(model_path("tiny-coldstart"), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    with published(run / "checkpoints" / f"step-{step}") as folder:
        shutil.copytree(model_path("tiny-coldstart"), folder, dirs_exist_ok=True)
        model.save_pretrained(folder)


def test_newer_checkpoints_are_taken_up_between_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "POLL_S", 0.05)
    checkpoint(tmp_path, 10, 1.0)
    question = Question("2048", "run", 0, 0, State.start(TASK, 0))

    async def watch() -> list[tuple[int, int]]:
        model = models.Model("run", str(tmp_path), str(tmp_path))
        await model.open(0)
        seen: list[tuple[int, int]] = []

        async def ask() -> None:
            while model.version < 30:
                replies = [reply async for reply in model.answer(question)]
                assert replies[-1].versions is not None
                seen.append(replies[-1].versions)

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        for step in (20, 30):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(checkpoint, tmp_path, step, 1 + step / 1e4)
            while model.version < step:
                model.check()
                await asyncio.sleep(0.02)
        await asyncio.gather(*asking)
        last = [reply async for reply in model.answer(question)][-1]
        await model.close()
        return [*seen, last.versions or (0, 0)]

    seen = asyncio.run(asyncio.wait_for(watch(), 120))
    assert all(oldest == newest for oldest, newest in seen)
    assert {10, 20, 30} == {newest for _, newest in seen}


def test_weights_of_another_model_end_what_follows(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "POLL_S", 0.05)
    checkpoint(tmp_path, 10, 1.0)

    async def follow() -> None:
        model = models.Model("run", str(tmp_path), str(tmp_path))
        await model.open(0)
        monkeypatch.setattr(models, "_packed", lambda *_: pack_weights([("other", torch.zeros(1))], torch.float32))
        await asyncio.to_thread(checkpoint, tmp_path, 20, 1.0)
        try:
            while True:
                model.check()
                await asyncio.sleep(0.05)
        finally:
            await model.close()

    with pytest.raises(ValueError, match="lack"):
        asyncio.run(asyncio.wait_for(follow(), 60))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_people_watch_a_run_get_better(tmp_path):
    """Five minutes of real training beside games that are played all the while."""
    command = [sys.executable, "-m", "jobs", "train", "jobs/configs/quickstart.toml", f"out={tmp_path}", "name=run",
               "minutes=5", "checkpoint_every=2", "eval.runs=0",
               "engine.kind=transformers", "engine.num_engines=1"]  # vLLM's two leave no core to anybody  # fmt: skip
    env = {**os.environ, "RAY_ADDRESS": "local"}
    with (tmp_path / "train.log").open("w") as log:
        training = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    run, versions, games = tmp_path / "run", [], 0
    try:
        while not checkpoints(run / "checkpoints"):
            assert training.poll() is None, (tmp_path / "train.log").read_text()
            time.sleep(1)
        with serving(tmp_path, f"run={run}?temperature=0", "--follow", timeout_s=600) as server:
            client = Client(server.url)
            while training.poll() is None:
                (lane,) = client.begin("run")["lanes"]
                while not lane["over"] and training.poll() is None:
                    lane = client.watch(lane)
                    versions.append(tuple(lane["last"]["versions"]))
                client.check()
                games += 1
    finally:
        training.kill()
    taken = sorted({newest for _, newest in versions})
    print(
        f"\n{games} games, {len(versions)} moves by versions {taken}, first words p95 {max(client.first_words):.2f} s"
    )
    assert all(oldest == newest for oldest, newest in versions)
    assert len(taken) >= 4 and versions == sorted(versions)
