"""The Gymnasium environment: the standard's own checker, seeding, options, text answers."""

import copy
import itertools
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs import Codec, State, Task, TextAnswers, VLMGymEnv, game_names, game_spec

GAMES = game_names()


@pytest.mark.parametrize("observation", ["rgb", "board"])
@pytest.mark.parametrize("name", GAMES)
@pytest.mark.filterwarnings("error")
def test_check_env(name, observation):
    env = gymnasium.make(game_spec(name).gym_id, observation=observation, render_mode="rgb_array")
    check_env(env.unwrapped)


@pytest.mark.parametrize("name", GAMES)
def test_a_seed_decides_the_episode_and_is_the_games_own(name):
    def play(env):
        observation, info = env.reset(seed=5)
        trail = [observation.tobytes()]
        for _ in range(20):
            observation, reward, terminated, truncated, info = env.step(info["legal_actions"][0])
            trail.append((observation.tobytes(), reward, info["score"]))
            if terminated or truncated:
                break
        return trail

    env, other = VLMGymEnv(name), VLMGymEnv(name)
    assert play(env) == play(other) == play(env)
    game = env.task.new_game()
    game.reset(5)
    assert (env.reset(seed=5)[0] == env.task.draw(game)).all()
    assert env.reset(seed=6)[0].tobytes() != env.reset(seed=5)[0].tobytes()
    assert env.reset()[0].tobytes() != env.reset()[0].tobytes()


@pytest.mark.parametrize("name", GAMES)
def test_info_masks_and_legal_actions_agree(name):
    env = VLMGymEnv(name, observation="board")
    _, info = env.reset(seed=1)
    for _ in range(12):
        assert tuple(np.flatnonzero(info["action_mask"])) == info["legal_actions"] == env.game.legal_actions()
        assert (env.action_masks() == info["action_mask"].astype(bool)).all()
        assert int(env.action_space.sample(mask=info["action_mask"])) in info["legal_actions"]
        illegal = next((a for a in range(env.action_space.n) if a not in info["legal_actions"]), None)
        if illegal is not None:
            before = env.game.perception()
            _, reward, _, _, bad = env.step(illegal)
            assert reward == -1 and not bad["legal"] and (env.game.perception() == before).all()
        _, _, terminated, truncated, info = env.step(info["legal_actions"][-1])
        assert info["legal"]
        if terminated or truncated:
            break


@pytest.mark.parametrize("name", GAMES)
def test_a_standing_frame_equals_a_fresh_one_through_episodes(name):
    perception = {"rotation": 10.0, "offset": 20}
    for options in ({}, {"perception": perception}):
        standing, fresh = VLMGymEnv(name, copy=False, **options), VLMGymEnv(name, **options)
        rng = np.random.default_rng(0)
        for seed in (3, 4):
            first, info = standing.reset(seed=seed)
            assert (first == fresh.reset(seed=seed)[0]).all()
            for _ in range(25):
                action = info["legal_actions"][int(rng.random() * len(info["legal_actions"]))]
                frame, _, terminated, truncated, info = standing.step(action)
                assert (frame == fresh.step(action)[0]).all()
                if terminated or truncated:
                    break


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("name", GAMES)
def test_frames_that_are_held_stay_what_they_are(name, copy):
    env, fresh = VLMGymEnv(name, copy=copy), VLMGymEnv(name)
    stacked = gymnasium.wrappers.FrameStackObservation(VLMGymEnv(name, copy=copy), 4)
    (first, info), frames = env.reset(seed=0), [fresh.reset(seed=0)[0]]
    held, parts = [first], [first[5:90, 3:8]]
    del first
    stacked.reset(seed=0)
    for _ in range(9):
        action = info["legal_actions"][0]
        frames.append(fresh.step(action)[0])
        frame, *_, info = env.step(action)
        held.append(frame)
        parts.append(frame[5:90, 3:8])
        stack = stacked.step(action)[0]
        assert (stack[-len(frames[-4:]) :] == np.array(frames[-4:])).all()
    assert (np.array(held) == np.array(frames)).all()
    assert (np.array(parts) == np.array(frames)[:, 5:90, 3:8]).all()


