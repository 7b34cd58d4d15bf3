import re

import numpy as np
import pytest

from envs import Codec, State, Task
from envs.core import Game
from envs.games.g2048 import slide_line
from envs.rewards import reward_table, ternary
from envs.teacher import Oracle, merged, place, think
from g1_ray.config import StatesConfig
from g1_ray.rollout.starts import draw_state

TASKS = {
    "2048": Task.make("2048", reasoning={"size": 3}),
    "2048 4x4": Task.make("2048", reasoning={"size": 4}),
    "shisen": Task.make("shisen", reasoning={"rows": 4, "cols": 4}),
    "photos": Task.make("shisen-photos", reasoning={"rows": 4, "cols": 4}),
    "swap": Task.make("swap", reasoning={"rows": 5, "cols": 5}),
}


def games(task: Task, num: int, open_only: bool = False) -> list[Game]:
    mix = StatesConfig(open_only=open_only)
    return [draw_state(task, mix, seed, ternary).game() for seed in range(num)]


def won(game: Game, action: int) -> bool:
    return ternary(game.fork().step(action)) > 0


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_well_formed_and_see_the_board(name: str) -> None:
    task = TASKS[name]
    codec, rng = Codec(task), np.random.default_rng(0)
    teacher = Oracle(task)
    for game in games(task, 10):
        before = game.snapshot()
        lesson = teacher.answer(game, rng)
        answer = codec.read(lesson.text)
        assert answer.well_formed and answer.action == lesson.action
        assert codec.score_perception(answer.perception, game.perception()).exact
        assert game.snapshot() == before


@pytest.mark.parametrize("name", TASKS)
def test_an_oracle_that_never_errs_scores_wherever_it_can(name: str) -> None:
    teacher, rng = Oracle(TASKS[name], err=0), np.random.default_rng(0)
    for game in games(TASKS[name], 40):
        lesson = teacher.answer(game, rng)
        assert not lesson.erred
        assert lesson.action in reward_table(game).best


@pytest.mark.parametrize("name", ["2048", "2048 4x4"])
def test_errs_at_its_rate(name: str) -> None:
    rng = np.random.default_rng(0)
    states = games(TASKS[name], 150, open_only=True)
    for rate in (0.28, 1.0):
        lessons = [(game, Oracle(TASKS[name], rate).answer(game, rng)) for game in states]
        assert all(won(game, lesson.action) is not lesson.erred for game, lesson in lessons)
        erred = np.mean([lesson.erred for _, lesson in lessons])
        assert abs(erred - rate) < 0.1


@pytest.mark.parametrize("name", ["shisen", "photos"])
def test_errs_with_one_of_the_two_tiles_and_another(name: str) -> None:
    rng = np.random.default_rng(0)
    for game in games(TASKS[name], 60):
        lesson = Oracle(TASKS[name], 1.0).answer(game, rng)
        assert lesson.erred or np.count_nonzero(game.perception()) == 2  # the last pair can't be missed
        assert won(game, lesson.action) is not lesson.erred
        a, b = (divmod(cell, 4) for cell in game.actions.cells(lesson.action))
        assert game.perception()[a] and game.perception()[b]
        first = re.search(r"same \((\d), (\d)\)", lesson.text)
        assert first and tuple(map(int, first.groups())) in (a, b)


def test_answers_are_drawn_from_the_generator_given() -> None:
    (game,) = games(TASKS["shisen"], 1)
    texts = [Oracle(TASKS["shisen"]).answer(game, np.random.default_rng(seed)).text for seed in (1, 1, *range(20))]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def state_2048(board: list[list[int]]) -> Game:
    game = TASKS["2048"].new_game()
    game.reset(0)
    data = bytearray(game.snapshot())
    data[-9:] = bytes(np.array(board, np.uint8).ravel().tolist())
    return State(TASKS["2048"], bytes(data)).game()


def test_working_of_2048() -> None:
    game = state_2048([[1, 0, 1], [2, 3, 4], [2, 1, 0]])
    thought = think(game, Codec(TASKS["2048"]).names, np.random.default_rng(0), False)
    assert thought.working == "rows 4 | - | -\ncolumns 8 | - | -"
    assert thought.moves == [0]  # up: the 8 is worth more than the 4
    game = state_2048([[1, 1, 1], [2, 3, 4], [5, 6, 0]])
    names = Codec(TASKS["2048"]).names
    assert think(game, names, np.random.default_rng(0), False).moves == [3]
    assert think(game, names, np.random.default_rng(0), True).moves == [2]  # up changes nothing


