"""The vectorised environment does what Gymnasium's SyncVectorEnv does, array for array."""

import gymnasium
import numpy as np
import pytest

from envs import VLMGymVectorEnv, game_names, game_spec

NUM = 5


def same(a, b):
    if isinstance(a, dict):
        assert set(a) == set(b)
        for key in a:
            same(a[key], b[key])
    elif a.dtype == object:
        assert a.tolist() == b.tolist()
    else:
        assert a.dtype == b.dtype and a.shape == b.shape and (a == b).all()


@pytest.mark.parametrize("observation", ["rgb", "board"])
@pytest.mark.parametrize("name", game_names())
def test_equals_sync_vector_env_over_episodes(name, observation):
    options = {"observation": observation, "reasoning": {"horizon": 7}, "reward": "score"}
    if name != "2048":
        options["perception"] = {"offset": 9}
    gym_id = game_spec(name).gym_id
    fast = gymnasium.make_vec(gym_id, num_envs=NUM, **options)
    slow = gymnasium.make_vec(gym_id, num_envs=NUM, vectorization_mode="sync", **options)
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


def test_copies_are_the_callers_own_and_a_standing_frame_is_not():
    for copy in (True, False):
        env = VLMGymVectorEnv(3, "2048", copy=copy)
        first, info = env.reset(seed=0)
        kept = first.copy()
        env.step(np.array([legal[0] for legal in info["legal_actions"]]))
        assert (first == kept).all() == copy


def test_render_gives_a_frame_of_each():
    env = VLMGymVectorEnv(3, "swap", render_mode="rgb_array")
    frames, _ = env.reset(seed=0)
    assert all((one == other).all() for one, other in zip(env.render(), frames, strict=True))


def test_wrong_calls_are_named():
    with pytest.raises(ValueError, match="num_envs = 0"):
        VLMGymVectorEnv(0, "2048")
    env = VLMGymVectorEnv(2, "2048")
    assert (env.reset(seed=np.int64(3))[0] == env.reset(seed=[3, 4])[0]).all()
    with pytest.raises(ValueError, match="3 seeds for 2"):
        env.reset(seed=[1, 2, 3])
