"""What holds for every game: seeds, snapshots, forks, illegal moves, ends, tasks and states."""

import pickle

import numpy as np
import pytest

from envs import GameOptions, State, Task, game_names, game_spec, register_game

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
    with pytest.raises(RuntimeError):
        Task.make(name).new_game().step(0)


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


@pytest.mark.parametrize("name, level", GAMES)
def test_states_and_tasks_survive_a_journey(name, level):
    task = Task.make(name, reasoning=level, perception=1)
    assert Task.from_json(task.to_json()) == pickle.loads(pickle.dumps(task)) == task
    game = task.new_game()
    game.reset(8)
    state = State.of(task, game)
    copy = State.from_bytes(state.to_bytes())
    assert copy == state and copy.to_bytes() == state.to_bytes()
    assert copy.game().snapshot() == game.snapshot()
    assert len(state.data) < 150 + 3 * game.rows * game.cols
    for bad in (b"", b"xx", state.to_bytes()[:40], state.to_bytes()[:-1], b"\xff" * 100):
        with pytest.raises(ValueError):
            State.from_bytes(bad)


@pytest.mark.parametrize("name", game_names())
def test_every_preset_is_a_task_of_its_own(name):
    for preset in game_spec(name).presets:
        if preset == "paper" and name == "shisen-photos":
            with pytest.raises(ValueError, match="CIFAR-10"):  # it needs the files
                Task.make(name, preset=preset)
        else:
            assert Task.make(name, preset=preset) == Task.make(name, preset=preset)


def test_the_papers_settings():
    assert Task.make("2048", preset="paper").reasoning.as_dict() == {"horizon": 100, "size": 4, "goal": 0}
    shisen = Task.make("shisen", preset="paper")
    assert (shisen.reasoning.rows, shisen.reasoning.cols, shisen.reasoning.copies) == (6, 6, 4)
    assert (shisen.perception.colors, shisen.perception.shapes, shisen.reasoning.kinds) == (6, 6, 36)
    photos = Task.make("shisen-photos", preset="procedural").new_game()
    photos.reset(0)
    assert len(np.unique(photos.perception())) == 9  # 9 of 10 classes, 4 photos each
    swap = Task.make("swap", preset="paper")
    assert (swap.reasoning.rows, swap.reasoning.kinds, swap.perception.colors, swap.perception.shapes) == (8, 12, 4, 3)


@pytest.mark.parametrize("tiles", ["colors", "shapes", "numbers", "glyphs", "photos"])
@pytest.mark.parametrize("name, side", [(name, side) for name in game_names() for side in (4, 5, 6, 8)])
def test_any_game_goes_with_any_tile_set_at_any_size(name, side, tiles):
    if name == "2048":
        reasoning = {"size": side}
    else:
        reasoning = {"rows": side, "cols": side + 1 if "shisen" in name and side % 2 else side}
    task = Task.make(name, reasoning=reasoning, perception={"tiles": tiles})
    game = task.new_game()
    game.reset(0)
    assert task.draw(game).shape == task.renderer.shape


@pytest.mark.parametrize(
    "name, reasoning, message",
    [
        ("2048", {"size": 1}, "size = 1: must be 2 to 8"),
        ("2048", {"size": "4"}, "size = '4': expected int"),
        ("2048", {"size": 4.0}, "expected int"),
        ("2048", {"size": True}, "expected int"),
        ("2048", {"goal": 100}, "goal = 100.*power of two"),
        ("2048", {"goal": 64, "size": 2}, "goal = 64.*8 to 32"),
        ("2048", {"horizon": -1}, "horizon = -1"),
        ("shisen", {"rows": 5, "cols": 5}, "copies = 4.*25 cells"),
        ("shisen", {"copies": 3}, "copies = 3: must be even"),
        ("shisen", {"kinds": 4}, "kinds = 4.*at least 9"),
        ("shisen", {"rows": 17}, "rows = 17: must be 2 to 16"),
        ("swap", {"kinds": 3}, "kinds = 3: must be 4 to 32"),
        ("swap", {"kinds": 20}, "at most 16"),
        ("swap", {"colours": 4}, "unknown option 'colours'"),
    ],
)
def test_options_out_of_bounds_are_named(name, reasoning, message):
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        Task.make(name, reasoning=reasoning)


def test_a_name_is_registered_once():
    spec = game_spec("2048")
    register_game(spec)  # the same again is fine
    with pytest.raises(ValueError, match="registered already"):
        register_game(type(spec)("2048", spec.game_type, "another"))
    assert GameOptions.parse({}).horizon == 100
