"""Replies of endpoints that are watched as they come, from servers that stream, that will not, and that fail."""

import asyncio
import contextlib
import json

import pytest

pytest.importorskip("openai")

from endpoints import Parts, events, reply, serving  # noqa: E402

from envs import State, Task  # noqa: E402
from g1_ray.evaluation.endpoint import Endpoint, EndpointConfig, EndpointError  # noqa: E402
from g1_ray.evaluation.named import parse_player  # noqa: E402
from g1_ray.evaluation.play import CUT, Question, Reply  # noqa: E402
from g1_ray.evaluation.replies import Trouble, read_reply  # noqa: E402
from jobs.__main__ import main  # noqa: E402

TASK = Task.make("2048", reasoning={"size": 3}, perception={"tile_px": 28})
WORDS = ("<think>", "up: ü", " is free", "</think>", "<answer>up", "</answer>")
SAID = "".join(WORDS)


def asked(url, **options):
    """The reply, what was shown of it as it grew, and what went wrong on the way."""
    shown = []
    endpoint = Endpoint(EndpointConfig(url=url, model="m", **options))
    whole = endpoint.ask(State.start(TASK, 0), "rules", 0, shown.append)
    return whole, shown, dict(endpoint.troubles)


def body_of(answer):
    return b"".join(part for part in answer[2].parts if isinstance(part, bytes))


def test_words_are_shown_as_they_come():
    seen = []
    with serving(lambda asked, headers: (seen.append(asked), events(*WORDS, pause_s=0.1))[1]) as url:
        whole, shown, troubles = asked(url)
    assert seen[0]["stream"] is True and not troubles
    assert (whole.text, whole.finish_reason, whole.prompt_tokens, whole.tokens) == (SAID, "stop", 7, 3)
    texts = list(dict.fromkeys(part.text for part in shown))
    assert texts == ["".join(WORDS[: i + 1]) for i in range(len(WORDS))]
    assert all(part.finish_reason == "" and part.tokens is None for part in shown)
    assert shown[0].seconds < 0.5 * whole.seconds


def test_who_does_not_look_is_answered_whole():
    with serving(lambda asked, headers: reply(SAID) if "stream" not in asked else (400, {}, {})) as url:
        assert Endpoint(EndpointConfig(url=url, model="m")).ask(State.start(TASK, 0), "rules", 0).text == SAID


@pytest.mark.parametrize(
    "refused",
    [
        (400, {}, {"error": {"message": "Unrecognized request argument supplied: stream_options"}}),
        (422, {}, {"detail": [{"loc": ["body", "stream"], "msg": "extra fields not permitted"}]}),
        (501, {}, {}),
        (500, {}, {"error": {"message": "Streaming is not supported"}}),
        (200, {}, {"error": {"message": "no streams", "code": 400}}),
    ],
)
@pytest.mark.parametrize("word", ["stream_options", "stream"])
def test_a_server_that_refuses_is_asked_without(refused, word):
    seen = []

    def respond(asked, headers):
        seen.append({name: asked[name] for name in asked if "stream" in name})
        if word in asked:
            return refused
        return events(*WORDS) if "stream" in asked else reply(SAID)

    with serving(respond) as url:
        endpoint = Endpoint(EndpointConfig(url=url, model="m"))
        for _ in range(2):
            assert endpoint.ask(State.start(TASK, 0), "rules", 0, lambda reply: None).text == SAID
    assert not endpoint.troubles  # it is none, and is asked for once
    last = {"stream": True} if word == "stream_options" else {}
    assert seen[-2:] == [last, last] and len(seen) == (3 if last else 4)


def test_what_is_wrong_without_a_stream_too_is_told_as_ever():
    with serving(lambda asked, headers: (400, {}, {"error": {"message": "max_tokens is too large"}})) as url:
        with pytest.raises(EndpointError, match="HTTP status 400: max_tokens is too large\nlimit=none"):
            asked(url)


HALF = body_of(events("<answer>do", end=None, done=False))


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (events("<answer>do", end=None, done=False), "broken stream"),
        (events("<answer>do", "wn", end="error"), "error"),
        ((200, {}, Parts(HALF + b'data: {"error": {"message": "OOM"}}')), "error"),
        ((200, {}, Parts(HALF + b'data: {"cho\n\n')), "broken stream"),
        ((200, {"Content-Length": "9999"}, Parts(body_of(events("<answer>do", done=False)))), "no connection"),
        (events({"reasoning_content": "Hm."}), "only thinking"),
        (events({"content": [{"type": "thinking", "thinking": "Hm."}]}), "only thinking"),
        (events({"refusal": "I "}, {"refusal": "won't"}), "refusal"),
        (events({"tool_calls": [{"function": {"name": "move"}}]}, end="tool_calls"), "tool_calls"),
        (events("<answer>do", end="content_filter"), "content_filter"),
        ((200, {}, Parts(b": ping\n\ndata: [DONE]\n\n")), "no choices"),
        ((200, {}, Parts(b"<html>busy</html>")), "web page"),
        ((429, {"Retry-After": "0.05"}, {}), "429"),
    ],
)  # fmt: skip
def test_what_fails_is_a_trouble_and_asked_again(bad, name):
    made = iter([bad, events(*WORDS)])
    with serving(lambda asked, headers: next(made)) as url:
        whole, _, troubles = asked(url)
    assert whole.text == SAID and troubles == {name: 1}


