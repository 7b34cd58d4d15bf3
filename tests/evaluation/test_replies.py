"""What endpoints send: an answer of the model, or trouble that is never scored as one."""

import json
import logging

import pytest

pytest.importorskip("openai")

from endpoints import USAGE, reply  # noqa: E402
from pydantic import TypeAdapter  # noqa: E402

from g1_ray.evaluation.play import CUT, Reply  # noqa: E402
from g1_ray.evaluation.replies import ALL, FEW, Trouble, kept_replies, one_line, read_reply, words_of  # noqa: E402

SAID = "<answer>up</answer>"


def read(*args: object, **more: object) -> Reply:
    return read_reply(json.dumps(reply(*args, **more)[2]).encode(), 0.5)


@pytest.mark.parametrize(
    ("content", "more", "text"),
    [
        (SAID, {}, SAID),
        (SAID, {"finish_reason": "end_turn"}, SAID),
        (SAID, {"finish_reason": None, "refusal": None, "tool_calls": [], "reasoning": "Hm."}, SAID),
        ([{"type": "output_text", "text": "<answer>"}, {"type": "text", "text": "up</answer>"}], {}, SAID),
        ([{"type": "reasoning", "text": "down?"}, {"text": SAID}, 7, None, {"type": "text", "text": {}}], {}, SAID),
        (["<answer>", "up</answer>"], {}, SAID),
        ({"type": "text", "text": SAID}, {}, SAID),
        ("", {}, ""),  # it has sampled its end at once
        ("", {"usage": None}, ""),
        ("I'd rather not.", {}, "I'd rather not."),
    ],
)
def test_what_the_model_says_is_its_move(content, more, text):
    got = read(content, **more)
    assert got.text == text and got.finish_reason != CUT and got.seconds == 0.5


@pytest.mark.parametrize("finish", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
@pytest.mark.parametrize(
    "message", [{}, {"reasoning_content": f"so {SAID}"}, {"reasoning": [{"type": "text", "text": "so"}]}]
)
def test_what_is_cut_off_is_a_move_too_even_in_its_thinking(finish, message):
    assert read(None, finish, **message) == Reply("", CUT, 7, 3, 0.5)


@pytest.mark.parametrize(
    ("cause", "content", "more"),
    [
        ("only thinking", None, {"reasoning_content": SAID}),
        ("only thinking", "", {"reasoning": [{"type": "text", "text": SAID}]}),
        ("only thinking", [{"type": "thinking", "thinking": SAID}], {}),
        ("safety", SAID, {"finish_reason": "SAFETY"}),
        ("content_filter", SAID[:5], {"finish_reason": "content_filter"}),
        ("abort", SAID, {"finish_reason": "abort"}),
        ("error", SAID, {"finish_reason": "error"}),
        ("refusal", SAID, {"refusal": "No."}),
        ("tool_calls", None, {"tool_calls": [{"id": "1"}]}),
        ("tool_calls", "", {"function_call": {"name": "up"}}),
        ("function_call", SAID, {"finish_reason": "function_call"}),
        ("no content", None, {}),
        ("no content", 7, {}),
        ("no content", [], {}),
        ("no content", "", {"usage": {"completion_tokens": 0}}),
    ],
)
def test_what_is_no_answer_has_its_own_cause(cause, content, more):
    with pytest.raises(Trouble) as trouble:
        read(content, **more)
    served = cause in ("abort", "error")
    assert trouble.value.name == ("only thinking" if content == 7 else cause)
    assert trouble.value.most == (ALL if served else FEW) and trouble.value.game_only is not served


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({}, (None, None)),
        (None, (None, None)),
        ("7", (None, None)),
        ({"prompt_tokens": "7", "completion_tokens": 3.0}, (7, 3)),
        ({"prompt_tokens": None, "completion_tokens": True}, (None, None)),
        ({"prompt_tokens": -1, "completion_tokens": 10**30}, (None, None)),
        ({"prompt_tokens": [7], "completion_tokens": float("nan")}, (None, None)),
        (USAGE, (7, 3)),
    ],
)
def test_tokens_are_counted_where_they_are_told(usage, counts):
    got = read(SAID, usage=usage)
    assert (got.prompt_tokens, got.tokens) == counts


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"", "empty body"),
        (b" \n\n ", "empty body"),
        (b"<!DOCTYPE html><html><title>502 Bad Gateway</title></html>", "web page"),
        (b": keep-alive\n\ndata: {}\n\n", "broken stream"),
        (b"event: message\ndata: {}", "broken stream"),
        (b'{"choices": [{"mess', "broken JSON"),
        (b"[" * 200_000, "broken JSON"),
        (b"\xff\xfe\x00 nothing", "broken JSON"),
        (b"3", "broken JSON"),
        (b"null", "broken JSON"),
        (b'{"choices": null}', "no choices"),
        (b'{"choices": {"0": {}}}', "no choices"),
        (b'{"choices": ["up"]}', "no choices"),
        (b'{"choices": [{"message": "up"}]}', "no message"),
        (b'{"choices": [{"text": "up"}]}', "no message"),
        (b'{"error": "model is loading"}', "error"),
        (b'{"error": {"message": "no such model", "code": "404"}, "choices": []}', "error 404"),
    ],
)
def test_what_is_no_reply_is_trouble(body, name):
    with pytest.raises(Trouble) as trouble:
        read_reply(body, 0)
    assert trouble.value.name == name and "\n" not in trouble.value.words and len(trouble.value.words) < 400
    assert trouble.value.most == (1 if name == "error 404" else trouble.value.most)


