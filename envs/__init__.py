"""VLM-Gym: visual games with one interface and composable difficulty. Needs numpy, Pillow and gymnasium only."""

from envs.task import load_games

load_games()
