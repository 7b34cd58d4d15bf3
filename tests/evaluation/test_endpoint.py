"""Models behind endpoints: what is asked, what goes wrong on the way, and that nothing is asked twice."""

import time
from pathlib import Path

import pytest

pytest.importorskip("openai")

from endpoints import Flaky, reply, serving, vllm_serving  # noqa: E402

from envs import Codec, State, Task  # noqa: E402
from g1_ray.evaluation.endpoint import Endpoint, EndpointConfig, EndpointError  # noqa: E402
from g1_ray.evaluation.evaluation import Evaluation  # noqa: E402
from g1_ray.evaluation.folder import Protocol  # noqa: E402
from g1_ray.evaluation.job import Answered, Entry, Failed, Job, work  # noqa: E402
from g1_ray.evaluation.players import parse_game, parse_player  # noqa: E402
from g1_ray.evaluation.results import as_json  # noqa: E402
from g1_ray.models.find import MODELS  # noqa: E402
from g1_ray.runs.parquet import data_uri, png_of  # noqa: E402

GAME = "2048?size=3&tile_px=28"
ANSWER = "<perception>\nfog\n</perception>\n<think>\nHm.\n</think>\n<answer>up</answer>"


def state() -> State:
    task = Task.make("2048", perception={"tile_px": 28})
    game = task.new_game()
    game.reset(0)
    return State.of(task, game)


def test_a_question_is_a_picture_and_the_rules():
    seen = []
    with serving(lambda asked, headers: (seen.append((asked, headers["Authorization"])), reply(ANSWER))[1]) as url:
        got = Endpoint(EndpointConfig(url=url, model="m", temperature=0.3, max_tokens=9)).ask(
            state(), "rules", 2**40 + 5
        )
    ((asked, key),) = seen
    picture, rules = asked["messages"][0]["content"]
    assert picture["image_url"]["url"] == data_uri(png_of(state())) and rules["text"] == "rules"
    assert (asked["model"], asked["temperature"], asked["max_tokens"], asked["seed"]) == ("m", 0.3, 9, 5)
    assert key == "Bearer none" and got.text == ANSWER and (got.prompt_tokens, got.tokens) == (7, 3) and got.seconds > 0


