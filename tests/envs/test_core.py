"""What holds for every game: seeds, snapshots, forks, illegal moves and ends."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import State, Task, game_names, game_spec

GAMES = [(name, level) for name in game_names() for level in range(len(game_spec(name).levels))]


def started(name, seed=0, **options):
    game = Task.make(name, **options).new_game()
    game.reset(seed)
    return game


def walk(game, moves, rng):
    """Random legal moves; stops before the end of the episode."""
    for _ in range(moves):
        before = game.snapshot()
        legal = game.legal_actions()
        game.step(legal[int(rng.random() * len(legal))])
        if game.over:
            game.restore(before)
            break


def future(game, rng, moves=15):
    """What happens next, for a fixed choice of moves."""
    trail = []
    while not game.over and len(trail) < moves:
        legal = game.legal_actions()
        trail.append((legal, game.step(legal[int(rng.random() * len(legal))]), game.snapshot()))
    return trail


@pytest.mark.parametrize("name, level", GAMES)
def test_equal_bytes_have_equal_futures(name, level):
    rng = np.random.default_rng(0)
    for seed in range(3):
        game = started(name, seed, reasoning=level)
        walk(game, 11, rng)
        data = game.snapshot()
        other = started(name, 99, reasoning=level)
        other.restore(data)
        assert other.snapshot() == data and other.legal_actions() == game.legal_actions()
        assert (other.perception() == game.perception()).all() and (other.looks == game.looks).all()
        assert future(game, np.random.default_rng(1)) == future(other, np.random.default_rng(1))
        assert game.snapshot() != data


@pytest.mark.parametrize("name, level", GAMES)
def test_a_seed_decides_the_game(name, level):
    a, b, c = started(name, 4, reasoning=level), started(name, 4, reasoning=level), started(name, 5, reasoning=level)
    assert a.snapshot() == b.snapshot() != c.snapshot()
    future(a, np.random.default_rng(0))
    a.reset(4)
    assert a.snapshot() == b.snapshot()


@pytest.mark.parametrize("name", game_names())
def test_forks_are_equal_at_any_moment_and_at_the_last_move(name):
    horizon = 9
    game = started(name, reasoning={"horizon": horizon})
    for move in range(horizon):
        action, before = game.legal_actions()[-1], game.snapshot()
        forks = [game.fork() for _ in range(5)]
        results = {(fork.step(action), fork.snapshot()) for fork in forks}
        assert len(results) == 1 and game.snapshot() == before
        assert results.pop()[0].truncated == (move == horizon - 1)
        game.step(action)
    assert game.over and game.legal_actions() == ()


@pytest.mark.parametrize("name", game_names())
def test_illegal_actions_change_nothing_but_the_count(name):
    game = started(name, 3)
    board, legal, rng_at = game.perception(), game.legal_actions(), game.rng.bit_generator.state
    illegal = [a for a in range(game.actions.num) if a not in legal][:20]
    hostile = [None, -1, game.actions.num, 10**30, -(10**30), np.int64(-7), *illegal]
    for moves, action in enumerate(hostile, 1):
        outcome = game.step(action)
        assert outcome == (False, 0.0, 0, False, False, False)
        assert (game.perception() == board).all() and game.legal_actions() == legal
        assert game.rng.bit_generator.state == rng_at and game.moves == moves and game.score == 0


@pytest.mark.parametrize("name", game_names())
def test_what_is_no_integer_is_refused_and_changes_nothing(name):
    game = started(name)
    before = game.snapshot()
    for action in (1.0, "0", "up", b"", [0], (0, 1), np.float32(2), {}):
        with pytest.raises(TypeError):
            game.step(action)
        assert game.snapshot() == before


@pytest.mark.parametrize("name", game_names())
def test_a_finished_episode_stays_finished(name):
    game = started(name, reasoning={"horizon": 1})
    assert game.step(None).truncated
    before = game.snapshot()
    for action in (0, None):
        with pytest.raises(RuntimeError, match="reset"):
            game.step(action)
    assert game.snapshot() == before
    twin = game.fork()
    assert twin.over and twin.legal_actions() == ()
    for use in (lambda game: game.step(0), lambda game: game.snapshot(), lambda game: game.fork()):
        with pytest.raises(RuntimeError, match="reset"):
            use(Task.make(name).new_game())


@pytest.mark.parametrize("name", game_names())
def test_bytes_that_are_no_snapshot_are_refused_and_change_nothing(name):
    game = started(name, 2)
    data = game.snapshot()
    for bad in (b"", b"\0" * len(data), data[:-1], data + b"\0", data[:-1] + b"\xff", b"x" + data[1:]):
        with pytest.raises(ValueError):
            game.restore(bad)
        assert game.snapshot() == data


@pytest.mark.parametrize("name", game_names())
def test_what_a_caller_gets_is_a_copy(name):
    game = started(name)
    before = game.snapshot()
    game.perception()[:] = 0
    assert game.snapshot() == before


def one_move_from_winning(name):
    """A game whose next move by the oracle wins."""
    game = started(name, reasoning={"2048": {"goal": 16, "horizon": 0}, "swap": {"goal": 3}}.get(name))
    while not game.fork().step(game.oracle()).success:
        game.step(game.oracle())
    return game


@pytest.mark.parametrize("name", game_names())
def test_forks_of_a_winning_move_are_equal(name):
    game = one_move_from_winning(name)
    action, before = game.oracle(), game.snapshot()
    forks = [game.fork() for _ in range(5)]
    results = {(fork.step(action), fork.snapshot()) for fork in forks}
    assert len(results) == 1 and game.snapshot() == before and not game.over
    outcome, after = results.pop()
    assert outcome.success and outcome.terminated and not outcome.truncated
    won = game.fork()
    won.restore(after)
    assert won.over and won.legal_actions() == () and won.snapshot() == after
    with pytest.raises(RuntimeError):
        won.step(action)
    assert won.snapshot() == after


@pytest.mark.parametrize("name, level", GAMES)
def test_playing_a_fork_leaves_the_game_alone(name, level):
    game, rng = started(name, 6, reasoning=level), np.random.default_rng(2)
    for _ in range(6):
        before, legal, fork = game.snapshot(), game.legal_actions(), game.fork()
        future(fork, rng, 4)
        assert game.snapshot() == before and game.legal_actions() == legal
        game.step(legal[0])
        assert fork.snapshot() != game.snapshot()


@pytest.mark.parametrize("name", game_names())
def test_an_illegal_last_move_ends_the_episode_and_changes_nothing_else(name):
    for action in (None, -1):
        game = started(name, 1, reasoning={"horizon": 2})
        board, rng_at = game.perception(), game.rng.bit_generator.state
        assert game.step(action) == (False, 0.0, 0, False, False, False)
        assert game.step(action) == (False, 0.0, 0, False, True, False)
        assert (game.perception() == board).all() and game.rng.bit_generator.state == rng_at
        assert (game.moves, game.score, game.over) == (2, 0, True)


@pytest.mark.parametrize("name", game_names())
def test_a_horizon_of_0_never_cuts_an_episode_off(name):
    game = started(name, reasoning={"horizon": 0})
    for _ in range(500):
        assert not game.step(None).truncated
    assert game.moves == 500 and not game.over


@pytest.mark.parametrize("name", game_names())
def test_a_step_is_not_moved_by_generators_outside_the_game(name):
    a, b = started(name, 4), started(name, 4)
    random_state, numpy_state = random.getstate(), np.random.get_state()[1].copy()
    trail = future(a, np.random.default_rng(0))
    assert random.getstate() == random_state and (np.random.get_state()[1] == numpy_state).all()
    random.seed(1)
    np.random.seed(1)
    assert future(b, np.random.default_rng(0)) == trail


@pytest.mark.parametrize("name", game_names())
def test_snapshots_of_another_game_are_refused(name):
    for other in game_names():
        side = {"size": 7} if name == "2048" else {"rows": 8, "cols": 14}
        game, data = started(name, reasoning=side), started(other, 1).snapshot()
        before = game.snapshot()
        with pytest.raises(ValueError, match="not a snapshot|not a board"):
            game.restore(data)
        assert game.snapshot() == before


@pytest.mark.parametrize("name", game_names())
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_bytes_are_refused_or_restored_whole(name, data):
    game = started(name, 2)
    good = game.snapshot()
    garbage = bytearray(good)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=4)):
        garbage[at] = value
    garbage[13] &= 1  # the end of the episode, yes or no
    del garbage[data.draw(st.one_of(st.just(len(good)), st.integers(0, len(good)))) :]
    if data.draw(st.integers(0, 3)) == 0:
        garbage += data.draw(st.binary(max_size=3))
    try:
        game.restore(bytes(garbage))
    except ValueError:
        assert game.snapshot() == good
    else:
        garbage[13] |= game.over  # a state that the options leave no move is over
        assert game.snapshot() == bytes(garbage) and len(garbage) == len(good)


def test_photos_never_repeat_though_looks_are_large():
    game = started("shisen", 2795)
    for kind in np.unique(game.perception()).tolist():
        assert len(set((game.looks[game.perception() == kind] % 5).tolist())) == 4


@pytest.mark.parametrize("name", game_names())
def test_a_batch_refuses_actions_it_can_not_mean_and_changes_nothing(name):
    task = Task.make(name, reasoning={"horizon": 2})
    batch = task.new_batch(2)
    for i in range(2):
        batch.reset(i, i)
    before = [batch.snapshot(i) for i in range(2)]
    for actions, error in (
        (np.array([0.0, 1.0]), TypeError),
        (np.zeros(3, int), ValueError),
        (np.int64(0), ValueError),
    ):
        with pytest.raises(error):
            batch.step(actions)
    assert [batch.snapshot(i) for i in range(2)] == before
    for _ in range(2):
        batch.step(np.array([-1, -1]), np.array([False, True]))
    with pytest.raises(RuntimeError, match="over"):
        batch.step(np.zeros(2, int))
    assert batch.snapshot(0) == before[0]


def test_boards_that_no_game_reaches_are_refused():
    boards = {"2048": bytes(16), "shisen": bytes([1, 1, 1, *[0] * 33]), "swap": bytes(64)}
    for name, board in boards.items():
        game = started(name)
        data = game.snapshot()
        for bad in (data[: -len(board)] + board, data[:5] + b"\xff" * 8 + data[13:], data[:13] + b"\7" + data[14:]):
            with pytest.raises(ValueError):
                game.restore(bad)
            assert game.snapshot() == data


def test_a_state_without_a_legal_move_is_over():
    game = started("shisen", reasoning={"rows": 2, "cols": 2, "copies": 2})
    data = game.snapshot()
    game.restore(data[:-4] + bytes([1, 2, 2, 1]))
    assert game.over and game.legal_actions() == ()


def restored(name, data, horizon, goal=0):
    """A single game and a batch of the same options in a state that may come from others."""
    task = Task.make(name, reasoning={"horizon": horizon, **({"goal": goal} if goal else {})})
    game, batch = task.new_game(), task.new_batch(2)
    batch.reset(0, 1)
    game.restore(data)
    batch.restore(1, data)
    return game, batch


@pytest.mark.parametrize("name", game_names())
def test_a_state_beyond_the_horizon_is_over_and_one_before_it_ends_there_alone_and_in_a_batch(name):
    rng = np.random.default_rng(0)
    for moves in (1, 2, 5, 9):
        game = started(name, moves, reasoning={"horizon": 0})
        walk(game, moves, rng)
        for horizon in (0, moves - 1, moves, moves + 1, moves + 3):
            one, batch = restored(name, game.snapshot(), horizon)
            assert one.over == (0 < horizon <= game.moves)
            assert batch.snapshot(1) == one.snapshot() and batch.legal_actions(1) == one.legal_actions()
            for _ in range(4):
                if one.over:
                    with pytest.raises(RuntimeError, match="over"):
                        batch.step(np.array([0, 0]), np.array([False, True]))
                    break
                action = one.legal_actions()[0] if rng.random() < 0.7 else -1
                outcomes = batch.step(np.array([0, action]), np.array([False, True]))
                assert tuple(field[1] for field in outcomes) == tuple(one.step(action))
                assert batch.snapshot(1) == one.snapshot()
            assert one.over == (0 < horizon <= one.moves) or not one.legal_actions()


@pytest.mark.parametrize("name, goal", [("2048", 8), ("2048", 16), ("swap", 1), ("swap", 2)])
def test_a_goal_that_is_reached_already_is_noticed_on_restore(name, goal):
    game = started(name, 5, reasoning={"horizon": 0})
    while game.perception().max() < 4 if name == "2048" else game.score < 2:
        game.step(game.oracle())
    if name == "2048" and goal == 8:  # a tile beyond the goal is no kind of such a game
        with pytest.raises(ValueError, match="not a board"):
            restored(name, game.snapshot(), 0, goal)
        return
    one, batch = restored(name, game.snapshot(), 0, goal)
    assert one.won() and one.over and one.legal_actions() == batch.legal_actions(1) == ()
    assert one.snapshot() == batch.snapshot(1) != game.snapshot() and one.fork().over


@pytest.mark.parametrize("name", game_names())
def test_a_reset_that_fails_changes_nothing(name, monkeypatch):
    game, fresh = started(name, 3), Task.make(name).new_game()
    game.step(game.legal_actions()[0])
    before, legal = game.snapshot(), game.legal_actions()
    deal = type(game)._deal

    def fails(self):
        deal(self)
        raise RuntimeError("no deal")

    with pytest.raises((ValueError, TypeError)):
        game.reset(-1)
    monkeypatch.setattr(type(game), "_deal", fails)
    with pytest.raises(RuntimeError, match="no deal"):
        game.reset(4)
    assert game.snapshot() == before and game.legal_actions() == legal
    with pytest.raises(RuntimeError, match="no deal"):
        fresh.reset(4)
    with pytest.raises(RuntimeError, match="there is no episode yet"):
        fresh.step(0)


@pytest.mark.parametrize("name", game_names())
def test_bytes_of_any_kind_are_a_snapshot_and_all_else_is_named(name):
    game, data = Task.make(name).new_game(), started(name, 2).snapshot()
    state = State(Task.make(name), data)
    every_other = lambda data: memoryview(bytes(np.repeat(np.frombuffer(data, np.uint8), 2)))[::2]  # noqa: E731
    for kind in (bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8), every_other):
        game.restore(kind(data))
        assert game.snapshot() == data
        assert State.from_bytes(kind(state.to_bytes())) == state
    for bad, named in ((data.hex(), "not str"), (None, "not NoneType"), (7, "not int"), (state, "not State")):
        with pytest.raises(ValueError, match=f"(?s)the snapshot of a game = .*expected its bytes, {named}"):
            game.restore(bad)
    with pytest.raises(ValueError, match="state = '00ff': expected its bytes, not str"):
        State.from_bytes("00ff")
