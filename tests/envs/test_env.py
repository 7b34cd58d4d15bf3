"""The Gymnasium environment: the standard's own checker, seeding, options, text answers."""

import itertools

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
                assert frame is first
                assert (frame == fresh.step(action)[0]).all()
                if terminated or truncated:
                    break


def test_a_copy_is_the_callers_own():
    env = VLMGymEnv("2048")
    first, info = env.reset(seed=0)
    kept = first.copy()
    env.step(info["legal_actions"][0])
    assert (first == kept).all()


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