def test_bad_days_are_survived_and_counted():
    script = iter(
        [
            (429, {"Retry-After": "0.05"}, {"error": {"message": "slow down"}}),
            (500, {"Retry-After": "0.05"}, {"error": {"message": "oops"}}),
            None,
            (200, {}, {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": []}),
            "late",
            reply(ANSWER),
        ]
    )

    def respond(asked, headers):
        made = next(script)
        if made == "late":
            time.sleep(1.5)
            return reply("too late")
        return made

    with serving(respond) as url:
        endpoint = Endpoint(EndpointConfig(url=url, model="m", timeout_s=0.7))
        assert endpoint.ask(state(), "rules", 0).text == ANSWER
    assert endpoint.troubles == {"429": 1, "500": 1, "no connection": 1, "no choices": 1, "timed out": 1}


def test_what_will_not_pass_is_not_tried_again_and_names_no_key(monkeypatch):
    monkeypatch.setenv("A_KEY", "s3cret")
    seen = []

    def refuse(asked, headers):
        seen.append(headers["Authorization"])
        return 401, {}, {"error": {"message": f"wrong key {headers['Authorization']}"}}

    with serving(refuse) as url:
        endpoint = Endpoint(EndpointConfig(url=url, model="m", key_env="A_KEY"))
        with pytest.raises(EndpointError, match="HTTP status 401") as error:
            endpoint.ask(state(), "rules", 0)
    assert seen == ["Bearer s3cret"] and "s3cret" not in str(error.value)


def test_tries_come_to_an_end():
    with serving(lambda asked, headers: (503, {"Retry-After": "0.01"}, {})) as url:
        endpoint = Endpoint(EndpointConfig(url=url, model="m", tries=3))
        with pytest.raises(EndpointError, match="no reply in 3 tries; HTTP status 503"):
            endpoint.ask(state(), "rules", 0)
    assert endpoint.troubles == {"503": 3}


def evaluation(url: str, folder: Path, runs: int = 2, moves: int = 5, **options: object) -> Evaluation:
    query = "".join(f"&{name}={value}" for name, value in {"model": "m", "max_tokens": 64, **options}.items())
    entries = [Entry(parse_game(GAME), parse_player(f"far={url}?{query[1:]}"))]
    return Evaluation.open(folder, entries, Protocol(runs, moves))


def play_through(evaluation: Evaluation) -> None:
    for job in evaluation.jobs():
        for news in work(job):
            for item in news:
                evaluation.hear(item)
    evaluation.folder.close()


def test_an_endpoint_that_gives_up_loses_nothing(tmp_path):
    """It fails for good after four answers; the second time only what is missing is asked for."""
    asked_in_all, broken = [], True

    def respond(asked, headers):
        if broken and len(asked_in_all) == 4:
            return 402, {}, {"error": {"message": "no money left"}}
        asked_in_all.append(asked["seed"])
        return reply(ANSWER)

    with serving(respond) as url:
        first = evaluation(url, tmp_path, concurrency=1)
        play_through(first)
        assert list(first.failed) == ["far"] and "402" in first.failed["far"] and not first.results()
        assert len(first.folder.replies()) == 4
        with (tmp_path / "replies.jsonl").open("a") as file:
            file.write('["2048-size-3", "fa')  # a kill in the middle of a line
        broken = False
        second = evaluation(url, tmp_path, concurrency=1)
        play_through(second)
        third = evaluation(url, tmp_path, concurrency=1)
        play_through(third)
    assert not second.failed and len(asked_in_all) == 10 == len(set(asked_in_all))
    assert as_json(second.results()) == as_json(third.results())
    (result,) = second.results()
    assert result.runs == 2 and result.tokens == 3 and result.p_acc == 0


def test_another_evaluation_is_not_mixed_in(tmp_path):
    evaluation("http://127.0.0.1:1/v1", tmp_path)
    with pytest.raises(ValueError, match="another protocol: runs = 2\n.*--out"):
        evaluation("http://127.0.0.1:1/v1", tmp_path, runs=3)
    with pytest.raises(ValueError, match="another player 'far': concurrency = 16"):
        evaluation("http://127.0.0.1:1/v1", tmp_path, concurrency=2)


def test_failures_are_news_of_their_own():
    entry = Entry(parse_game(GAME), parse_player("far=http://127.0.0.1:1/v1?model=m&tries=1"))
    news = [item for batch in work(Job((entry,), (0, 1, 2), 3)) for item in batch]
    assert [type(item) for item in news].count(Failed) == 1 and not any(isinstance(item, Answered) for item in news)


@pytest.mark.timeout(400)
def test_vllms_server_is_played_with_through_bad_days(tmp_path):
    """Every fault comes once in a while; each question is answered once, and the cold start plays as it does here."""
    pytest.importorskip("vllm")
    names = ["429", "500", "stall", "cut", "empty", "no choices", "hang up"]
    faults = {5 + 8 * i: name for i, name in enumerate(names)}
    with vllm_serving(MODELS / "tiny-coldstart", tmp_path / "vllm.log") as target:
        flaky = Flaky(target, faults, stall_s=25)  # far beyond the time-out, which is far beyond a slow answer
        with serving(flaky) as url:
            played = evaluation(url, tmp_path, runs=4, moves=20, timeout_s=20, temperature=0, concurrency=4)
            play_through(played)
    assert not played.failed
    (result,) = played.results()
    assert result.causes == {"cut off": 1 / 80, "no answer": 1 / 80}
    assert played.troubles["far"] == {"429": 1, "500": 1, "timed out": 1, "no choices": 1, "no connection": 1}
    assert len(flaky.delivered) == len(set(flaky.delivered)) == 80 == len(played.folder.replies())
    assert flaky.count == 80 + 5
    assert result.p_acc > 0.9 and result.scoring.mean > 40 and result.tokens > 20  # it sees, and plays well
    assert Codec(played.entries[0].game.task()).prompt() in flaky.delivered[0].replace("\\n", "\n")
