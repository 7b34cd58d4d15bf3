"""2048: the rules against a plain reference, one board against many, the oracle."""

import itertools
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from envs import Task
from envs.games.g2048 import Batch2048, Game2048, Options2048, expectimax, slide_all, slide_line


def reference_line(line, cap):
    """Slide to the front, tile by tile, as a person would: merge with the last one if it is equal and unmerged."""
    out, merged, gain = [], [], 0
    for tile in [t for t in line if t]:
        if out and out[-1] == tile and not merged[-1] and tile < cap:
            out[-1], merged[-1] = tile + 1, True
            gain += 2 ** (tile + 1)
        else:
            out.append(tile)
            merged.append(False)
    return out + [0] * (len(line) - len(out)), gain, sum(merged)


def reference_move(board, action, cap):
    turns = {0: 1, 1: 2, 2: 3, 3: 0}[action]  # up, right, down, left become left
    turned = np.rot90(board, turns)
    lines = [reference_line(row, cap) for row in turned.tolist()]
    after = np.rot90(np.array([line for line, _, _ in lines]), -turns)
    return after, sum(gain for _, gain, _ in lines), sum(merges for _, _, merges in lines)


@pytest.mark.parametrize("size, goal", [(2, 0), (3, 0), (4, 0), (4, 16), (5, 0), (8, 0)])
def test_moves_are_those_of_the_reference(size, goal):
    game = Game2048(Options2048(size=size, goal=goal, horizon=0))
    rng = np.random.default_rng(0)
    for seed in range(6):
        game.reset(seed)
        while not game.over and game.moves < 150:
            board, cap = game.perception(), game.num_kinds
            moved = {a: reference_move(board, a, cap) for a in range(4)}
            assert game.legal_actions() == tuple(a for a in range(4) if (moved[a][0] != board).any())
            action = int(rng.integers(4))
            outcome = game.step(action)
            after, gain, merges = moved[action]
            if not outcome.legal:
                assert (after == board).all()
                continue
            assert (outcome.gain, outcome.cleared) == (gain, merges)
            new = np.argwhere(game.perception() != after)
            assert len(new) == 1 and after[tuple(new[0])] == 0
            assert game.perception()[tuple(new[0])] in (1, 2)
            # Tile mass: merging keeps it, the new tile adds 2 or 4.
            mass = (1 << game.perception().astype(int))[game.perception() > 0].sum()
            assert mass - (1 << board.astype(int))[board > 0].sum() in (2, 4)


def test_a_tile_merges_once_a_move_and_the_largest_never():
    assert slide_line(bytes([1, 1, 1, 1]), 17)[0] == bytes([2, 2, 0, 0])
    assert slide_line(bytes([1, 1, 2, 0]), 17) == (bytes([2, 2, 0, 0]), bytes([0, 0, 2, 2]), 4, 1)
    assert slide_line(bytes([17, 17, 0, 0]), 17)[0] == bytes([17, 17, 0, 0])


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_any_two_equal_tiles_merge_as_the_rules_say(size):
    task = Task.make("2048", reasoning={"size": size})
    game, batch = task.new_game(), task.new_batch(1)
    game.reset(0)
    at = len(game.snapshot()) - size**2
    for kind in range(1, game.num_kinds):
        data = game.snapshot()[:at] + bytes([kind, kind]) + bytes(size**2 - 2)
        twin = task.new_game()
        twin.restore(data)
        batch.restore(0, data)
        outcome = twin.step(3)
        assert (outcome.gain, outcome.cleared) == (2 ** (kind + 1), 1) and kind + 1 in twin.perception()
        assert batch.step(np.array([3])).gain[0] == outcome.gain
        task.draw(twin)
    assert game.num_kinds == {2: 5, 3: 10}.get(size, 18)
    names = task.renderer.names
    rules = game.rules(names)
    assert ("The last kind merges no more." in rules) == (size > 4)  # play makes no second one on smaller boards
    assert f", {2 ** min(18, size**2 + 1)}. " in rules


def test_new_tiles_are_fours_one_time_in_ten_and_anywhere():
    game = Game2048()
    kinds, cells = [], np.zeros(16)
    for seed in range(3000):
        game.reset(seed)
        board = game.perception().ravel()
        kinds += board[board > 0].tolist()
        cells += board > 0
    assert 0.08 < np.mean(np.array(kinds) == 2) < 0.12
    assert cells.min() > 0.75 * cells.mean()


def test_a_goal_wins_and_ends_the_episode():
    game = Game2048(Options2048(goal=16, horizon=0))
    for seed in range(10):
        game.reset(seed)
        while not game.over:
            outcome = game.step(game.oracle())
        assert outcome.terminated and outcome.success and game.perception().max() == 4


def test_a_full_board_ends_the_episode_without_success():
    game = Game2048(Options2048(size=2, horizon=0))
    rng = np.random.default_rng(0)
    for seed in range(20):
        game.reset(seed)
        while not game.over:
            outcome = game.step(int(rng.integers(4)))
        assert outcome.terminated and not outcome.success and (game.perception() > 0).all()


