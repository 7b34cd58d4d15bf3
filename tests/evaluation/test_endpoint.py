"""Models behind endpoints: what is asked, what goes wrong on the way, and that nothing is asked twice."""

import contextlib
import email.utils
import http.server
import itertools
import json
import logging
import pickle
import random
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("openai")

from endpoints import Flaky, reply, serving, vllm_serving  # noqa: E402

from envs import Codec, State, Task  # noqa: E402
from g1_ray.evaluation.endpoint import Endpoint, EndpointConfig, EndpointError  # noqa: E402
from g1_ray.evaluation.evaluation import Evaluation  # noqa: E402
from g1_ray.evaluation.folder import Protocol  # noqa: E402
from g1_ray.evaluation.job import Answered, Entry, Failed, Job, work  # noqa: E402
from g1_ray.evaluation.named import parse_game, parse_player  # noqa: E402
from g1_ray.evaluation.results import as_json, results_table  # noqa: E402
from g1_ray.logs import start_logging  # noqa: E402
from g1_ray.models.find import MODELS  # noqa: E402
from g1_ray.runs.parquet import data_uri, png_of  # noqa: E402
from g1_ray.tables import markdown  # noqa: E402
from jobs.__main__ import main  # noqa: E402

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
        config = EndpointConfig(url=url, model="m", key_env="A_KEY")
        monkeypatch.delenv("A_KEY")  # as on another node
        endpoint = Endpoint(pickle.loads(pickle.dumps(config)))
        with pytest.raises(EndpointError, match="HTTP status 401: wrong key Bearer .the key.\nkey_env=") as error:
            endpoint.ask(state(), "rules", 0)
    assert seen == ["Bearer s3cret"] and "s3cret" not in str(error.value) + repr(config) + config.model_dump_json()


def test_tries_come_to_an_end():
    with serving(lambda asked, headers: (503, {"Retry-After": "0.01"}, {})) as url:
        endpoint = Endpoint(EndpointConfig(url=url, model="m", tries=3))
        with pytest.raises(EndpointError, match="no reply in 3 tries; HTTP status 503"):
            endpoint.ask(state(), "rules", 0)
    assert endpoint.troubles == {"503": 3}


@pytest.mark.parametrize(
    ("sent", "words", "help"),
    [
        ((404, {}, {"error": "model 'm' not found"}), "404: model 'm' not found", "URL/models"),
        (
            (400, {}, {"message": "`top_p` is not supported"}),
            "400: `top_p` is not supported",
            "top_p=none leaves it out",
        ),
        ((422, {}, {"detail": [{"loc": ["body", "seed"], "msg": "no"}]}), "422: body.seed: no", "seed=none"),
        ((308, {"Location": "https://else.where/v1"}, b""), "308: ", "it points to https://else.where/v1; give that"),
        ((429, {"Retry-After": "90000"}, {"error": {"message": "daily limit"}}), "429: daily limit", "for 25 hours"),
        ((503, {"Retry-After": "Fri, 31 Dec 2049 23:59:59 GMT"}, b"<h1>Sold out</h1>"), "503: Sold out", "days; give"),
        ((429, {}, {"error": {"message": "buy", "code": "insufficient_quota"}}), "429: buy", ""),
        ((501, {}, b""), "501: Not Implemented", ""),
    ],
)
def test_what_will_not_pass_is_told_in_the_servers_words(sent, words, help):
    asked = []
    with serving(lambda *about: (asked.append(about), sent)[1]) as url:
        endpoint = Endpoint(EndpointConfig(url=url, model="m"))
        for _ in range(2):  # the second time it isn't even asked
            with pytest.raises(EndpointError) as error:
                endpoint.ask(state(), "rules", 0)
    assert f"HTTP status {words}" in str(error.value) and help in str(error.value)
    assert len(asked) == 1 and len(str(error.value).splitlines()) <= 2


def test_a_wait_may_be_a_date():
    soon = email.utils.formatdate(time.time() + 2, usegmt=True)
    script = iter([(429, {"Retry-After": soon}, {}), (503, {"Retry-After": "soon"}, {}), reply(ANSWER)])
    with serving(lambda asked, headers: next(script)) as url:
        begun = time.monotonic()
        assert Endpoint(EndpointConfig(url=url, model="m")).ask(state(), "rules", 0).text == ANSWER
    assert 0.8 < time.monotonic() - begun < 6


def test_what_is_no_answer_is_asked_again_with_another_seed():
    seeds = []
    script = iter(
        [reply(None, refusal="no"), (500, {"Retry-After": "0"}, {}), reply("", "content_filter"), reply(ANSWER)]
    )
    with serving(lambda asked, headers: (seeds.append(asked["seed"]), next(script))[1]) as url:
        endpoint = Endpoint(EndpointConfig(url=url, model="m"))
        assert endpoint.ask(state(), "rules", 5).text == ANSWER
    assert seeds == [5, 6, 6, 7] and endpoint.troubles == {"refusal": 1, "500": 1, "content_filter": 1}


