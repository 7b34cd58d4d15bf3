"""The games of a server: taken once, kept through any death, scored to whom they belong, replayed by nobody's word."""

import base64
import json
import random
import threading

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("pyarrow")

from g1_ray.evaluation.named import parse_player  # noqa: E402
from g1_ray.evaluation.play import Question, play  # noqa: E402
from g1_ray.serve.arena import Arena, task_of  # noqa: E402
from g1_ray.serve.links import read_link, write_link  # noqa: E402
from g1_ray.serve.session import Refused  # noqa: E402

SMALL = {"2048": {"size": 3}, "shisen": {"rows": 4, "cols": 4}, "swap": {"rows": 4, "cols": 4, "kinds": 4}}
LOOK = {"tile_px": 28}
ANSWER = {"text": "<perception>2 | 4</perception><think>a</think><answer>{}</answer>", "finish_reason": "stop",
          "tokens": 9, "prompt_tokens": 7, "seconds": 0.1, "versions": [4, 4]}  # fmt: skip


@pytest.fixture
def arena(tmp_path):
    arena = Arena(tmp_path / "arena", ["tiny"])
    yield arena
    arena.close()


def reopened(arena: Arena) -> Arena:
    """The arena as another process finds it."""
    arena.close()
    return Arena(arena.folder, arena.models)


def begin(arena: Arena, *seats: str, game: str = "2048", seed: int = 3, **options):
    return arena.create(game, seats, "Ann", seed, reasoning=SMALL[game], perception=LOOK, **options)


def whole(arena: Arena, id: str, lane: dict, choose=lambda legal: legal[0]) -> dict:
    """Plays a person's lane to its end."""
    while not lane["over"]:
        lane = arena.move(id, lane["lane"], lane["revision"], choose(lane["legal"])["action"])
    return lane


def stood(view: dict) -> dict:
    """What of a lane has to outlive a death."""
    return {name: view[name] for name in ("revision", "seat", "moves", "score", "over", "board", "helped", "legal")}


def refusal(call, *args, **options) -> str:
    with pytest.raises(Refused) as refused:
        call(*args, **options)
    assert len(refused.value.message.splitlines()) <= 3
    return refused.value.code


@pytest.mark.parametrize("game", SMALL)
def test_a_game_is_played_to_its_end_and_stands_again_after_a_death(arena, game):
    made = begin(arena, "person", "greedy", "oracle", game=game)
    whole(arena, made["id"], made["lanes"][0])
    for number in (1, 2):
        lane = made["lanes"][number]
        while not lane["over"]:
            lane = arena.classic(made["id"], number, lane["revision"])
    before = arena.session(made["id"])
    arena = reopened(arena)
    after = arena.session(made["id"])
    assert list(map(stood, before["lanes"])) == list(map(stood, after["lanes"]))
    (board,) = arena.scoreboard()
    assert {row["player"]: row["score"][0] for row in board["rows"]} == {
        name: lane["score"] for name, lane in zip(("Ann", "greedy", "oracle"), after["lanes"], strict=True)
    }


def test_the_same_event_sent_again_changes_nothing_and_another_one_is_refused(arena):
    made = begin(arena, "person")
    id, legal = made["id"], made["lanes"][0]["legal"]
    first = arena.move(id, 0, 0, legal[0]["action"])
    assert stood(arena.move(id, 0, 0, legal[0]["action"])) == stood(first)
    assert refusal(arena.move, id, 0, 0, legal[1]["action"]) == "stale"
    assert refusal(arena.move, id, 0, 5, 0) == "stale"
    back = arena.undo(id, 0, 1)
    assert stood(arena.undo(id, 0, 1)) == stood(back) and back["moves"] == 0
    assert arena.hint(id, 0, 2)["lane"]["revision"] == arena.hint(id, 0, 2)["lane"]["revision"] == 3
    assert arena.sit(id, 0, 3, "greedy")["seat"] == arena.sit(id, 0, 3, "greedy")["seat"] == "greedy"
    played = arena.classic(id, 0, 4)
    assert stood(arena.classic(id, 0, 4)) == stood(played)
    assert stood(reopened(arena).session(id)["lanes"][0]) == stood(played)


def test_a_model_is_asked_as_evaluation_asks_it_and_its_first_answer_counts(arena):
    made = begin(arena, "tiny", "person")
    id = made["id"]
    question = arena.question(id, 0, 0)
    assert isinstance(question, Question)
    assert question.key == ("2048", "tiny", 3, 0)
    legal = made["lanes"][0]["legal"][0]["text"]
    reply = ANSWER | {"text": ANSWER["text"].format(legal)}
    first = arena.answer(id, 0, 0, "tiny", reply)
    again = arena.answer(id, 0, 0, "tiny", ANSWER | {"text": ANSWER["text"].format("down")})
    assert first["last"]["text"] == again["last"]["text"] == legal and again["moves"] == 1
    assert first["last"]["answer"]["told"] == [["2", "4"]] and first["last"]["versions"] == [4, 4]
    assert arena.question(id, 0, 0)["last"]["text"] == legal
    unread = arena.answer(id, 0, 1, "tiny", ANSWER | {"text": "I do not know"})
    assert unread["moves"] == 2 and unread["last"]["cause"] == "no answer" and unread["board"] == first["board"]
    assert refusal(arena.move, id, 0, 2, 0) == "not_your_turn"
    assert refusal(arena.question, id, 1, 0) == "not_your_turn"


