"""Swap: legal swaps against trying them all, boards that always stand ready, the oracle."""

import itertools

import numpy as np
import pytest

from envs.answers import CellPairs
from envs.games.swap import OptionsSwap, Swap, drop, legal_swaps, standing_matches, swapped


def runs(board):
    """Whether three equal tiles stand side by side anywhere."""
    lines = [*board.tolist(), *board.T.tolist()]
    return any(a == b == c != 0 for line in lines for a, b, c in zip(line, line[1:], line[2:], strict=False))


def tried_swaps(board):
    rows, cols = board.shape
    pairs, found = CellPairs(rows, cols), []
    for a in range(rows * cols):
        for b in (a + 1, a + cols):
            neighbours = b < rows * cols and (b == a + cols or b % cols > 0)
            if neighbours and runs(swapped(board, a, b)):
                found.append(pairs.action(a, b))
    return sorted(found)


SETTINGS = [(8, 8, 12), (8, 8, 4), (4, 4, 4), (5, 7, 6), (16, 16, 4), (12, 12, 18)]


@pytest.mark.parametrize("rows, cols, kinds", SETTINGS)
def test_boards_stand_ready_at_every_moment(rows, cols, kinds):
    game, rng = Swap(OptionsSwap(rows=rows, cols=cols, kinds=kinds, horizon=0)), np.random.default_rng(0)
    for seed in range(3):
        game.reset(seed)
        for move in range(60):
            board = game.perception()
            assert board.min() >= 1 and board.max() <= kinds and not runs(board)
            legal = game.legal_actions()
            assert legal
            if move % 10 == 0:
                assert list(legal) == tried_swaps(board)
            outcome = game.step(legal[int(rng.random() * len(legal))])
            assert outcome.legal and outcome.gain == 1 and outcome.cleared >= 3 and not game.over


def test_matches_are_all_tiles_of_runs_of_three_or_more():
    board = np.array([[1, 1, 1, 2], [3, 2, 1, 2], [3, 4, 1, 2], [3, 4, 0, 0]], np.uint8)
    expected = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 1, 1], [1, 0, 0, 0]], bool)
    assert (standing_matches(board) == expected).all()
    assert not standing_matches(np.zeros((4, 4), np.uint8)).any()


def test_tiles_fall_in_their_columns_and_keep_their_order():
    board = np.array([[1, 0, 3], [0, 2, 0], [4, 0, 5]], np.uint8)
    drop(board)
    assert board.tolist() == [[0, 0, 0], [1, 0, 3], [4, 2, 5]]


def test_what_is_not_matched_falls_and_only_the_top_is_new():
    game, plain = Swap(), []
    for seed in range(100):
        game.reset(seed)
        action = game.legal_actions()[0]
        after = swapped(game.perception(), *game.actions.cells(action))
        gone = standing_matches(after)
        if game.step(action).cleared == gone.sum():  # otherwise a cascade moved more
            columns = range(8)
            kept = [after[:, col][~gone[:, col]] for col in columns]
            plain.append(all((game.perception()[8 - len(kept[c]) :, c] == kept[c]).all() for c in columns))
    assert len(plain) > 50
    assert np.mean(plain) > 0.6  # the others were shuffled, for want of a legal swap


def test_a_board_without_a_swap_is_shuffled(monkeypatch):
    game = Swap(OptionsSwap(kinds=16, horizon=0))
    shuffles, rng = [], np.random.default_rng(0)
    plain = Swap._shuffle

    def counted(self):
        tiles = np.sort(self._board.ravel())
        plain(self)
        shuffles.append((np.sort(self._board.ravel()) == tiles).all())

    monkeypatch.setattr(Swap, "_shuffle", counted)
    for seed in range(10):
        game.reset(seed)
        for _ in range(40):
            legal = game.legal_actions()
            game.step(legal[int(rng.random() * len(legal))])
            assert game.legal_actions() and not runs(game.perception())
    assert len(shuffles) > 3 and np.mean(shuffles) > 0.5  # mostly the same tiles in another order


def test_a_long_cascade_is_ended_calmly(monkeypatch):
    monkeypatch.setattr("envs.games.swap.CASCADE", 1)
    game, rng = Swap(OptionsSwap(rows=16, cols=16, kinds=4, horizon=0)), np.random.default_rng(0)
    game.reset(0)
    for _ in range(50):
        legal = game.legal_actions()
        game.step(legal[int(rng.random() * len(legal))])
        assert not runs(game.perception()) and game.perception().min() >= 1


def test_the_oracle_makes_a_match_on_every_board_and_a_large_one():
    game = Swap()
    cleared = {"oracle": [], "first": []}
    for seed in range(200):
        game.reset(seed)
        first = game.fork().step(game.legal_actions()[0])
        outcome = game.step(game.oracle())
        assert outcome.legal and outcome.gain == 1
        cleared["oracle"].append(outcome.cleared)
        cleared["first"].append(first.cleared)
    assert np.mean(cleared["oracle"]) > np.mean(cleared["first"])


