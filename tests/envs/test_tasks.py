"""What holds for the task of every game, and for states: options, levels, presets, their way through bytes."""

import dataclasses
import pickle
import sys

import numpy as np
import pytest

from envs import GameOptions, State, Task, game_names, game_spec, register_game

GAMES = [(name, level) for name in game_names() for level in range(len(game_spec(name).levels))]


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


def test_the_papers_settings():
    assert Task.make("2048", preset="paper").reasoning.as_dict() == {"horizon": 100, "size": 4, "goal": 0}
    assert Task.make("2048", preset="full-game").reasoning.as_dict() == {"horizon": 0, "size": 4, "goal": 2048}
    shisen = Task.make("shisen", preset="paper")
    assert (shisen.reasoning.rows, shisen.reasoning.cols, shisen.reasoning.copies) == (6, 6, 4)
    assert (shisen.perception.colors, shisen.perception.shapes, shisen.reasoning.kinds) == (6, 6, 36)
    photos = Task.make("shisen-photos", preset="procedural").new_game()
    photos.reset(0)
    assert len(np.unique(photos.perception())) == 9  # 9 of 10 classes, 4 photos each
    swap = Task.make("swap", preset="paper")
    assert (swap.reasoning.rows, swap.reasoning.kinds, swap.perception.colors, swap.perception.shapes) == (8, 12, 4, 3)


@pytest.mark.parametrize("tiles", ["colors", "shapes", "numbers", "glyphs", "photos"])
@pytest.mark.parametrize("name, level", GAMES)
def test_any_level_goes_with_any_tile_set(name, level, tiles):
    assert Task.make(name, reasoning=level, perception={"tiles": tiles}).renderer.names


@pytest.mark.parametrize("tiles", ["colors", "shapes", "numbers", "glyphs", "photos"])
@pytest.mark.parametrize("name, side", [(name, side) for name in game_names() for side in (4, 5, 8, 12, 16)])
def test_any_game_goes_with_any_tile_set_at_any_size(name, side, tiles):
    if name == "2048":
        reasoning = {"size": min(side, 8)}
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
        ("swap", {"rows": None}, "rows = None: expected int"),
        ("shisen", {"cols": {}}, "cols = {}: expected int"),
        ("swap", {"horizon": 10**10}, "horizon = 10000000000"),
    ],
)
def test_options_out_of_bounds_are_named(name, reasoning, message):
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        Task.make(name, reasoning=reasoning)


def test_data_does_not_say_which_code_to_run():
    text = Task.make("2048").to_json()
    assert Task.from_json(text.replace('"2048"', '"this:2048"')).new_game().rows == 4
    assert "this" not in sys.modules
    with pytest.raises(ValueError, match="unknown game 'zen'.*import the module"):
        Task.from_json(text.replace('"2048"', '"this:zen"'))
    assert "this" not in sys.modules
    with pytest.raises(ValueError, match="expected a level or options"):
        Task.make("2048", reasoning="2")


def test_a_name_is_registered_once():
    spec = game_spec("2048")
    register_game(spec)  # the same again is fine
    with pytest.raises(ValueError, match="registered already"):
        register_game(type(spec)("2048", spec.game_type, "another"))
    assert GameOptions.parse({}).horizon == 100


@pytest.mark.parametrize("name", game_names())
def test_broken_states_are_refused_with_a_value_error(name):
    task, rng = Task.make(name), np.random.default_rng(0)
    game = task.new_game()
    game.reset(0)
    good, refused = State.of(task, game).to_bytes(), 0
    for _ in range(400):
        bad = bytearray(good)
        for at in rng.integers(len(bad), size=3).tolist():
            bad[at] = int(rng.integers(256))
        try:
            assert State.from_bytes(bytes(bad)).game().rows
        except ValueError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("name", game_names())
def test_every_bound_of_every_option_is_kept_and_named(name):
    task = Task.make(name)
    for axis, options in (("reasoning", task.reasoning), ("perception", task.perception)):
        for field in dataclasses.fields(options):
            low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
            beyond = [low - 1] if low is not None else []
            beyond += [high + 1] if high is not None else []
            beyond += ["no such one"] if choices else []
            for value in [*beyond, []]:
                with pytest.raises(ValueError, match=rf"^{name}: (.*; )?{field.name} = "):
                    Task.make(name, **{axis: {field.name: value}})


@pytest.mark.parametrize(
    "name, make, message",
    [
        ("shisn", {}, "unknown game 'shisn'; did you mean 'shisen'"),
        ("2048", {"preset": "papr"}, "2048: unknown preset 'papr'; did you mean 'paper'"),
        ("2048", {"reasoning": {"sizee": 4}}, "unknown option 'sizee'; did you mean 'size'"),
        ("swap", {"perception": {"tile": "shapes"}}, "unknown option 'tile'; did you mean 'tiles'"),
        ("swap", {"perception": {"tiles": "shape"}}, "tiles = 'shape'.*did you mean 'shapes'"),
        ("swap", {"perception": {"rotation": float("nan")}}, "rotation = nan: must be 0.0 to 45.0"),
        ("2048", {"reasoning": 4}, "reasoning = 4: levels are 0 to 3"),
        ("2048", {"reasoning": -1}, "reasoning = -1: levels are 0 to 3"),
        ("2048", {"perception": 4}, "perception = 4: levels are 0 to 3"),
        ("swap", {"perception": {"tiles": "colors", "colors": 3}}, "3 kinds, and this game needs 4"),
    ],
)
def test_errors_name_the_value_and_the_nearest_right_one(name, make, message):
    with pytest.raises(ValueError, match=message):
        Task.make(name, **make)


@pytest.mark.parametrize("name, level", GAMES)
def test_a_pickled_task_plays_and_draws_the_same(name, level):
    task = Task.make(name, reasoning=level, perception=2)
    copy = pickle.loads(pickle.dumps(task))
    game, twin = task.new_game(), copy.new_game()
    game.reset(5)
    twin.reset(5)
    assert hash(copy) == hash(task) and game.snapshot() == twin.snapshot()
    assert (task.draw(game) == copy.draw(twin)).all()