@pytest.mark.parametrize("versions", [[4, 5], None])
def test_a_models_game_is_scored_whether_or_not_its_version_is_told(arena, versions):
    """An endpoint tells none."""
    made = arena.create("2048", ["tiny"], reasoning={"size": 3, "horizon": 2}, perception=LOOK)
    for revision in range(2):
        lane = arena.answer(made["id"], 0, revision, "tiny", ANSWER | {"versions": versions})
    assert lane["over"] and arena.scoreboard()[0]["rows"][0]["player"] == "tiny"
    assert next(iter(arena.scores._lines.values()))["versions"] == versions
    assert reopened(arena).session(made["id"])["lanes"][0]["last"]["versions"] == versions


def test_mistakes_of_a_classic_player_count_as_in_evaluation(arena):
    made = begin(arena, "uniform", game="shisen")
    lane = made["lanes"][0]
    for _ in range(6):
        lane = arena.classic(made["id"], 0, lane["revision"])
    assert (
        not lane["last"]["legal"] and lane["last"]["action"] is not None and lane["board"] == made["lanes"][0]["board"]
    )
    assert lane["moves"] == 6 and lane["boards_described"] == 0
    assert arena.replay(arena.link(made["id"])["link"])["moves"] == [6]


def test_a_race_begins_with_one_board(arena):
    lanes = begin(arena, "person", "tiny", "oracle")["lanes"]
    assert lanes[0]["board"] == lanes[1]["board"] == lanes[2]["board"]


@pytest.mark.parametrize("help", ["undo", "hint", "seat"])
def test_a_game_with_help_is_on_no_scoreboard(arena, help):
    made = begin(arena, "person")
    lane = arena.move(made["id"], 0, 0, made["lanes"][0]["legal"][0]["action"])
    if help == "undo":
        lane = arena.undo(made["id"], 0, 1)
    elif help == "hint":
        lane = arena.hint(made["id"], 0, 1)["lane"]
    else:
        arena.sit(made["id"], 0, 1, "greedy")
        lane = arena.classic(made["id"], 0, 2)
        lane = arena.sit(made["id"], 0, 3, "person")
    assert whole(arena, made["id"], lane)["helped"]
    assert arena.scoreboard() == []


def test_a_score_that_a_death_kept_from_being_written_is_written_at_the_start(arena):
    made = begin(arena, "person")
    whole(arena, made["id"], made["lanes"][0])
    before = arena.scoreboard()
    (arena.folder / "scores.jsonl").unlink()
    arena = reopened(arena)
    assert arena.scoreboard() == before
    arena = reopened(arena)
    assert arena.scoreboard() == before and len((arena.folder / "scores.jsonl").read_text().splitlines()) == 1


def test_a_line_that_a_death_cut_off_was_never_played(arena):
    made = begin(arena, "person")
    lane = arena.move(made["id"], 0, 0, made["lanes"][0]["legal"][0]["action"])
    path = arena._path(made["id"])
    arena.move(made["id"], 0, 1, lane["legal"][0]["action"])
    path.write_bytes(path.read_bytes()[:-7])
    arena = reopened(arena)
    again = arena.session(made["id"])["lanes"][0]
    assert stood(again) == stood(lane)
    assert arena.move(made["id"], 0, 1, lane["legal"][0]["action"])["moves"] == 2


def test_a_folder_has_one_arena(arena):
    with pytest.raises(ValueError, match="in use"):
        Arena(arena.folder, [])


