"""Where training states come from: starts, random walks, and the last moves of an oracle's episode."""

from typing import NamedTuple

import numpy as np

from envs import State, Task
from envs.core import Game
from envs.players import Choose, random_legal
from envs.rewards import Reward, reward_table
from g1_ray.config import StatesConfig
from g1_ray.seeds import seed_of

MAX_BACKWARD = 8
"""Most moves before the end of an oracle's episode; fewer are as likely."""
EPISODE = 60
"""Moves after which an episode of the oracle or the policy counts as ended: a look-ahead costs a millisecond a move."""
TRIES = 200
"""States drawn before a task is said to have none that are open."""


class Drawn(NamedTuple):
    """A state, and which source it came from."""

    state: State
    source: str


def draw_state(task: Task, mix: StatesConfig, seed: int, reward: Reward) -> State:
    """A state in which the episode is not over, from a source drawn by the weights of `mix`. Same seed, same state.

    States that the model's own moves led to come from outside: here the weight of `policy` falls to the other sources.
    Raises `ValueError` where no source has a weight, or no state is open that should be.
    """
    return draw(task, mix, seed, reward).state


def draw(task: Task, mix: StatesConfig, seed: int, reward: Reward, policy: Choose | None = None) -> Drawn:
    """As `draw_state`, where `policy` plays the states that it visits, if there is one."""
    sources = ("fresh", "random_walk", "oracle_backward", *(("policy",) if policy else ()))
    weights = np.array([getattr(mix, source) for source in sources])
    if not weights.sum():
        raise ValueError(f"{task.name}: no source of states has a weight; set states.random_walk above 0")
    game = task.new_game()
    for attempt in range(TRIES):
        rng = np.random.default_rng(seed_of("state", seed, attempt))
        source = sources[int(rng.choice(len(sources), p=weights / weights.sum()))]
        game.reset(int(rng.integers(1 << 62)))
        if source == "random_walk":
            _walk(game, random_legal, mix.max_walk, rng)
        elif source == "policy" and policy:
            _walk(game, policy, EPISODE, rng)
        elif source == "oracle_backward":
            _backward(game, 1 + int(rng.integers(MAX_BACKWARD)))
        if not game.over and (not mix.open_only or is_open(game, reward)):
            return Drawn(State.of(task, game), source)
    raise ValueError(
        f"{task.name}: none of {TRIES} states is open, that is, has a legal move that earns more than another; "
        "set states.open_only = false or take another reward"
    )


def is_open(game: Game, reward: Reward) -> bool:
    """Whether some legal move earns more than another."""
    return bool(reward_table(game, reward).regrets.any())


def _walk(game: Game, player: Choose, most: int, rng: np.random.Generator) -> None:
    """Plays up to `most` moves, any number of them as likely, and never to the end."""
    moves = int(rng.integers(most + 1))
    past: list[bytes] = []
    while not game.over and len(past) <= moves:
        past.append(game.snapshot())
        game.step(player(game, rng))
    # A walk that ends too early stands for all its states, or last moves would be most of what is drawn.
    game.restore(past[moves] if moves < len(past) else past[int(rng.integers(len(past)))])


def _backward(game: Game, moves: int) -> None:
    """Plays the oracle's episode and goes back `moves` moves from its end, or to its start where it was shorter."""
    past: list[bytes] = []
    while not game.over and len(past) < EPISODE:
        past.append(game.snapshot())
        game.step(game.oracle())
    game.restore(past[max(0, len(past) - moves)])