def test_a_goal_wins():
    game = Swap(OptionsSwap(goal=3))
    game.reset(0)
    outcomes = [game.step(game.oracle()) for _ in range(3)]
    assert [outcome.success for outcome in outcomes] == [False, False, True] and outcomes[-1].terminated


def test_legal_swaps_need_no_board_of_one_size():
    rng = np.random.default_rng(0)
    for _ in range(100):
        rows, cols = rng.integers(4, 9, 2)
        game = Swap(OptionsSwap(rows=int(rows), cols=int(cols), kinds=4))
        game.reset(int(rng.integers(1000)))
        assert legal_swaps(game.perception()).tolist() == tried_swaps(game.perception())


@pytest.mark.parametrize("rows, cols, kinds", [(4, 16, 4), (16, 4, 16), (16, 16, 32), (4, 4, 4)])
def test_legal_swaps_are_those_that_trying_finds_on_extreme_boards(rows, cols, kinds):
    game, rng = Swap(OptionsSwap(rows=rows, cols=cols, kinds=kinds, horizon=0)), np.random.default_rng(1)
    for seed in range(6):
        game.reset(seed)
        for _ in range(5):
            legal = game.legal_actions()
            assert list(legal) == tried_swaps(game.perception())
            game.step(legal[int(rng.random() * len(legal))])


@pytest.mark.parametrize("rows, cols, kinds", [(4, 4, 4), (8, 8, 12), (8, 8, 16)])
def test_boards_stand_ready_over_long_play(rows, cols, kinds):
    game, rng = Swap(OptionsSwap(rows=rows, cols=cols, kinds=kinds, horizon=0)), np.random.default_rng(5)
    game.reset(9)
    for move in range(2500):
        legal = game.legal_actions()
        assert legal and game.step(legal[int(rng.random() * len(legal))]).legal
        board = game.perception()
        assert board.all() and board.max() <= kinds and not standing_matches(board).any()
        assert move % 10 or not runs(board)
    assert game.score == 2500


@pytest.mark.parametrize("rows, cols", [(4, 4), (8, 8), (5, 9)])
def test_every_swap_that_is_not_legal_keeps_the_board(rows, cols):
    game = Swap(OptionsSwap(rows=rows, cols=cols, kinds=4, horizon=0))
    game.reset(1)
    board, legal = game.perception(), set(tried_swaps(game.perception()))
    for action in set(range(game.actions.num)) - legal:
        assert game.step(action) == (False, 0.0, 0, False, False, False)
    assert (game.perception() == board).all() and set(game.legal_actions()) == legal and game.score == 0


def test_matches_and_falls_are_those_of_the_reference_on_random_boards():
    rng = np.random.default_rng(2)
    for _ in range(200):
        rows, cols = rng.integers(4, 10, 2).tolist()
        board = rng.integers(0, 4, (rows, cols)).astype(np.uint8)
        expected = np.zeros((rows, cols), bool)
        for row, col in itertools.product(range(rows), range(cols)):
            for line in ([(row, col + i) for i in range(3)], [(row + i, col) for i in range(3)]):
                if line[2][0] < rows and line[2][1] < cols and len({int(board[at]) for at in line} | {0}) == 2:
                    if all(board[at] for at in line):
                        for at in line:
                            expected[at] = True
        assert (standing_matches(board) == expected).all()
        fallen = board.copy()
        drop(fallen)
        for col in range(cols):
            tiles = [kind for kind in board[:, col].tolist() if kind]
            assert fallen[:, col].tolist() == [0] * (rows - len(tiles)) + tiles


def test_the_oracle_makes_a_match_with_every_move():
    game = Swap(OptionsSwap(horizon=6))
    for seed in range(200):
        game.reset(seed)
        while not game.over:
            outcome = game.step(game.oracle())
            assert outcome.legal and outcome.gain == 1 and outcome.cleared >= 3
        assert game.score == 6 and outcome.truncated


def test_tiles_are_dealt_from_all_kinds_about_equally():
    game, counts = Swap(), np.zeros(12)
    for seed in range(100):
        game.reset(seed)
        counts += np.bincount(game.perception().ravel(), minlength=13)[1:]
    assert counts.min() > 0.8 * counts.mean() and counts.max() < 1.2 * counts.mean()


@pytest.mark.parametrize("rows, cols", [(16, 16), (4, 4), (6, 9)])
def test_calm_new_tiles_make_no_match(rows, cols):
    game, rng, wild = Swap(OptionsSwap(rows=rows, cols=cols, kinds=4)), np.random.default_rng(0), 0
    for seed in range(40):
        game.reset(seed)
        holes = rng.integers(0, rows + 1, cols)
        for calm in (True, False):
            twin = game.fork()
            twin._board[np.arange(rows)[:, None] < holes] = 0
            twin._fill(calm)
            assert twin._board.all() and (twin._board[holes.max() :] == game._board[holes.max() :]).all()
            wild += not calm and runs(twin._board)
            assert not (calm and runs(twin._board))
    assert wild