def test_options_reach_the_endpoint_or_stay_away_from_it(monkeypatch):
    monkeypatch.setenv("A_KEY", "s3cret")
    seen = []
    with serving(lambda asked, headers: (seen.append((asked, dict(headers))), reply(ANSWER))[1]) as url:
        text = f"far={url}?model=m&temperature=none&seed=none&limit=none&key_env=A_KEY&key_header=api-key"
        Endpoint(parse_player(text)).ask(state(), "rules", 0)
        more = "top_p=0.5&image_detail=low&extra.reasoning_effort=low&extra.chat.thinking=false"
        Endpoint(parse_player(f"{url}?model=m&{more}")).ask(state(), "rules", 0)
    (bare, headers), (full, _) = seen
    assert bare.keys() == {"model", "messages"} and headers["api-key"] == "s3cret" and "Authorization" not in headers
    assert (full["top_p"], full["reasoning_effort"], full["chat"]) == (0.5, "low", {"thinking": False})
    assert full["messages"][0]["content"][0]["image_url"]["detail"] == "low"
    assert (full["temperature"], full["max_tokens"]) == (1.0, 4096) and "extra" not in full


def test_a_query_reaches_the_endpoint():
    paths = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            paths.append(self.path)
            self.send_error(400)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        with pytest.raises(EndpointError):
            Endpoint(parse_player(f"{url}?model=m&query.api-version=2024-10-21")).ask(state(), "rules", 0)
    assert paths == ["/v1/chat/completions?api-version=2024-10-21"]


@contextlib.contextmanager
def talking(*said: bytes, wait_s: float = 0.0) -> Iterator[str]:
    """A server that says its words to the first who comes, and then goes on with the last of them."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError):
                client.recv(1 << 16)
                for word in itertools.chain(said, itertools.repeat(said[-1])):
                    client.sendall(word)
                    time.sleep(wait_s)

        threading.Thread(target=talk, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"


def test_a_reply_without_an_end_is_none():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    for said, wait_s, words in ((b" ", 0.1, "no whole reply in the time"), (b" " * (1 << 20), 0.0, "more than 16 MB")):
        with talking(head, said, wait_s=wait_s) as url:
            with pytest.raises(EndpointError, match=words):
                Endpoint(EndpointConfig(url=url, model="m", tries=1, timeout_s=1 if wait_s else 60)).ask(state(), "", 0)


@pytest.mark.parametrize(
    ("url", "words", "tries"),
    [
        ("http://127.0.0.1:1/v1", "connection refused", 3),
        ("http://nobody.invalid/v1", "the name of the host is not known", 3),
        ("https://{served}", "no TLS: ", 1),
    ],
)
def test_who_was_never_reached_is_not_tried_for_long(url, words, tries):
    with serving(lambda asked, headers: reply(ANSWER)) as served:
        endpoint = Endpoint(EndpointConfig(url=url.format(served=served.removeprefix("http://")), model="m"))
        begun = time.monotonic()
        for ask in (endpoint.meet, lambda: endpoint.ask(state(), "rules", 0)):
            with pytest.raises(EndpointError, match=words):
                ask()
    assert time.monotonic() - begun < 8 and endpoint.troubles == {"no connection": tries}


def test_who_was_reached_once_is_waited_for(monkeypatch):
    """A server that is started again: connections are refused more often than a stranger's would be."""
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.05)
    endpoint = Endpoint(EndpointConfig(url="http://127.0.0.1:1/v1", model="m"))
    with serving(lambda asked, headers: reply(ANSWER)) as url:
        met = Endpoint(EndpointConfig(url=url, model="m"))
        met.meet()
    for asked, tries in ((met, 8), (endpoint, 3)):
        with pytest.raises(EndpointError):
            asked.ask(state(), "rules", 0)
        assert asked.troubles["no connection"] == tries


def test_whoever_plays_hears_why_an_endpoint_does_not(capsys):
    assert main(["play", "2048", "--player", "far=http://127.0.0.1:1/v1?model=m", "--moves", "2"]) == 2
    told = capsys.readouterr().err
    assert "connection refused" in told and len(told.splitlines()) <= 3


def test_an_own_certificate_is_told(tmp_path):
    made = subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout k.pem -out c.pem -subj /CN=h".split(),
        cwd=tmp_path,
        capture_output=True,
    )
    assert made.returncode == 0, made.stderr
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.handle_request, daemon=True).start()
        endpoint = Endpoint(EndpointConfig(url=f"https://127.0.0.1:{server.server_port}/v1", model="m"))
        with pytest.raises(EndpointError, match="certificate verify failed: self-signed certificate\n.*SSL_CERT_FILE"):
            endpoint.ask(state(), "rules", 0)
    assert endpoint.troubles == {"no connection": 1}


