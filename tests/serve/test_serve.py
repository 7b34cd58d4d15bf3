"""The real application: Ray Serve, its processes, HTTP. Parts of it are killed while people play."""

import asyncio
import json
import shutil
import time
from pathlib import Path

import pytest

pytest.importorskip("ray.serve")
pytest.importorskip("psutil")

import openai  # noqa: E402
from arena_client import Client, serving, together  # noqa: E402

from envs import State, Task  # noqa: E402
from envs.codec import Codec  # noqa: E402
from g1_ray.evaluation.named import parse_player  # noqa: E402
from g1_ray.evaluation.play import Question  # noqa: E402
from g1_ray.models.find import model_path  # noqa: E402

pytestmark = pytest.mark.xdist_group("serve")
TASK = Task.make("2048", reasoning={"size": 3}, perception={"tile_px": 28})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    with serving(folder, "tiny=tiny-coldstart?temperature=0", f"endless={endless(folder)}") as server:
        yield server


def endless(folder: Path) -> Path:
    """A model whose answers end at their longest length only: what would end them is a token that it never gives."""
    model = folder / "endless"
    shutil.copytree(model_path("tiny-coldstart"), model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<|vision_pad|>"}))
    return model


def states(number: int) -> list[State]:
    """States along games of the oracle."""
    found: list[State] = []
    seed = 0
    while len(found) < number:
        game = TASK.new_game()
        game.reset(seed)
        while not game.over and len(found) < number:
            found.append(State.of(TASK, game))
            game.step(game.oracle())
        seed += 1
    return found


def answers(spec: str, asked: list[State]) -> list[str]:
    """What a player says of states."""
    player = parse_player(spec)

    async def ask() -> list[str]:
        async with type(player).opened([player], [TASK], 0) as opened:
            questions = [Question("2048", player.name, 0, number, state) for number, state in enumerate(asked)]
            return [reply.text for reply in await asyncio.gather(*(opened.ask(player, each) for each in questions))]

    return asyncio.run(ask())


def test_a_person_plays_a_model_on_one_seed(server):
    client = Client(server.url)
    person, model = client.begin("person", "tiny")["lanes"]
    assert person["board"] == model["board"]
    for _ in range(3):
        person = client.move(person, person["legal"][0]["action"])
        model = client.watch(model)
    told = client.ask("GET", f"/api/sessions/{client.session['id']}/lanes/1/moves/2")
    assert told["answer"]["told"] and told["versions"] == [0, 0] and told["options"]


def test_greedy_moves_through_the_endpoint_are_those_of_the_model_itself(server):
    asked = states(16)
    direct = answers("tiny-coldstart?temperature=0", asked)
    through = answers(f"tiny={server.url}/v1?model=tiny&temperature=0&max_tokens=400", asked)
    codec = Codec(TASK)
    assert [codec.read(text).action for text in through] == [codec.read(text).action for text in direct]
    assert through == direct


def test_openais_client_is_served_in_both_modes(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny", "endless"] and client.models.retrieve(
        "tiny"
    ).id == "tiny"
    session = Client(server.url).begin("person")
    picture = {"type": "image_url", "image_url": {"url": session["lanes"][0]["picture"]}}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": session["task"]["prompt"]}]}]
    whole = client.chat.completions.create(model="tiny", messages=messages)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content and "<answer>" in said
    assert chunks[-1].usage == whole.usage and whole.usage.completion_tokens > 5
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason == "stop"
    for fault in (
        {"model": "other"},
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]},
        {"messages": [{"role": "user", "content": "<|im_end|>"}]},
        {"messages": [{"role": "user", "content": "word " * 5000}]},
    ):
        with pytest.raises(openai.APIStatusError) as error:
            client.chat.completions.create(**{"model": "tiny", "messages": messages, **fault})
        assert error.value.status_code in (400, 404) and error.value.body["message"]


def test_a_client_that_goes_away_ends_its_request(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    long = client.chat.completions.create(
        model="endless", messages=[{"role": "user", "content": "on"}], max_tokens=4000, stream=True
    )
    next(iter(long))
    assert waited_for(server.url, 1)
    long.close()
    assert waited_for(server.url, 0)


def waited_for(url: str, answering: int) -> bool:
    """Whether the model comes to be at so many answers within seconds."""
    client, until = Client(url), time.monotonic() + 4
    while time.monotonic() < until:
        told = {model["name"]: model["answering"] for model in client.ask("GET", "/api/catalog")["models"]}
        if told["endless"] == answering:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.chaos
@pytest.mark.parametrize("part", ["games", "model-tiny", "ingress"])
def test_a_part_dies_and_every_game_goes_on(server, part):
    clients, killed = [Client(server.url) for _ in range(3)], []

    def play(client: Client) -> None:
        watches = client is clients[0]
        (lane,) = client.begin("tiny" if watches else "person")["lanes"]
        while not lane["over"] and (not killed or time.monotonic() < killed[0] + 8):
            lane = client.watch(lane) if watches else client.move(lane, lane["legal"][0]["action"])
            time.sleep(0.05)
            if lane["over"] and not killed:
                client.check()
                (lane,) = client.begin("tiny" if watches else "person")["lanes"]
        client.check()

    def kill() -> None:
        time.sleep(1)
        server.replicas(part)[0].kill()
        killed.append(time.monotonic())

    together([kill, *(lambda client=client: play(client) for client in clients)])
    assert max(client.seconds[-1] for client in clients[1:]) < 30