def test_working_of_2048_where_nothing_merges() -> None:
    names = Codec(TASKS["2048"]).names
    game = state_2048([[1, 2, 0], [2, 1, 0], [1, 2, 0]])
    thought = think(game, names, np.random.default_rng(0), False)
    assert thought.working.splitlines()[2:] == ["left - | - | -", "up - | - | -", "right 4 | 2 | 4"]
    assert thought.moves == [1]
    assert not think(game, names, np.random.default_rng(0), True).moves
    game = state_2048([[1, 2, 0], [0, 0, 3], [1, 2, 0]])
    assert think(game, names, np.random.default_rng(0), False).working == "rows - | - | -\ncolumns 4 | 8 | -"


def test_merged_is_what_sliding_merges() -> None:
    for line in np.ndindex(4, 4, 4, 4):
        after, _, gain, merges = slide_line(bytes(line), 9)
        assert bool(merged(bytes(line), 9)) == bool(merges)
        assert 1 << merged(bytes(line), 9) <= max(gain, 1) <= merges << merged(bytes(line), 9) or not merges
    assert merged(bytes([9, 9]), 9) == 0


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("task", [TASKS["shisen"], Task.make("shisen", preset="paper")], ids=["4x4", "6x6"])
def test_working_of_shisen_is_what_its_sides_show(task: Task, seed: int) -> None:
    """Of a large board, that a tile is like another is told before where it is."""
    codec, large = Codec(task), task.reasoning != TASKS["shisen"].reasoning
    game = draw_state(task, StatesConfig(), seed, ternary).game()
    board = game.perception()
    thought = think(game, codec.names, np.random.default_rng(seed), False)
    told, _, found = thought.working.partition(" same ")
    _, *words = re.split("(left|top|right|bottom)", told)
    cells = np.arange(board.size).reshape(board.shape)
    turned = {"left": cells, "top": cells.T, "right": cells[:, ::-1], "bottom": cells[::-1].T}
    assert words[::2] == list(turned)[: len(words) // 2]
    for number, (side, text) in enumerate(zip(words[::2], words[1::2], strict=True), 1):
        seen = [next((cell for cell in row if board.flat[cell]), None) for row in turned[side].tolist()]
        whole = " ".join(f"{codec.names[board.flat[c]]} {place(c, codec.cols)}" for c in seen if c is not None)
        shown = [codec.names.index(kind) for kind in re.findall(r"([a-z][a-z ]*?)(?: \(|$)", text.strip())]
        assert text.strip().endswith(")") or (large and number == len(words) // 2)
        assert len(set(shown[:-1])) == len(shown[:-1])
        last = number == len(words) // 2
        assert whole == text.strip() or (last and whole.startswith(text.strip()) and shown[-1] in shown[:-1])
    assert set(thought.moves) <= set(game.legal_actions())
    a, b = game.actions.cells(thought.moves[0])
    assert board.flat[a] == board.flat[b]
    assert sorted(found.replace(") ", ");").split(";")) == [place(cell, codec.cols) for cell in (a, b)]


def state_swap(rows: list[str]) -> Game:
    game = TASKS["swap"].new_game()
    game.reset(0)
    data = bytearray(game.snapshot())
    data[-25:] = bytes(int(kind) for row in rows for kind in row)
    return State(TASKS["swap"], bytes(data)).game()


def test_working_of_swap() -> None:
    game = state_swap(["12341", "34122", "22143", "31214", "13431"])
    names = Codec(TASKS["swap"]).names
    thought = think(game, names, np.random.default_rng(0), False)
    _, one, two, three, four = names[:5]
    assert thought.working == " ".join(
        [
            *("(0, 1) -", "(0, 2) -", "(0, 3) -", "(1, 1) -", "(1, 2) -"),
            f"(1, 3) (1, 2) {two} {three} {four} {one}",
            f"(2, 1) (2, 2) {two} {one} {four} {two}",
            "same (2, 2) (3, 2)",
        ]
    )


@pytest.mark.parametrize("seed", range(30))
def test_working_of_swap_ends_with_a_swap_that_scores(seed: int) -> None:
    codec, task = Codec(TASKS["swap"]), TASKS["swap"]
    game = draw_state(task, StatesConfig(max_walk=3), seed, ternary).game()
    thought = think(game, codec.names, np.random.default_rng(seed), False)
    (move,) = thought.moves
    assert move in game.legal_actions()
    assert thought.working.endswith(f" same {codec.actions.write(move)}")
    wrong = think(game, codec.names, np.random.default_rng(seed), True)
    assert wrong.working == thought.working
    assert wrong.moves and not set(wrong.moves) & set(game.legal_actions())


def test_rate_out_of_range() -> None:
    with pytest.raises(ValueError, match="err = 1.5"):
        Oracle(TASKS["2048"], 1.5)
