"""VLM-Gym: visual games with one interface and composable difficulty. Needs numpy, Pillow and gymnasium only.

Importing it registers every game with Gymnasium as `VLMGym/...-v0`.
"""

from envs.codec import Answer, Codec, PerceptionScore
from envs.core import Game, GameOptions, Outcome
from envs.env import TextAnswers, VLMGymEnv
from envs.perception import Perception
from envs.players import PLAYERS
from envs.rewards import REWARDS, RewardTable, reward_table
from envs.task import GameSpec, State, Task, game_names, game_spec, load_games, register_game
from envs.vector import VLMGymVectorEnv

__all__ = [
    "PLAYERS",
    "REWARDS",
    "Answer",
    "Codec",
    "Game",
    "GameOptions",
    "GameSpec",
    "Outcome",
    "Perception",
    "PerceptionScore",
    "RewardTable",
    "State",
    "Task",
    "TextAnswers",
    "VLMGymEnv",
    "VLMGymVectorEnv",
    "game_names",
    "game_spec",
    "register_game",
    "reward_table",
]

load_games()
