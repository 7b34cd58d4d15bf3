"""The vectorised environment does what Gymnasium's SyncVectorEnv does, array for array."""

import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from envs import VLMGymVectorEnv, game_names, game_spec

NUM = 5


def same(a, b):
    if isinstance(a, dict):
        assert set(a) == set(b)
        for key in a:
            same(a[key], b[key])
    elif a.dtype == object:
        for one, other in zip(a, b, strict=True):
            assert np.array_equal(one, other) and type(one) is type(other)
    else:
        assert a.dtype == b.dtype and a.shape == b.shape and (a == b).all()


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("observation", ["rgb", "board"])
@pytest.mark.parametrize("name", game_names())
def test_equals_sync_vector_env_over_episodes(name, observation, mode):
    options = {"observation": observation, "reasoning": {"horizon": 7}, "reward": "score"}
    if name != "2048":
        options["perception"] = {"offset": 9}
    gym_id = game_spec(name).gym_id
    fast = gymnasium.make_vec(gym_id, num_envs=NUM, autoreset_mode=mode, **options)
    slow = gymnasium.make_vec(
        gym_id, num_envs=NUM, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **options
    )
    assert fast.metadata["autoreset_mode"] == slow.metadata["autoreset_mode"] == mode
    assert isinstance(fast.unwrapped, VLMGymVectorEnv)
    assert fast.observation_space == slow.observation_space and fast.action_space == slow.action_space
    rng = np.random.default_rng(0)
    for seed in (3, None):
        if seed is None:
            seeds = [8, 7, 6, 5, 4]
        else:
            seeds = seed
        a, info = fast.reset(seed=seeds)
        b, info_b = slow.reset(seed=seeds)
        same(a, b)
        same(info, info_b)
        for _ in range(20):
            if (
                mode == AutoresetMode.DISABLED
                and (over := np.array([not legal for legal in info["legal_actions"]])).any()
            ):
                both = [env.reset(options={"reset_mask": over, "walk": 2}) for env in (fast, slow)]
                same(both[0][0], both[1][0])
                same(both[0][1], both[1][1])
                info["legal_actions"] = [fast.unwrapped.batch.legal_actions(i) for i in range(NUM)]
            actions = np.array(
                [legal[int(rng.random() * len(legal))] if legal else 0 for legal in info["legal_actions"]]
            )
            actions[rng.random(NUM) < 0.2] = int(rng.random() * fast.single_action_space.n)
            one, other = fast.step(actions), slow.step(actions)
            for x, y in zip(one, other, strict=True):
                same(x, y)
            info = one[-1]


def test_async_works_too():
    env = gymnasium.make_vec("VLMGym/2048-v0", num_envs=2, vectorization_mode="async", reasoning={"horizon": 5})
    sync = gymnasium.make_vec("VLMGym/2048-v0", num_envs=2, reasoning={"horizon": 5})
    try:
        a, _ = env.reset(seed=1)
        b, _ = sync.reset(seed=1)
        assert (a == b).all()
        for action in range(4):
            actions = np.full(2, action)
            one, other = env.step(actions), sync.step(actions)
            assert (one[0] == other[0]).all() and (one[1] == other[1]).all()
    finally:
        env.close()


def test_frames_that_are_held_stay_what_they_are():
    for copy in (True, False):
        env = VLMGymVectorEnv(3, "2048", copy=copy)
        first, info = env.reset(seed=0)
        held, parts, kept = [], [first[1]], [first.copy()]
        del first
        for _ in range(6):
            frames, *_, info = env.step(np.array([legal[0] for legal in info["legal_actions"]]))
            held.append(frames)
            parts.append(frames[1, 3:])
            kept.append(frames.copy())
        assert all((one == other).all() for one, other in zip(held, kept[1:], strict=True))
        assert (parts[0] == kept[0][1]).all() and (parts[-1] == kept[-1][1, 3:]).all()


def test_a_step_before_reset_is_named_and_so_are_episodes_that_are_over():
    env = VLMGymVectorEnv(3, "2048", render_mode="rgb_array", reasoning={"horizon": 2}, autoreset_mode="DISABLED")
    for use in (lambda: env.step(np.zeros(3, int)), env.render):
        with pytest.raises(ResetNeeded, match="never started"):
            use()
    with pytest.raises(ResetNeeded, match=r"games \[1\]"):
        env.reset(options={"reset_mask": np.array([True, False, True])})
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.full(3, -1))
    with pytest.raises(ResetNeeded, match=r"\[0, 1, 2\] are over"):
        env.step(np.zeros(3, int))
    env.reset(options={"reset_mask": np.array([True, True, False])})
    with pytest.raises(ResetNeeded, match=r"\[2\] are over"):
        env.step(np.zeros(3, int))


def test_wrong_resets_and_actions_change_nothing():
    env = VLMGymVectorEnv(2, "swap", reasoning={"horizon": 1})
    env.reset(seed=0)
    env.step(np.array([-1, -1]))
    before = [env.batch.snapshot(i) for i in range(2)]
    mask = np.array([True, False])
    for seed, options in (
        ([1, -1], None),
        (None, {"walk": -1}),
        (None, {"reset_mask": [True, False]}),
        (None, {"reset_mask": mask & False}),
        (None, {"reset_mask": mask, "wak": 1}),
        (None, {"reset_mask": mask, "state": b"x"}),
    ):
        with pytest.raises((ValueError, gymnasium.error.Error)):
            env.reset(seed=seed, options=options)
    with pytest.raises(TypeError):
        env.step(np.array([0.5, 1]))
    assert [env.batch.snapshot(i) for i in range(2)] == before


def test_a_pickled_one_plays_on_alike_without_its_tiles():
    env = VLMGymVectorEnv(3, "shisen", perception=1, copy=False)
    _, info = env.reset(seed=0)
    data = pickle.dumps(env)
    twin = pickle.loads(data)
    actions = np.array([legal[0] for legal in info["legal_actions"]])
    assert len(data) < 200_000 and (twin.step(actions)[0] == env.step(actions)[0]).all()


@pytest.mark.parametrize("mode", ["SAME_STEP", "SameStep", AutoresetMode.SAME_STEP])
def test_modes_go_by_name_and_the_limit_of_a_spec_is_the_horizon(mode):
    env = gymnasium.make_vec("VLMGym/2048-v0", num_envs=2, autoreset_mode=mode, max_episode_steps=3)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and env.spec.max_episode_steps == 3
    env.reset(seed=0)
    ends = [env.step(np.full(2, -1))[3].all() for _ in range(6)]
    assert ends == [False, False, True] * 2


def test_render_gives_a_frame_of_each():
    env = VLMGymVectorEnv(3, "swap", render_mode="rgb_array")
    frames, _ = env.reset(seed=0)
    assert all((one == other).all() for one, other in zip(env.render(), frames, strict=True))


def test_wrong_calls_are_named():
    for num in (0, -2, True, 2.0, "3"):
        with pytest.raises(ValueError, match="num_envs = "):
            VLMGymVectorEnv(num, "2048")
    with pytest.raises(ValueError, match="autoreset_mode 'SAME'.*'SAME_STEP'"):
        VLMGymVectorEnv(2, "2048", autoreset_mode="SAME")
    env = VLMGymVectorEnv(2, "2048")
    assert (env.reset(seed=np.int64(3))[0] == env.reset(seed=[3, 4])[0]).all()
    with pytest.raises(ValueError, match="3 seeds for 2"):
        env.reset(seed=[1, 2, 3])