def test_the_key_is_in_nothing_that_is_written(tmp_path, monkeypatch, capfd):
    """Quoted whole, in part, as part of an address, in an answer, in a refusal: it is cut out everywhere."""
    key = "sk-proj-AbCdEf/123+xyz"
    monkeypatch.setenv("A_KEY", key)
    monkeypatch.setenv("G1_RAY_LOG", "debug")
    for name in ("g1_ray", "jobs"):  # as they are now again afterwards
        for part, value in (("handlers", []), ("level", logging.WARNING), ("propagate", True)):
            monkeypatch.setattr(logging.getLogger(name), part, value)
    start_logging("test", tmp_path)
    quoted = [
        reply(f"you are {key} {ANSWER}"),
        (
            500,
            {"Retry-After": "0"},
            {"error": {"message": f"bad {key[:12]}**** or {urllib.parse.quote(key, safe='')}"}},
        ),
        reply(None, refusal=f"no {key}"),
        reply(ANSWER),
        (401, {}, {"error": {"message": f"wrong {key}"}}),
    ]
    script = iter(quoted)
    with serving(lambda asked, headers: next(script)) as url:
        played = evaluation(url, tmp_path, runs=1, moves=3, key_env="A_KEY", concurrency=1)
        play_through(played)
    assert "wrong (the key)" in next(iter(played.failed.values())).why
    texts = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file()) + "".join(capfd.readouterr())
    assert len(played.folder.replies()) == 2 and "you are (the key)" in texts
    assert key not in texts and key[:12] not in texts and urllib.parse.quote(key, safe="") not in texts


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
        (failed,) = first.failed.values()
        assert failed.why == f"{url}: HTTP status 402: no money left" and not first.results()
        assert first.lines() == [("2048-size-3-tile_px-28", "far", "402")]
        assert len(first.folder.replies()) == 4
        with (tmp_path / "replies.jsonl").open("a") as file:
            file.write("no reply at all\n")
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
    evaluation("http://127.0.0.1:1/v1", tmp_path).folder.close()
    with pytest.raises(ValueError, match="another protocol: runs = 2\n.*--out"):
        evaluation("http://127.0.0.1:1/v1", tmp_path, runs=3)
    with pytest.raises(ValueError, match="another player 'far': concurrency = 16"):
        evaluation("http://127.0.0.1:1/v1", tmp_path, concurrency=2)


def test_a_folder_is_one_evaluations_at_a_time(tmp_path):
    first = evaluation("http://127.0.0.1:1/v1", tmp_path)
    with pytest.raises(ValueError, match="is in use by process"):
        evaluation("http://127.0.0.1:1/v1", tmp_path)
    first.folder.close()
    evaluation("http://127.0.0.1:1/v1", tmp_path).folder.close()


def test_failures_are_news_of_their_own():
    entry = Entry(parse_game(GAME), parse_player("far=http://127.0.0.1:1/v1?model=m&tries=1"))
    news = [item for batch in work(Job((entry,), (0, 1, 2), 3)) for item in batch]
    assert [type(item) for item in news].count(Failed) == 1 and not any(isinstance(item, Answered) for item in news)


def test_a_game_that_gets_no_answers_leaves_the_others_alone(tmp_path):
    """Its filter lets no board of 2048 pass: that game stops, with its reason, and the other one goes on."""

    def respond(asked, headers):
        rules = asked["messages"][0]["content"][1]["text"]
        return reply(None, "content_filter") if "2048" in rules else reply(ANSWER)

    with serving(respond) as url:
        player = parse_player(f"far={url}?model=m&tries=2")
        entries = [Entry(parse_game(game), player) for game in (GAME, "swap?tile_px=28")]
        played = Evaluation.open(tmp_path, entries, Protocol(2, 2))
        play_through(played)
    stopped, over = played.lines()
    assert stopped == (entries[0].game.name, "far", "content_filter") and over.game == entries[1].game.name
    table = markdown(results_table(played.lines()))
    assert "stopped: content_filter" in table and over.runs == 2
    notes = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    assert sum("failed" in note for note in notes) == 1
    assert sum(note["troubled"]["counts"]["content_filter"] for note in notes if "troubled" in note) >= 2


def test_an_older_folder_goes_on_and_other_folders_are_left_alone(tmp_path):
    first = evaluation("http://127.0.0.1:1/v1", tmp_path / "a")
    first.folder.close()
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    for new in ("top_p", "extra", "image_detail"):
        del config["players"][0][new]
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    again = evaluation("http://127.0.0.1:1/v1", tmp_path / "a")
    again.folder.close()
    assert again.entries == first.entries
    with pytest.raises(ValueError, match="another player 'far': top_p = None"):
        evaluation("http://127.0.0.1:1/v1", tmp_path / "a", top_p=0.5)
    for name, text in (("run", '{"games": [], "steps": 3}'), ("broken", "{"), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        with pytest.raises(ValueError, match="holds something else"):
            evaluation("http://127.0.0.1:1/v1", tmp_path / name)
        assert (tmp_path / name / "config.json").read_text() == text
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table.md").write_text("mine")
    with pytest.raises(ValueError, match="holds table.md"):
        evaluation("http://127.0.0.1:1/v1", tmp_path / "mine")


@pytest.mark.timeout(400)
@pytest.mark.slow
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