def test_a_server_that_breaks_off_its_streams_is_asked_without_in_the_end():
    with serving(lambda asked, headers: (200, {}, Parts(HALF)) if "stream" in asked else reply(SAID)) as url:
        whole, shown, troubles = asked(url)
    assert whole.text == SAID and troubles == {"broken stream": 3} and shown


def test_a_stream_that_stalls_is_given_up_in_time():
    made = iter([(200, {}, Parts(body_of(events("<answer>", end=None, usage=None, done=False)), 2.0)), events(*WORDS)])
    with serving(lambda asked, headers: next(made)) as url:
        whole, _, troubles = asked(url, timeout_s=0.7)
    assert whole.text == SAID and troubles == {"timed out": 1}


@pytest.mark.parametrize(
    "body",
    [
        body_of(events(*WORDS)),
        body_of(events(*WORDS)).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + body_of(events(*WORDS)),
        body_of(events(*WORDS)).replace(b"data: ", b"data:"),
        body_of(events(*WORDS)).replace(b"\n\n", b"\n"),
        body_of(events(*WORDS, done=False)),
        body_of(events(*WORDS, end=None)),
        b": ping\n\nretry: 3\n" + body_of(events(*WORDS)).replace(b"data:", b"id: 7\nevent: message\ndata:"),
        body_of(events({"role": "assistant", "content": ""}, {"reasoning_content": "Hm."}, *WORDS, {"content": None})),
        body_of(events(*({"content": [{"type": "text", "text": word}]} for word in WORDS))),
        body_of(events("no", {"content": 7}, end=None, done=False, usage=None))
        + b'data: {"choices": [{"message": {"content": ' + json.dumps(SAID).encode() + b'}, "finish_reason": "stop"}]}',
        json.dumps(json.loads(json.dumps(reply(SAID)[2])), indent=1).encode(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cut", [1, 7, 10**6])
def test_streams_of_all_servers_are_read_wherever_they_are_cut(body, cut):
    parts = [body[i : i + cut] for i in range(0, len(body), cut)]
    with serving(lambda asked, headers: (200, {}, Parts(*parts))) as url:
        whole, shown, troubles = asked(url)
    assert whole.text == SAID and not troubles
    assert whole == Reply(SAID, "stop", whole.prompt_tokens, whole.tokens, whole.seconds)
    assert read_reply(body, whole.seconds) == whole


def test_what_is_cut_off_in_a_stream_is_a_move_too():
    got = read_reply(body_of(events({"reasoning": "so"}, end="length")), 0.5)
    assert got == Reply("", CUT, 7, 3, 0.5)


@pytest.mark.parametrize(
    "event", [b"3", b"[]", b"null", b'"up"', b'{"choices": 3}', b'{"choices": ["up"]}', b'{"choices": [{"delta": 3}]}',
              b'{"choices": [{"index": {}, "delta": {"content": "down"}}]}', b"[" * 100_000, b'{"usage": "many"}',
              b'{"error": {"code": {}, "message": [3]}}', b"\xff\xfe"]
)  # fmt: skip
def test_nothing_that_comes_is_trusted(event):
    """A trouble, or left out; never another error, and never words of it in the answer."""
    body = body_of(events(*WORDS[:3], end=None, usage=None, done=False)) + b"data: " + event + b"\n\n"
    body += body_of(events(*WORDS[3:]))
    with contextlib.suppress(Trouble):
        assert read_reply(body, 0).text == SAID


def test_a_player_is_watched_to_its_last_word_and_may_be_left(tmp_path):
    made = iter([events(*WORDS, pause_s=0.05), events(*WORDS, pause_s=5.0), (401, {}, {"error": "no"})])

    async def watch(url):
        player = parse_player(f"{url}?model=m")
        question = Question("2048", "m", 0, 0, State.start(TASK, 0))
        async with player.opened([player], [TASK], 0) as opened:
            grown = [reply async for reply in opened.watch(player, question)]
            async with contextlib.aclosing(opened.watch(player, question)) as growing:
                first = await anext(growing)
            with pytest.raises(EndpointError, match="HTTP status 401"):
                [reply async for reply in opened.watch(player, question)]
        return grown, first

    with serving(lambda asked, headers: next(made)) as url:
        grown, first = asyncio.run(watch(url))
    assert len(grown) > 2 and grown[-1].text == SAID and grown[-1].finish_reason == "stop" and first.text == WORDS[0]


def test_play_shows_what_an_endpoint_says_and_what_goes_wrong(capsys, tmp_path):
    bad = (503, {"Retry-After": "1.2"}, {})
    made = iter([events(*WORDS, pause_s=0.05), bad, events(*WORDS, end=None), events("no idea")])
    argv = ["play", "2048", "--reasoning", "size=3", "--perception", "tile_px=28", "--moves", "3"]
    with serving(lambda asked, headers: next(made)) as url:
        assert main([*argv, "--player", f"far={url}?model=m", "--save", str(tmp_path / "moves.parquet")]) == 0
    out = capsys.readouterr().out
    assert out.count(SAID) == 2 and "asked again: 1 x 503" in out and "3: no move (no answer)" in out
    with serving(lambda asked, headers: (403, {}, {"error": "not for you"})) as url:
        assert main([*argv, "--player", f"far={url}?model=m"]) == 2
    told = capsys.readouterr().err
    assert "not for you" in told and len(told.splitlines()) <= 3
