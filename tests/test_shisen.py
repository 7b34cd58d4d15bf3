"""Shisen-Sho: joined pairs against a search, deals that can be cleared, photos that differ."""

import numpy as np
import pytest

from envs import Task
from envs.answers import CellPairs
from envs.games.shisen import OptionsShisen, ShisenSho, joined_pairs, solve


def searched_pairs(board):
    """All joined pairs, found by walking up to three straight lines from every tile over a framed board."""
    rows, cols = board.shape
    actions, framed, found = CellPairs(rows, cols), np.pad(board, 1), []
    for a in np.flatnonzero(board).tolist():
        fronts, reached = {(a // cols + 1, a % cols + 1)}, set()
        for _ in range(3):
            ahead = set()
            for row, col in fronts:
                for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                    y, x = row + down, col + right
                    while 0 <= y < rows + 2 and 0 <= x < cols + 2:
                        if framed[y, x]:
                            reached.add((y - 1) * cols + x - 1)
                            break
                        ahead.add((y, x))
                        y, x = y + down, x + right
            fronts = ahead
        found += [actions.action(a, b) for b in reached if b > a and board.flat[a] == board.flat[b]]
    return sorted(found)


def test_joined_pairs_are_those_a_search_finds():
    rng = np.random.default_rng(0)
    for _ in range(250):
        rows, cols = rng.integers(2, 9, 2)
        board = rng.integers(1, 4, (rows, cols)).astype(np.uint8) * (rng.random((rows, cols)) < rng.random())
        assert joined_pairs(board.astype(np.uint8)).tolist() == searched_pairs(board), board
    board = rng.integers(1, 30, (16, 16)).astype(np.uint8)
    assert joined_pairs(board).tolist() == searched_pairs(board)


@pytest.mark.parametrize(
    "rows, cols, copies, kinds, num",
    [(6, 6, 4, 36, 200), (4, 4, 4, 4, 100), (2, 4, 2, 8, 50), (8, 8, 4, 16, 40), (8, 6, 2, 24, 20), (12, 12, 4, 36, 3),
     (12, 12, 2, 72, 3), (3, 4, 6, 2, 30), (16, 16, 16, 16, 1)],
)  # fmt: skip
def test_every_deal_is_cleared_by_the_oracle(rows, cols, copies, kinds, num):
    game = ShisenSho(OptionsShisen(rows=rows, cols=cols, copies=copies, kinds=kinds, horizon=0))
    for seed in range(num):
        game.reset(seed)
        board = game.perception()
        used, counts = np.unique(board, return_counts=True)
        assert used.min() > 0 and (counts == copies).all() and used.max() <= kinds
        while not game.over:
            outcome = game.step(game.oracle())
            assert outcome.legal
        assert outcome.success and not game.perception().any() and game.score == rows * cols / 2


def test_boards_built_backwards_can_be_cleared_too(monkeypatch):
    monkeypatch.setattr("envs.games.shisen.DEALS", 0)
    for copies in (2, 4):
        game = ShisenSho(OptionsShisen(copies=copies))
        boards = set()
        for seed in range(20):
            game.reset(seed)
            boards.add(game.perception().tobytes())
            assert (np.unique(game.perception(), return_counts=True)[1] == copies).all()
            assert solve(game.perception(), 3000)[1]
        assert len(boards) == 20


def test_pairs_stay_pairs_and_dead_ends_end_without_success():
    game, rng, lost = ShisenSho(OptionsShisen(horizon=0)), np.random.default_rng(0), 0
    for seed in range(150):
        game.reset(seed)
        while not game.over:
            legal = game.legal_actions()
            outcome = game.step(legal[int(rng.random() * len(legal))])
            assert (outcome.gain, outcome.cleared) == (1, 2)
            kinds, counts = np.unique(game.perception()[game.perception() > 0], return_counts=True)
            assert (counts % 2 == 0).all()
        assert outcome.terminated and outcome.success == (not game.perception().any())
        lost += not outcome.success
    assert 1 <= lost <= 30  # about one in twenty


def test_tiles_of_one_kind_are_different_photos():
    task = Task.make("shisen-photos")
    game, tiles = task.new_game(), task.renderer.look.tiles
    for seed in range(50):
        game.reset(seed)
        board, looks = game.perception(), game.looks
        for kind in np.unique(board).tolist():
            numbers = looks[board == kind] % tiles.num_pictures(kind)
            assert len(set(numbers.tolist())) == 4


def test_the_solver_says_when_there_is_no_way():
    board = np.array([[1, 2, 3], [2, 1, 4], [3, 4, 5], [5, 6, 6]], np.uint8)
    full = np.array([[1, 2], [2, 1]], np.uint8)
    assert solve(full, 100) == ([], False)
    path, cleared = solve(board, 100)
    assert cleared == (2 * len(path) == board.size)
