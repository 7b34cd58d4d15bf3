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


@pytest.mark.parametrize("rows, cols", [(2, 2), (2, 16), (16, 2), (3, 5), (6, 6), (12, 12), (16, 16)])
def test_joined_pairs_are_those_a_search_finds_at_every_density(rows, cols):
    rng = np.random.default_rng(rows * cols)
    found = 0
    for density in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1):
        for _ in range(6):
            board = rng.integers(1, 5, (rows, cols)) * (rng.random((rows, cols)) < density)
            pairs = joined_pairs(board.astype(np.uint8)).tolist()
            assert pairs == searched_pairs(board.astype(np.uint8)), board
            found += len(pairs)
    assert found > 10


@pytest.mark.parametrize("rows, cols, copies", [(6, 6, 4), (4, 4, 2), (8, 8, 4), (5, 4, 2)])
def test_legal_actions_are_the_searched_pairs_all_through_an_episode(rows, cols, copies):
    game, rng = ShisenSho(OptionsShisen(rows=rows, cols=cols, copies=copies, horizon=0)), np.random.default_rng(0)
    for seed in range(5):
        game.reset(seed)
        while not game.over:
            legal = game.legal_actions()
            assert list(legal) == searched_pairs(game.perception())
            board, action = game.perception(), legal[int(rng.random() * len(legal))]
            a, b = game.actions.cells(action)
            game.step(action)
            assert np.flatnonzero(game.perception() != board).tolist() == [a, b]
            assert board.flat[a] == board.flat[b] and not game.perception().flat[[a, b]].any()
        assert searched_pairs(game.perception()) == []


@pytest.mark.parametrize("copies, num", [(2, 60), (6, 40), (12, 30)])
def test_deals_with_any_number_of_copies_are_cleared_by_the_oracle(copies, num):
    game = ShisenSho(OptionsShisen(copies=copies, horizon=0))
    for seed in range(num):
        game.reset(seed)
        while not game.over:
            outcome = game.step(game.oracle())
        assert outcome.success and game.moves == 18


@pytest.mark.parametrize("rows, cols, copies", [(6, 6, 4), (4, 4, 2), (8, 8, 4), (4, 8, 16)])
def test_boards_built_backwards_are_cleared_by_the_oracle(monkeypatch, rows, cols, copies):
    monkeypatch.setattr("envs.games.shisen.DEALS", 0)
    game = ShisenSho(OptionsShisen(rows=rows, cols=cols, copies=copies, horizon=0))
    for seed in range(15):
        game.reset(seed)
        while not game.over:
            outcome = game.step(game.oracle())
        assert outcome.success


def test_a_dead_end_ends_the_episode_at_once():
    """Two pairs that lie crosswise: four lines would be needed to join either of them."""
    game = ShisenSho(OptionsShisen(rows=2, cols=4, copies=2, horizon=0))
    game.reset(0)
    game.restore(game.snapshot()[:-8] + bytes([1, 2, 3, 3, 2, 1, 0, 0]))
    (action,) = [a for a in game.legal_actions() if game.actions.cells(a) == (2, 3)]
    outcome = game.step(action)
    assert searched_pairs(game.perception()) == []
    assert outcome == (True, 1.0, 2, True, False, False) and game.over


@pytest.mark.parametrize("reasoning", [{"copies": 12}, {"rows": 12, "cols": 12, "copies": 16}, {"kinds": 12}])
def test_many_tiles_of_one_kind_are_different_photos_too(reasoning):
    task = Task.make("shisen-photos", reasoning=reasoning)
    game, tiles = task.new_game(), task.renderer.look.tiles
    for seed in range(10):
        game.reset(seed)
        board, looks = game.perception(), game.looks
        for kind in np.unique(board).tolist():
            numbers = (looks[board == kind] % tiles.num_pictures(kind)).tolist()
            assert len(set(numbers)) == len(numbers) == game.num_alike


def test_a_board_built_backwards_is_built_again_where_no_way_is_found(monkeypatch):
    """Each can be cleared by the way it was built; the solver has to find one within its bounds, too."""
    monkeypatch.setattr("envs.games.shisen.DEALS", 0)
    game, found = ShisenSho(OptionsShisen(rows=12, cols=12)), []

    def counted(board, branches):
        found.append(solve(board, branches)[1])
        return solve(board, branches)

    monkeypatch.setattr("envs.games.shisen.solve", counted)
    game.reset(70)  # one of the few seeds that need it
    assert found[-1] and not all(found) and solve(game.perception(), 3000)[1]
