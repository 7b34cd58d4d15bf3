"""The games as RLlib environments."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from ray import tune

from envs.env import VLMGymEnv
from envs.task import GameSpec, game_names, game_spec, register_game


def make_env(spec: GameSpec, config: Mapping[str, Any]) -> VLMGymEnv:
    """The environment of a game; `config`, RLlib's `env_config`, holds the other arguments of `VLMGymEnv`."""
    register_game(spec)  # a worker has not seen the games that live elsewhere
    return VLMGymEnv(spec.name, **config)


def register_envs() -> None:
    """Makes every registered game known to Ray under its Gymnasium id, as in `config.environment("VLMGym/2048-v0")`.

    RLlib's own models take no boards [rows, cols]: put its connector `FlattenObservations` before them.
    """
    for name in game_names():
        spec = game_spec(name)
        tune.register_env(spec.gym_id, partial(make_env, spec))
