"""The defects of the original environments (numbered as in our notes on its code): each test is one it would fail.

d3, d4 and d8 (forks that differ, what a restored game forgot, seeds) are for every game in test_core.
"""

import numpy as np
import pytest

from envs import Codec, State, Task, VLMGymEnv
from envs.games.g2048 import Batch2048, Game2048
from envs.tiles.drawn import SHAPE_NAMES, Shapes


def started(name, seed=0, **options):
    game = Task.make(name, **options).new_game()
    game.reset(seed)
    return game


@pytest.mark.parametrize("side", [6, 8, 12])
def test_d1_every_pair_of_coordinates_is_played_as_written(side):
    """Shipped with a 12x12 board whose actions were coded base 6: one pair in eight was played as written."""
    task = Task.make("shisen", reasoning={"rows": side, "cols": side})
    codec, rng = Codec(task), np.random.default_rng(0)
    for _ in range(2000):
        (r1, c1), (r2, c2) = rng.integers(0, side, (2, 2)).tolist()
        answer = codec.read(f"<answer>({r1}, {c1}) ({r2}, {c2})</answer>")
        if (r1, c1) == (r2, c2):
            assert answer.action is None
        else:
            assert codec.actions.cells(answer.action) == tuple(sorted((r1 * side + c1, r2 * side + c2)))


@pytest.mark.parametrize("name, side", [("shisen", 6), ("swap", 8)])
def test_d2_coordinates_off_the_board_are_never_played(name, side):
    """They wrapped around to another tile and could earn the reward."""
    codec = Codec(Task.make(name))
    for row, col in ((0, side), (side, 0), (-1, 0), (0, -1), (99, 99), (side - 1, side)):
        answer = codec.read(f"<answer>({row}, {col}) (0, 0)</answer>")
        assert answer.action is None and answer.cause == "out of the board"


def last_pair():
    """A board with one pair left, one move before it is cleared."""
    game = started("shisen")
    while game.score < 17:
        game.step(game.oracle())
    return game


def test_d5_large_tiles_are_whole_numbers_with_their_reward_picture_and_name():
    """Under NumPy 2, 128 + 128 overflowed: no reward, a blank tile, perception '0'."""
    task = Task.make("2048")
    game = task.new_game()
    for kind in range(7, 17):
        game.reset(0)
        game._flat = bytes([kind, kind, *[0] * 14])
        game.restore(game.snapshot())
        outcome = game.step(3)
        assert outcome.gain == 2 ** (kind + 1) and game.perception()[0, 0] == kind + 1
        assert Codec(task).describe(game.perception()).startswith(f"{2 ** (kind + 1)} |")
        assert (
            task.draw(game)[:168, :168] != task.renderer.draw(np.zeros((4, 4), np.uint8), game.looks)[:168, :168]
        ).any()


@pytest.mark.parametrize("side", [7, 8, 10, 12])
def test_d7_the_photo_game_has_any_size(side):
    """Larger than 6x6 it raised IndexError."""
    cols = side + 1 if side % 2 else side
    task = Task.make("shisen-photos", reasoning={"rows": side, "cols": cols})
    game = task.new_game()
    game.reset(0)
    assert game.legal_actions() and task.draw(game).size


def test_d9_episodes_can_start_from_any_depth():
    """After 250 random moves 30 of 36 tiles were left, so that end-games were never trained."""
    tiles = set()
    for seed in range(30):
        env = VLMGymEnv("shisen", observation="board")
        board, info = env.reset(seed=seed, options={"walk": seed % 18})
        tiles.add(np.count_nonzero(board))
        assert info["legal_actions"]
    assert min(tiles) <= 6 and len(tiles) >= 12
    env.reset(options={"state": last_pair().snapshot()})
    assert np.count_nonzero(env.game.perception()) == 2


def test_d16_a_legal_move_without_a_merge_is_no_illegal_one():
    """Both got -1."""
    game = Game2048()
    game.reset(0)
    game._flat = bytes([1, *[0] * 15])
    game.restore(game.snapshot())
    quiet, illegal = game.fork().step(1), game.fork().step(0)
    assert quiet.legal and quiet.gain == 0 and not illegal.legal and illegal.gain == 0


def test_d17_training_and_evaluation_see_the_same_picture():
    """640x840 in training, 640x640 in evaluation."""
    for name in ("2048", "shisen", "swap"):
        task = Task.make(name)
        env, game = VLMGymEnv(name, render_mode="rgb_array"), started(name, 3)
        observation, _ = env.reset(seed=3)
        assert (observation == task.draw(game)).all() and (observation == env.render()).all()
        assert observation.shape[0] == observation.shape[1]


def test_d18_a_star_is_a_star():
    """It was drawn as an X."""
    star = Shapes(1, len(SHAPE_NAMES), False)
    picture = star.draw(1 + SHAPE_NAMES.index("star"), 0, 112)
    mask = np.asarray(picture)[..., 3] > 128
    assert (mask == mask[:, ::-1]).mean() > 0.99  # left and right alike, as an X is,
    assert (mask == mask[::-1]).mean() < 0.95  # but not top and bottom
    top = np.flatnonzero(mask.any(1))[0]
    assert mask[top : top + 4].any(0).sum() < 12  # one tip points up