def test_frames_that_nobody_holds_are_drawn_over():
    env = VLMGymEnv("swap", copy=False)
    _, info = env.reset(seed=0)
    addresses = set()
    for _ in range(20):
        frame, *_, info = env.step(info["legal_actions"][0])
        addresses.add(frame.ctypes.data)
    assert len(addresses) == 2


@pytest.mark.parametrize("name", GAMES)
def test_the_walk_and_the_deal_of_a_seed_come_from_streams_of_their_own(name):
    env, alike = VLMGymEnv(name, observation="board", reasoning={"horizon": 0}), 0
    for seed in range(40):
        env.reset(seed=seed)
        start, dealt = env.game.snapshot(), env.game.perception()
        draws = np.random.default_rng(seed).random(60)
        env.reset(seed=seed, options={"walk": 1})
        game = env.task.new_game()
        game.restore(start)
        assert (game.perception() == dealt).all()
        legal = game.legal_actions()
        walked = [action for action in legal if _after(game, action) == env.game.snapshot()]
        alike += sum(legal[int(draw * len(legal))] in walked for draw in draws) / len(draws) * len(legal)
        again = env.game.snapshot()
        env.reset(seed=seed, options={"walk": np.int64(1)})
        assert env.game.snapshot() == again
    assert 20 < alike < 60  # each draw of the deal hits the move as often as chance


def _after(game, action):
    twin = game.fork()
    twin.step(action)
    return twin.snapshot()


@pytest.mark.parametrize("name", GAMES)
def test_a_reset_that_fails_leaves_the_episode_as_it_was(name):
    env = VLMGymEnv(name)
    _, info = env.reset(seed=1)
    env.step(info["legal_actions"][0])
    other = VLMGymEnv(name, reasoning={"horizon": 1})
    other.reset(seed=4)
    other.step(None)
    over = other.game.snapshot()
    before, rng = env.game.snapshot(), env.np_random.bit_generator.state
    for options in (
        *({"walk": walk} for walk in (-1, True, np.True_, 2.5, "3", None, [1])),
        *({"state": state} for state in (b"", "no", None, 3, before[:-1])),
        {"state": over, "walk": 1},
        {"state": before, "wak": 1},
    ):
        with pytest.raises(ValueError, match="walk|state|snapshot|option|not a board"):
            env.reset(seed=2, options=options)
        assert env.game.snapshot() == before and env.np_random.bit_generator.state == rng
    with pytest.raises(gymnasium.error.Error):
        env.reset(seed=-1)
    assert env.game.snapshot() == before and env.np_random.bit_generator.state == rng
    env.reset(options={"state": over})
    assert env.game.over and env.game.legal_actions() == ()


@pytest.mark.parametrize("way", [lambda env: pickle.loads(pickle.dumps(env)), copy.deepcopy, copy.copy])
@pytest.mark.parametrize("name", GAMES)
def test_copies_of_an_environment_share_the_tiles_and_play_on_alike(name, way):
    for env in (VLMGymEnv(name, copy=False, perception=1), TextAnswers(VLMGymEnv(name))):
        env.reset(seed=3)
        twin = way(env)
        assert len(pickle.dumps(env)) < 100_000
        assert twin.unwrapped.task.renderer is env.unwrapped.task.renderer
        action = env.unwrapped.game.legal_actions()[0]
        data = env.unwrapped.game.snapshot()
        frames = []
        for one in (env, twin):
            one.unwrapped.game.restore(data)
            frames.append(one.unwrapped.step(action)[0])
        assert (frames[0] == frames[1]).all() and (frames[0] == env.unwrapped.task.draw(env.unwrapped.game)).all()


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("horizon", [0, 7, 100])
def test_the_spec_says_the_horizon(name, horizon):
    for make in (gymnasium.make, gymnasium.make_vec):
        env = make(game_spec(name).gym_id, reasoning={"horizon": horizon})
        assert env.spec.max_episode_steps == (horizon or None)
        again = make(env.spec)
        assert again.spec.max_episode_steps == (horizon or None)
        assert again.unwrapped.task == env.unwrapped.task


