"""Patterns in thinking: each found where it is and nowhere else, and in the teachers' workings those that they have."""

import time

import numpy as np
import pytest

from envs import Codec, Task
from envs.styles import Generalist
from envs.teacher import Oracle
from g1_ray.rollout.patterns import patterns_of, thinking_of
from g1_ray.runs.curves import PATTERNS

SHAPES = ("-", "red star", "blue square", "green circle")
NUMBERS = ("-", "2", "4", "8", "16")


@pytest.mark.parametrize(
    ("text", "names", "patterns"),
    [
        ("", SHAPES, {"none"}),
        ("I take a legal move.", SHAPES, {"none"}),
        ("This swap is legal.", SHAPES, {"check"}),
        ("I take the best move.", SHAPES, {"none"}),
        ("I like red stars and a blue square.", SHAPES, {"none"}),
        ("(0, 1): red star", SHAPES, {"localisation"}),
        ("The red star is at row 0, column 1.", SHAPES, {"localisation"}),
        ("There is a blue square. I swap (0, 1) and (0, 2)", SHAPES, {"none"}),
        ("red star: (0, 1), (2, 3) and (3, 3)", SHAPES, {"localisation", "enumeration"}),
        ("I see two red stars and three blue squares.", SHAPES, {"enumeration"}),
        ("Two red stars.", SHAPES, {"none"}),
        ("Row 0: red star, green circle\nRow 1: blue square", SHAPES, {"line_by_line"}),
        ("Row 0: red star, green circle", SHAPES, {"none"}),
        ("rows 4 | - | 2\ncolumns 8 | - | -", NUMBERS, {"line_by_line"}),
        ("The 2 at (2, 4) could move", NUMBERS, {"localisation"}),
        ("(2, 4) (4, 2)", NUMBERS, {"none"}),  # the numbers of a place are no tiles
        ("Up gives most. Let me check that it is possible", NUMBERS, {"check"}),
        ("Check this first.\nThen I go up", NUMBERS, {"none"}),  # at the end, not at the start
        ("PPP KKK P K", NUMBERS, {"none"}),
    ],
)
def test_each_is_told_by_its_form(text: str, names: tuple[str, ...], patterns: set[str]) -> None:
    assert patterns_of(text, names) == patterns <= set(PATTERNS)


def test_the_teachers_workings() -> None:
    expected = {"2048": {"line_by_line"}, "shisen": {"localisation", "check"}, "swap": {"localisation"}}
    for game, pattern in expected.items():
        task = Task.make(game, perception={"tile_px": 28})
        board, names, rng = task.new_game(), Codec(task).names, np.random.default_rng(0)
        board.reset(3)
        working = thinking_of(Oracle(task, err=0.0).answer(board, rng).text)
        assert pattern <= patterns_of(working, names), (game, working, patterns_of(working, names))
        assert thinking_of(Generalist(task, {"none": 1}).answer(board, rng).text).strip() == "I take a legal move."
    assert thinking_of("<answer>up</answer>") == "" and thinking_of("<think>a</think><think>b</think>") == "a"


def test_long_texts_are_read_in_time() -> None:
    begun = time.process_time()
    for text in ("(0,0) " * 5000, "red star " * 5000, "row 0 " * 5000, "check " * 5000, "K" * 20000):
        patterns_of(text, SHAPES)
    assert time.process_time() - begun < 1