def test_a_mark_at_the_start_and_halves_of_signs_are_no_trouble():
    body = "\ufeff" + json.dumps(reply("\ud83d\ude00 \ud83d up")[2])
    assert read_reply(body.encode(), 0).text == "\U0001f600 \ufffd up"


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ("plain", "plain"),
        ({"error": {"message": "m", "code": 1}}, "m"),
        ({"message": "m"}, "m"),
        ({"detail": "d"}, "d"),
        ({"detail": [{"loc": ["body", "seed"], "msg": "extra"}, {"msg": "b"}]}, "body.seed: extra; b"),
        ({"error": {"message": "Provider returned error", "metadata": {"raw": "too many"}}},
         "Provider returned error: too many"),
        ([{"error": {"message": "of a list"}}], "of a list"),
        ("<html><head><TITLE>Log in</TITLE></head>", "Log in"),
        ({"error": {"code": "x_y"}}, "x_y"),
        ({"odd": 1}, '{"odd": 1}'),
    ],
)  # fmt: skip
def test_the_words_of_an_error_are_found(sent, words):
    assert words_of(sent) == words


def test_words_are_one_line_that_a_terminal_can_show():
    assert one_line("a\n\x1b[31m\x00b\u202e  c") == "a [31m b c"
    assert len(one_line("x" * 10**6)) == 300


def test_lines_that_cannot_be_read_are_asked_again(tmp_path, caplog, monkeypatch):
    """A list for text, broken UTF-8, no JSON, a line cut off; and what an older version took for an answer."""
    good = ["g", "p", 0, 0, {"text": "up", "finish_reason": "stop", "prompt_tokens": 1, "tokens": 1, "seconds": 0.1}]
    lines = [
        json.dumps(good).encode(),
        json.dumps([*good[:4], {"text": [{"type": "text"}]}]).encode(),
        b'["g", "p", 0, 2, {"text": "\xff\xfe"}]',
        b"not JSON",
        json.dumps([*good[:3], 4, {"text": "", "finish_reason": "content_filter"}]).encode(),
        json.dumps([*good[:3], 5, {"text": "up", "tokens": 10**12}]).encode(),
    ]
    path = tmp_path / "replies.jsonl"
    path.write_bytes(b"\n".join([*lines, b'["g", "p']))
    with caplog.at_level(logging.WARNING, "g1_ray"):
        monkeypatch.setattr(logging.getLogger("g1_ray"), "propagate", True)
        kept = list(kept_replies(path, TypeAdapter(tuple[str, str, int, int, Reply])))
    assert [line[3] for line in kept] == [0, 5] and kept[1][4].tokens is None
    assert "3 of its lines can't be read, the first is line 2" in caplog.text