@pytest.mark.parametrize(
    "make", [gymnasium.make, gymnasium.make_vec, lambda _, **options: VLMGymEnv("2048", **options)]
)
def test_options_in_the_wrong_place_are_shown_the_right_one(make):
    for options, message in (
        ({"size": 5}, r'size = 5: an option of reasoning; give reasoning=\{"size": 5\}'),
        ({"horizon": 5}, r'give reasoning=\{"horizon": 5\}'),
        ({"tile_px": 28}, r'give perception=\{"tile_px": 28\}'),
        ({"tiles": "shapes"}, r"""give perception=\{"tiles": 'shapes'\}"""),
        ({"sise": 5}, "unknown option 'sise'; did you mean 'size'"),
        ({"observations": "rgb"}, "unknown option 'observations'; did you mean 'observation'"),
    ):
        with pytest.raises(ValueError, match=message):
            make("VLMGym/2048-v0", **options)


@pytest.mark.parametrize("number", [np.int64, np.int32, np.uint8])
def test_numbers_of_numpy_are_numbers(number):
    assert Task.make("swap", reasoning=number(2), perception=number(1)) == Task.make("swap", reasoning=2, perception=1)
    rules = {"rows": number(4), "cols": number(5)}
    task = Task.make("swap", reasoning=rules, perception={"rotation": np.float32(2), "tile_px": number(28)})
    assert task == Task.make("swap", reasoning={"rows": 4, "cols": 5}, perception={"rotation": 2.0, "tile_px": 28})
    assert Task.from_json(task.to_json()) == task
    assert envs.Perception(tile_px=number(28), tiles=np.str_("photos")) == envs.Perception(tile_px=28, tiles="photos")
    env = gymnasium.make_vec("VLMGym/2048-v0", num_envs=number(3), reasoning={"size": number(3)})
    assert env.reset(seed=number(1))[0].shape[0] == 3
    assert (VLMGymEnv("2048").reset(seed=number(5))[0] == VLMGymEnv("2048").reset(seed=5)[0]).all()
    for bad in (np.True_, np.float64(2), np.array([2, 3])):
        with pytest.raises(ValueError):
            Task.make("2048", reasoning={"size": bad})


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("patch", [28, 32])
def test_frames_are_whole_patches_at_every_level(name, patch):
    spec = game_spec(name)
    for reasoning, offset in itertools.product(range(len(spec.levels)), (0, 20)):
        perception = {"patch": patch, "offset": offset}
        env = VLMGymEnv(name, reasoning=reasoning, perception=perception)
        frame, _ = env.reset(seed=0)
        assert frame.shape == env.observation_space.shape
        assert frame.shape[0] % patch == frame.shape[1] % patch == 0
        assert 500 <= frame.shape[0] <= 900


def test_reset_options_start_from_a_state_or_after_a_walk():
    env = VLMGymEnv("shisen")
    env.reset(seed=0, options={"walk": 12})
    assert env.game.moves == 12 and np.count_nonzero(env.game.perception()) == 12
    data = env.game.snapshot()
    other = VLMGymEnv("shisen")
    other.reset(seed=9, options={"state": data})
    assert other.game.snapshot() == data
    env.reset(seed=0, options={"walk": 1000})
    assert env.game.legal_actions()
    with pytest.raises(ValueError, match="'wlak'.*did you mean 'walk'"):
        env.reset(options={"wlak": 3})
    with pytest.raises(ValueError, match="snapshot"):
        env.reset(options={"state": b"nonsense"})