def test_many_hands_at_one_lane_play_each_move_once(arena):
    made = begin(arena, "oracle")
    threads = [
        threading.Thread(target=lambda: [arena.classic(made["id"], 0, revision) for revision in range(10)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lane = arena.session(made["id"])["lanes"][0]
    assert lane["moves"] == lane["revision"] == 10
    assert len(arena._path(made["id"]).read_text().splitlines()) == 11


def test_what_a_person_played_is_a_player_of_evaluations(arena, tmp_path):
    made = begin(arena, "person", game="shisen", label="small")
    lane = whole(arena, made["id"], made["lanes"][0], lambda legal: legal[-1])
    (tmp_path / "ann.parquet").write_bytes(arena.recordings("small", "Ann"))
    human = parse_player(f"human:{tmp_path / 'ann.parquet'}")
    task = task_of("shisen", reasoning=SMALL["shisen"], perception=LOOK)
    run = play(task, "Ann", human.choose(task, 3), 3)
    assert run.score == lane["score"] and len(run.moves) == lane["moves"]
    assert refusal(arena.recordings, "small", "Bob") == "no_games"


@pytest.mark.parametrize(
    "options, code",
    [
        ({"game": "chess"}, "game"),
        ({"game": "os:path"}, "game"),
        ({"seats": ["nobody"]}, "seat"),
        ({"seats": []}, "seats"),
        ({"seats": ["person"] * 5}, "seats"),
        ({"name": "<script>"}, "name"),
        ({"name": "tiny"}, "name"),
        ({"name": "Oracle"}, "name"),
        ({"seed": -1}, "seed"),
        ({"reasoning": {"size": 99}}, "options"),
        ({"reasoning": {"horizon": 0}}, "options"),
        ({"reasoning": {"size": "3"}}, "options"),
        ({"reasoning": 77}, "options"),
        ({"perception": {"tile_px": 512}, "reasoning": {"size": 6}}, "options"),
        ({"perception": {"path": "/etc"}}, "perception"),
        ({"perception": {"tiles": "folder"}}, "perception"),
        ({"preset": "none"}, "options"),
    ],
)
def test_what_can_not_be_had_is_refused_in_words(arena, options, code):
    assert refusal(arena.create, **{"game": "2048", "seats": ["person"], "name": "Ann"} | options) == code


@pytest.mark.parametrize("id", ["", "x", "../../etc/passwd", "A" * 16, "A" * 5000, "\0" * 16, None])
def test_a_session_that_is_not_there_is_refused(arena, id):
    assert refusal(arena.session, id) == "no_session"


def test_illegal_and_unreadable_moves_of_a_person_are_not_played(arena):
    made = begin(arena, "person", game="shisen")
    legal = {option["action"] for option in made["lanes"][0]["legal"]}
    illegal = next(action for action in range(100) if action not in legal)
    assert refusal(arena.move, made["id"], 0, 0, illegal) == "illegal"
    assert refusal(arena.move, made["id"], 0, 0, 10**6) == "no_action"
    assert refusal(arena.move, made["id"], 0, 0, None, "what?") == "unreadable"
    assert refusal(arena.move, made["id"], 0, 0) == refusal(arena.move, made["id"], 0, 0, 1, "up") == "move"
    assert refusal(arena.move, made["id"], 7, 0, 0) == "no_lane"
    words = made["lanes"][0]["legal"][0]["text"]
    assert arena.move(made["id"], 0, 0, None, words)["last"]["text"] == words


# Links


def played(arena: Arena) -> str:
    made = begin(arena, "person", "greedy")
    whole(arena, made["id"], made["lanes"][0])
    lane = made["lanes"][1]
    while not lane["over"]:
        lane = arena.classic(made["id"], 1, lane["revision"])
    return arena.link(made["id"])["link"]


def test_a_link_shows_what_was_played(arena):
    link = played(arena)
    shown = arena.replay(link, 1)
    assert shown["players"] == ["Ann", "greedy"]
    assert len(shown["frames"]) == shown["moves"][1] + 1
    assert shown["frames"][-1]["move"] is None and shown["frames"][-1]["over"]
    assert [frame["number"] for frame in reopened(arena).replay(link, 0, 2, 3)["frames"]] == [2, 3, 4]


def test_no_forged_or_altered_link_is_accepted(arena):
    """10,000: bits turned, cut, joined, signed by others, moves changed and packed anew with the old signature."""
    link, rng = played(arena), random.Random(0)
    data = base64.urlsafe_b64decode(link + "=" * (-len(link) % 4))
    real = read_link(arena._secret, link)

    def altered() -> str:
        kind = rng.randrange(6)
        if kind == 0:
            at = rng.randrange(len(data))
            return encoded(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
        if kind == 1:
            return link[: rng.randrange(len(link))]
        if kind == 2:
            at = rng.randrange(len(link))
            other = rng.choice([c for c in "ABCxyz019_-" if c != link[at]])
            return link[:at] + other + link[at + 1 :]
        if kind == 3:
            return link + rng.choice(["A", "=", "==", " ", "\n", "AAAA"])
        actions = [list(its) for its in real.actions]
        lane = rng.randrange(len(actions))
        actions[lane] = actions[lane][: rng.randrange(len(actions[lane]))]
        if kind == 4:  # signed, but by somebody else
            return write_link(rng.randbytes(32), real.game, real.task, real.seed, real.players, actions)
        text = write_link(b"", real.game, real.task, real.seed, [*real.players[:-1], "Eve"], actions)
        return encoded(data[:16] + base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[16:])

    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    accepted = 0
    for _ in range(10_000):
        try:
            read_link(arena._secret, altered())
            accepted += 1
        except Refused:
            pass
    assert accepted == 0


def test_a_link_that_unpacks_to_much_is_refused(arena):
    import zlib

    bomb = base64.urlsafe_b64encode(bytes(16) + zlib.compress(b"[" * 20_000_000, 9)).decode().rstrip("=")
    assert refusal(read_link, arena._secret, bomb[:31_999]) == "forged"
    assert refusal(read_link, arena._secret, "A" * 40_000) == "forged"


def test_views_are_json(arena):
    made = begin(arena, "person", "tiny")
    arena.answer(made["id"], 1, 0, "tiny", ANSWER)
    for view in (arena.session(made["id"]), arena.told(made["id"], 1, 0), arena.scoreboard()):
        assert json.loads(json.dumps(view, allow_nan=False)) == view
