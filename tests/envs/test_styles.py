import re
from collections import Counter

import numpy as np
import pytest

from envs import Codec, Game, Task
from envs.answers import CellPairs
from envs.styles import SHARES, STYLES, Generalist
from envs.teacher import UNSURE, think
from g1_ray.rollout.patterns import patterns_of, thinking_of
from tests.envs.test_teacher import TASKS, games

PLACE = re.compile(r"\((\d+), (\d+)\)")


def thoughts(name: str, style: str, num: int = 40) -> list[tuple[Game, str, list[int]]]:
    task = TASKS[name]
    made = []
    for seed, game in enumerate(games(task, num)):
        thought = STYLES[style](game, Codec(task).names, np.random.default_rng(seed))
        made.append((game, thought.working, list(thought.moves)))
    return made


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_well_formed_see_the_board_and_are_legal(name: str) -> None:
    task = TASKS[name]
    codec, teacher, rng = Codec(task), Generalist(task, SHARES), np.random.default_rng(0)
    for game in games(task, 60):
        before = game.snapshot()
        lesson = teacher.answer(game, rng)
        answer = codec.read(lesson.text)
        assert answer.well_formed and answer.action == lesson.action and lesson.action in game.legal_actions()
        assert codec.score_perception(answer.perception, game.perception()).exact
        assert game.snapshot() == before


@pytest.mark.parametrize("style", ["places", "kinds"])
@pytest.mark.parametrize("name", TASKS)
def test_what_is_told_of_places_is_true(name: str, style: str) -> None:
    names = Codec(TASKS[name]).names
    for game, working, _ in thoughts(name, style):
        board = game.perception()
        for line in working.split("\n"):
            (kind,) = {word for word in names[1:] if word in PLACE.sub("", line).strip().split("\n")}
            told = [(int(row), int(col)) for row, col in PLACE.findall(line)]
            assert told and all(names[board[place]] == kind for place in told)
            assert style == "places" or len(told) == (board == list(names).index(kind)).sum()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", TASKS)
def test_moves_that_follow_are_legal_and_of_what_was_told(name: str, style: str) -> None:
    followed = 0
    for game, working, moves in thoughts(name, style):
        assert set(moves) <= set(game.legal_actions())
        followed += bool(moves)
        if style in ("places", "kinds") and isinstance(game.actions, CellPairs):
            told = {int(row) * game.cols + int(col) for row, col in PLACE.findall(working)}
            assert all(set(game.actions.cells(move)) & told for move in moves)
    assert followed == 0 if style == "none" or (style == "kinds" and name.startswith("2048")) else followed > 0


@pytest.mark.parametrize("name", TASKS)
def test_a_partial_working_is_the_first_part_of_the_whole(name: str) -> None:
    for seed, (game, working, moves) in enumerate(thoughts(name, "partial")):
        whole = think(game, Codec(TASKS[name]).names, np.random.default_rng(seed), False)
        assert whole.working.startswith(working) and len(working) < len(whole.working)
        assert moves == list(whole.moves) and "same" not in working


def test_without_a_thought_any_legal_move_comes() -> None:
    (game,) = games(TASKS["shisen"], 1)
    teacher = Generalist(TASKS["shisen"], {"none": 1})
    lessons = [teacher.answer(game, np.random.default_rng(seed)) for seed in range(200)]
    assert {lesson.action for lesson in lessons} == set(game.legal_actions())
    assert {thinking_of(lesson.text).strip() for lesson in lessons} == {UNSURE}
    assert teacher(game, np.random.default_rng(0)) in game.legal_actions()


@pytest.mark.parametrize("style", STYLES)
def test_of_a_board_without_a_tile_nothing_is_told(style: str) -> None:
    task = TASKS["2048"]
    game = task.new_game()
    game.reset(0)
    blank = type("Blank", (type(game),), {"perception": lambda self: np.zeros((3, 3), np.uint8)})
    game.__class__ = blank
    lesson = Generalist(task, {style: 1}).answer(game, np.random.default_rng(0))
    assert thinking_of(lesson.text).strip() == UNSURE and lesson.action in game.legal_actions()


def test_styles_come_by_their_shares_and_moves_follow_at_their_rate() -> None:
    task = TASKS["2048"]
    teacher, names = Generalist(task, {"none": 1, "working": 3}, 0.4), Codec(task).names
    lessons = [teacher.answer(game, np.random.default_rng(i)) for i, game in enumerate(games(task, 800))]
    workings = [lesson for lesson in lessons if UNSURE not in lesson.text]
    assert len(workings) / len(lessons) == pytest.approx(0.75, abs=0.05)
    seen = Counter(pattern for lesson in workings for pattern in patterns_of(thinking_of(lesson.text), names))
    assert seen["none"] < 0.2 * len(workings) and seen["line_by_line"] > 0.6 * len(workings)
    # A move at random follows, too, where it is the one.
    erred = np.mean([lesson.erred for lesson in workings])
    assert 0.6 * 0.4 < erred < 0.6
    assert not any(lesson.erred for lesson in lessons if UNSURE in lesson.text)


@pytest.mark.parametrize(
    "shares, follow, words",
    [({"none": 1}, 1.5, "follow = 1.5"), ({"poem": 1}, 0.5, "'poem'"), ({"none": 0}, 0.5, "above"),
     ({"none": -1, "working": 2}, 0.5, "below 0"), ({}, 0.5, "one must be above")],
)  # fmt: skip
def test_bad_shares(shares: dict[str, float], follow: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Generalist(Task.make("2048"), shares, follow)
