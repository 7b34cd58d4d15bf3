import pickle
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("ray.rllib")

import ray  # noqa: E402
from ray.rllib.algorithms.ppo import PPOConfig  # noqa: E402
from ray.rllib.connectors.env_to_module import FlattenObservations  # noqa: E402
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner  # noqa: E402
from ray.tune.registry import ENV_CREATOR, _global_registry  # noqa: E402

from envs.task import game_names, game_spec  # noqa: E402
from g1_ray.rllib import register_envs  # noqa: E402


def config() -> PPOConfig:
    register_envs()
    ppo = PPOConfig().environment("VLMGym/2048-v0", env_config={"observation": "board"})
    ppo.env_runners(
        num_env_runners=0,
        num_envs_per_env_runner=2,
        rollout_fragment_length=16,
        env_to_module_connector=lambda env=None, spaces=None, device=None: FlattenObservations(),
    )
    return ppo.training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1)


@pytest.fixture
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("name", game_names())
def test_every_game_is_registered(name: str) -> None:
    register_envs()
    creator = pickle.loads(pickle.dumps(_global_registry.get(ENV_CREATOR, game_spec(name).gym_id)))
    env = creator({"observation": "board", "reasoning": 0})
    observation, info = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    observation, reward, *_ = env.step(info["legal_actions"][0])
    assert env.observation_space.contains(observation)
    assert np.isfinite(reward)


def test_env_runner_samples() -> None:
    runner = SingleAgentEnvRunner(config=config())
    episodes = runner.sample(num_timesteps=32, random_actions=True)
    runner.stop()
    assert sum(len(episode) for episode in episodes) >= 32
    assert episodes[0].get_observations(0).shape == (16,)


@pytest.mark.slow
def test_ppo_learns_an_iteration(local_ray: None) -> None:
    algorithm = config().build_algo()
    result = algorithm.train()
    algorithm.stop()
    assert np.isfinite(result["learners"]["default_policy"]["total_loss"])