@pytest.mark.parametrize(
    "size, goal, horizon", [(4, 0, 100), (4, 0, 0), (3, 64, 0), (2, 0, 50), (5, 0, 300), (8, 0, 60)]
)
def test_a_batch_does_what_single_boards_do_bit_for_bit(size, goal, horizon):
    options, num = Options2048(size=size, goal=goal, horizon=horizon), 12
    batch, games = Batch2048(options, num), [Game2048(options) for _ in range(num)]
    rng, deals = np.random.default_rng(1), 0
    for i, game in enumerate(games):
        batch.reset(i, i)
        game.reset(i)
    for step in range(400):
        live = np.array([not game.over for game in games]) & (rng.random(num) < 0.9)
        actions = rng.integers(-1, 5, num)
        outcomes = batch.step(actions, live)
        for i, game in enumerate(games):
            if live[i]:
                assert tuple(field[i] for field in outcomes) == tuple(game.step(int(actions[i])))
            else:
                assert not any(field[i] for field in outcomes)
            assert batch.legal_actions(i) == game.legal_actions()
            assert (batch.boards[i] == game.perception()).all() and batch.scores[i] == game.score
        if step % 20 == 0:
            assert [batch.snapshot(i) for i in range(num)] == [game.snapshot() for game in games]
        if step % 50 == 49:  # shuffle the boards about: restored ones go on alike
            data = [game.snapshot() for game in games]
            for i in range(num):
                batch.restore(i, data[i - 1])
                games[i].restore(data[i - 1])
        for i, game in enumerate(games):
            if game.over:
                deals += 1
                batch.reset(i, 1000 + deals)
                game.reset(1000 + deals)


def test_a_batch_refuses_moves_after_the_end():
    batch = Batch2048(Options2048(horizon=1), 2)
    for i in range(2):
        batch.reset(i, i)
    batch.step(np.zeros(2, int))
    with pytest.raises(RuntimeError, match="over"):
        batch.step(np.zeros(2, int))


def test_the_oracle_beats_greedy_over_100_moves():
    task, scores = Task.make("2048"), []
    for seed in range(30):
        game = task.new_game()
        game.reset(seed)
        while not game.over:
            action = game.oracle()
            assert action in game.legal_actions()
            game.step(action)
        scores.append(game.score)
    assert np.mean(scores) - 1.96 * np.std(scores) / 30**0.5 > 976


def test_the_oracle_takes_a_merge_that_is_there_at_the_last_move():
    board = np.array([[1, 2, 3, 4], [2, 3, 4, 5], [1, 2, 3, 4], [5, 5, 1, 2]], np.uint8)
    assert expectimax(board, 17, 1) in (1, 3)


def largest_tile(seed):
    game = Game2048(Options2048(horizon=0, goal=2048))
    game.reset(seed)
    while not game.over:
        game.step(game.oracle())
    return 2 ** int(game.perception().max())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_oracle_reaches_2048_in_most_of_50_games():
    with ProcessPoolExecutor(2) as pool:
        tiles = list(pool.map(largest_tile, range(50)))
    print(dict(zip(*np.unique(tiles, return_counts=True), strict=True)))
    assert sum(tile >= 2048 for tile in tiles) > 25


@pytest.mark.parametrize("cap", [3, 17])
def test_every_short_line_slides_as_in_the_reference(cap):
    for length in (2, 3, 4, 5):
        for line in itertools.product(range(5), repeat=length):
            if max(line) > cap:
                continue
            front, back, gain, merges = slide_line(bytes(line), cap)
            assert (list(front), gain, merges) == reference_line(line, cap)
            assert (list(back)[::-1], gain, merges) == reference_line(line[::-1], cap)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8])
def test_all_boards_at_once_slide_as_in_the_reference(size):
    rng = np.random.default_rng(size)
    low = rng.integers(1, 16, 120)
    boards = (low + rng.integers(0, 3, (size, size, 120))) * (rng.random((size, size, 120)) < rng.random(120))
    after, gains, merges, legal = slide_all(boards.astype(np.uint8), 17)
    for i in range(120):
        for action in range(4):
            moved, gain, count = reference_move(boards[:, :, i], action, 17)
            assert (after[action, :, :, i] == moved).all() and legal[action, i] == (moved != boards[:, :, i]).any()
            assert (gains[action, i], merges[action, i]) == (gain, count)


@pytest.mark.parametrize("size, goal", [(4, 0), (4, 65536), (8, 0), (3, 0)])
def test_both_implementations_agree_on_boards_of_large_tiles(size, goal):
    options, num, rng = Options2048(size=size, goal=goal, horizon=0), 40, np.random.default_rng(3)
    batch, games = Batch2048(options, num), [Game2048(options) for _ in range(num)]
    top, ends = games[0].num_kinds, 0
    for i, game in enumerate(games):
        game.reset(i)
        board = rng.integers(top - 3, top + (not goal), size * size) * (rng.random(size * size) < 0.8)
        data = game.snapshot()[: -size * size] + board.astype(np.uint8).tobytes()
        game.restore(data)
        batch.restore(i, data)
    for _ in range(60):
        live = np.array([not game.over for game in games])
        actions = rng.integers(0, 4, num)
        outcomes = batch.step(actions, live)
        for i in np.flatnonzero(live).tolist():
            assert tuple(field[i] for field in outcomes) == tuple(games[i].step(int(actions[i])))
            ends += outcomes.terminated[i]
        assert [batch.snapshot(i) for i in range(num)] == [game.snapshot() for game in games]
    assert ends or size == 8


def test_the_largest_tiles_of_a_full_board_end_the_game():
    """Two equal tiles side by side are no move where their kind is the largest."""
    game = Game2048(Options2048(size=2, horizon=0))
    game.reset(0)
    start = game.snapshot()[:-4]
    game.restore(start + bytes([5, 5, 4, 3]))
    assert game.num_kinds == 5 and game.legal_actions() == () and game.over
    game.restore(start + bytes([4, 4, 3, 2]))
    assert game.legal_actions() == (1, 3)


def test_the_score_is_the_sum_of_the_gains():
    game = Game2048(Options2048(horizon=0))
    rng = np.random.default_rng(4)
    game.reset(0)
    total = 0.0
    while not game.over:
        total += game.step(int(rng.integers(-1, 5))).gain
        assert game.score == total
    assert total > 0