def test_horizon_truncates_and_the_end_is_final():
    env = VLMGymEnv("swap", reasoning={"horizon": 3})
    env.reset(seed=0)
    for move in range(3):
        _, reward, terminated, truncated, _ = env.step(0 if move else None)
        assert reward == -1 and not terminated and truncated == (move == 2)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(0)


def test_the_papers_reward_is_a_preset_and_ternary_tells_a_quiet_move_from_an_illegal_one():
    # Board: a single row of tiles that can slide right without a merge; left is illegal.
    task = Task.make("2048")
    game = task.new_game()
    game.reset(0)
    for seed in range(100):
        game.reset(seed)
        table = envs.reward_table(game, envs.REWARDS["score"])
        quiet = [a for a, outcome in zip(table.actions, table.outcomes, strict=True) if outcome.gain == 0]
        illegal = [a for a in range(4) if a not in table.actions]
        if quiet and illegal:
            break
    rewards = {}
    for name in ("paper", "ternary"):
        env = VLMGymEnv("2048", reward=name)
        for label, action in (("quiet", quiet[0]), ("illegal", illegal[0])):
            env.reset(seed=seed)
            rewards[name, label] = env.step(action)[1]
    assert rewards == {
        ("paper", "quiet"): -1,
        ("paper", "illegal"): -1,
        ("ternary", "quiet"): 0,
        ("ternary", "illegal"): -1,
    }


def test_text_answers_are_read_and_unreadable_ones_cost_a_move():
    env = TextAnswers(VLMGymEnv("2048"))
    _, info = env.reset(seed=0)
    assert "2048" in env.prompt and "<answer>" in env.prompt
    action = info["legal_actions"][0]
    word = Codec(Task.make("2048")).actions.write(action)
    _, _, _, _, info = env.step(f"<think>easy</think><answer>{word}</answer>")
    assert info["invalid"] is None and info["legal"]
    before = env.unwrapped.game.perception()
    _, reward, _, _, info = env.step("I would go up.")
    assert info["invalid"] == "no answer" and reward == -1 and info["moves"] == 2
    assert (env.unwrapped.game.perception() == before).all()
    with pytest.raises(ValueError, match="VLM-Gym"):
        TextAnswers(gymnasium.make("CartPole-v1"))


def test_ansi_shows_every_cell():
    env = VLMGymEnv("2048", render_mode="ansi")
    env.reset(seed=1)
    text = env.render()
    assert len(text.splitlines()) == 5
    assert text.split().count("2") + text.split().count("4") >= 2


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"game": "2084"}, "unknown game '2084'; did you mean '2048'"),
        ({"game": "2048", "reward": "papr"}, "did you mean 'paper'"),
        ({"game": "2048", "observation": "RGB"}, "unknown observation 'RGB'"),
        ({"game": "2048", "render_mode": "human"}, "unknown render_mode 'human'"),
        ({"game": "2048", "preset": "papper"}, "did you mean 'paper'"),
        ({"game": "2048", "reasoning": {"sise": 4}}, "did you mean 'size'"),
        ({"game": "2048", "reasoning": {"size": 40}}, "size = 40: must be 2 to 8"),
        ({"game": "2048", "reasoning": 9}, "levels are 0 to 3"),
        ({"game": "swap", "perception": {"tiles": "colors", "colors": 3}, "reasoning": {"kinds": 12}}, "needs 12"),
        ({"game": "swap", "perception": {"tile_px": 75}}, "no multiple of patch = 28"),
        ({"game": "shisen-photos", "perception": {"tiles": "cifar10"}}, "CIFAR-10"),
    ],
)
def test_what_is_wrong_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        VLMGymEnv(**kwargs)


def test_a_state_draws_the_same_picture_anywhere():
    env = VLMGymEnv("shisen-photos", perception=2)
    frame, _ = env.reset(seed=11)
    state = State.of(env.task, env.game)
    assert (State.from_bytes(state.to_bytes()).draw() == frame).all()