def test_d18_boards_can_be_cleared():
    """8 % of random-legal games ended in a board that could not; some could not from the start."""
    for seed in range(50):
        game = started("shisen", 1000 + seed)
        while not game.over:
            game.step(game.oracle())
        assert not game.perception().any()


@pytest.mark.parametrize("name", ["2048", "shisen", "shisen-photos", "swap"])
def test_d19_pictures_show_the_board_alone_and_the_action_space_is_what_step_takes(name):
    """A constant 'Score: 0 Moves: 1000000' was drawn; MultiDiscrete was declared and an integer passed."""
    env = VLMGymEnv(name)
    first, info = env.reset(seed=0)
    for _ in range(5):
        env.game.moves += 7  # counters are not drawn
        env.game.score += 3
        assert (env.task.draw(env.game) == env._observe()).all()
    assert (env._observe() == first).all()
    assert env.action_space.contains(np.int64(info["legal_actions"][0]))
    for _ in range(20):
        action = env.action_space.sample()
        assert env.action_space.contains(action)
        env.step(action)


@pytest.mark.parametrize("name", ["2048", "shisen", "swap"])
def test_d2_actions_off_the_action_space_change_nothing(name):
    """They wrapped around to another tile and could earn the reward."""
    game = started(name)
    board = game.perception()
    for action in (game.actions.num, -1, *(a + game.actions.num for a in game.legal_actions()), 1297, 6**4 + 1):
        if action in game.legal_actions():
            continue
        outcome = game.step(action)
        assert not outcome.legal and outcome.gain == 0 and (game.perception() == board).all()


def test_d5_128_and_128_make_256_in_a_batch_too():
    """Under NumPy 2, 128 + 128 overflowed: no reward, a blank tile, perception '0'."""
    game = started("2048")
    data = game.snapshot()[:-16] + bytes([7, 7, *[0] * 14])
    batch = Batch2048(game.options, 2)
    for i in range(2):
        batch.restore(i, data)
    outcomes = batch.step(np.array([1, 3]))
    assert outcomes.gain.tolist() == [256, 256] and batch.scores.tolist() == [256, 256]
    assert batch.boards[0, 0, 3] == batch.boards[1, 0, 0] == 8


def test_d7_photos_of_training_and_evaluation_differ():
    """Training images were used for evaluation too."""
    pictures = []
    for split in ("train", "heldout"):
        tiles = Task.make("shisen-photos", perception={"split": split}).renderer.look.tiles
        pictures.append({tiles.draw(1, i, 28).tobytes() for i in range(tiles.num_pictures(1))})
    assert len(pictures[0]) == len(pictures[1]) == 64 and not pictures[0] & pictures[1]


@pytest.mark.parametrize("name", ["2048", "shisen", "shisen-photos", "swap"])
def test_d9_a_good_episode_is_saved_and_restored_at_every_depth(name):
    """Start states were those of random play: hardly a tile gone, no tile above 64, Swap on fresh boards only."""
    task = Task.make(name)
    game = task.new_game()
    game.reset(0)
    states, largest, fewest = [], 0, game.perception().size
    while not game.over:
        board = game.perception()
        largest, fewest = max(largest, int(board.max())), min(fewest, np.count_nonzero(board))
        states.append((State.of(task, game).to_bytes(), game.snapshot()))
        game.step(game.oracle())
    last = game.snapshot()
    assert {"2048": largest > 6, "swap": game.score == 100}.get(name, fewest == 2)
    for saved, snapshot in states:
        twin = State.from_bytes(saved).game()
        assert twin.snapshot() == snapshot and not twin.over and twin.legal_actions()
    while not twin.over:
        twin.step(twin.oracle())
    assert twin.snapshot() == last


@pytest.mark.parametrize("name", ["2048", "shisen", "shisen-photos", "swap"])
def test_d19_different_boards_have_different_pictures_everywhere(name):
    """Part of each picture was constant text; a tile could be drawn blank."""
    task = Task.make(name)
    game, px = task.new_game(), task.renderer.px
    for seed in range(3):
        game.reset(seed)
        board, frame = game.perception(), task.draw(game)
        assert frame.shape == (game.rows * px, game.cols * px, 3)  # nothing but cells
        for row in range(game.rows):
            for col in range(game.cols):
                other = board.copy()
                other[row, col] = (board[row, col] + 1) % (game.num_kinds + 1)
                changed = (task.renderer.draw(other, game.looks) != frame).any(-1)
                assert changed[row * px : (row + 1) * px, col * px : (col + 1) * px].sum() > 20
                changed[row * px : (row + 1) * px, col * px : (col + 1) * px] = False
                assert not changed.any()


@pytest.mark.parametrize("name", ["2048", "shisen", "shisen-photos", "swap"])
def test_d19_no_two_kinds_look_alike(name):
    """The 256 tile was drawn like an empty cell."""
    task = Task.make(name)
    game = task.new_game()
    game.reset(0)
    shape = (game.rows, game.cols)
    frames = {task.renderer.draw(np.full(shape, k, np.uint8), game.looks).tobytes() for k in range(game.num_kinds + 1)}
    assert len(frames) == game.num_kinds + 1
