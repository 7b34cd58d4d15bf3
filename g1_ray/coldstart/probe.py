"""How a model answers single states: whether it sees the board, and whether its move scores."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from envs import State
from envs.players import Choose
from envs.rewards import reward_named
from envs.teacher import Oracle
from g1_ray.config import EngineConfig, GameConfig, RewardConfig, StatesConfig
from g1_ray.engines.make import make_engine
from g1_ray.models.chat import Chat
from g1_ray.rollout.judge import share
from g1_ray.rollout.referee import Referee
from g1_ray.rollout.starts import draw
from g1_ray.seeds import seed_of
from g1_ray.types import Completion, Request, Sampling

MAX_TOKENS = 200
"""Longest answer; the workings of the tiny models' games are shorter."""


@dataclass(frozen=True)
class Score:
    """Means over states; NaN where a player gives no text."""

    p_acc: float
    """Share of boards described without an error."""
    scores: float
    """Share of moves that score."""
    legal: float
    unreadable: float
    """Share of answers without a move."""
    malformed: float
    tokens: float

    def __str__(self) -> str:
        told = {"P_acc": self.p_acc, "scores": self.scores, "legal": self.legal, "malformed": self.malformed}
        return "  ".join(f"{name} {value:.3f}" for name, value in told.items() if value == value) + (
            f"  tokens {self.tokens:.1f}" if self.tokens == self.tokens else ""
        )


def held_out(game: GameConfig, num: int, seed: int = 0) -> list[State]:
    """States of a game that no training draws: where chance and an erring oracle lead, with `game`'s `open_only`."""
    task, reward = game.task(), reward_named(game.reward)
    policy = Oracle(task)
    mix = StatesConfig(random_walk=1, policy=1, open_only=game.states.open_only)
    return [draw(task, mix, seed_of("held out", seed, i), reward, policy).state for i in range(num)]


def probe_model(path: Path, game: GameConfig, states: Sequence[State], temperature: float) -> Score:
    """How the model in a folder answers states of a game."""
    chat, referee = Chat(path), Referee(game, RewardConfig())
    requests = [Request(chat.prompt([(state, None)]), 1, seed_of("probe", i)) for i, state in enumerate(states)]
    sampling = Sampling(temperature=temperature, max_tokens=MAX_TOKENS)
    completions = asyncio.run(_ask(path, requests, sampling))
    turns = [
        referee.turn(state, request, completion, chat.decode(completion.token_ids))
        for state, request, (completion,) in zip(states, requests, completions, strict=True)
    ]
    return Score(
        p_acc=share([turn.perception_exact for turn in turns]),
        scores=share([turn.gain > 0 for turn in turns]),
        legal=share([turn.legal for turn in turns]),
        unreadable=share([turn.action is None for turn in turns]),
        malformed=share([not turn.rewards["format"] for turn in turns]),
        tokens=float(np.mean([len(turn.completion.token_ids) for turn in turns])),
    )


async def _ask(path: Path, requests: Sequence[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
    config = EngineConfig(kind="transformers", gpus=0, max_model_len=512, max_num_seqs=256)
    engine = make_engine(str(path), config, "float32", sampling)
    await engine.start()
    answers = await engine.generate(requests)
    await engine.stop()
    return answers


def probe_player(choose: Choose, states: Sequence[State]) -> Score:
    """How a player that looks at the game itself does on states."""
    rng, nan = np.random.default_rng(0), float("nan")
    games = [state.game() for state in states]
    outcomes = [game.step(choose(game, rng)) for game in games]
    scores, legal = ([getattr(outcome, part) > 0 for outcome in outcomes] for part in ("gain", "legal"))
    return Score(nan, share(scores), share(legal), nan, nan, nan)
