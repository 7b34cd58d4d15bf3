"""Models that play: the paper's protocol, runs of so many moves on fresh boards as boards end, all runs in step.

Every player, model or not, sees the same first board for a seed, and counts the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from envs import Game, State, Task
from g1_ray.config import GameConfig, RewardConfig
from g1_ray.episodes import seed_of
from g1_ray.referee import Referee
from g1_ray.stats import Mean, bootstrap_mean
from g1_ray.types import Completion, Request, Sampling, Turn

if TYPE_CHECKING:
    from g1_ray.chat import Chat

Ask = Callable[[Sequence[Request], Sampling], Sequence[Sequence[Completion]]]
"""An engine's `generate`, called and waited for."""
Choose = Callable[[Game, np.random.Generator], int]
"""A player that needs no picture."""


@dataclass(frozen=True)
class Move:
    """One move of a run."""

    state: State
    action: int | None
    text: str
    """The model's answer; '' for players that give none."""
    legal: bool
    gain: float
    reward: float
    """The game's own reward, unweighted."""
    perception_exact: bool | None
    """Whether the board was described without an error; None for players that do not describe it."""
    cause: str
    tokens: int


@dataclass(frozen=True)
class PlayedRun:
    """One run of a player."""

    seed: int
    moves: tuple[Move, ...]
    successes: int

    @property
    def score(self) -> float:
        """Sum of the gains: 2048's score, pairs taken away, swaps that matched."""
        return sum(move.gain for move in self.moves)

    @property
    def scoring(self) -> float:
        """Share of the moves that score: what the paper's game reward counts."""
        return float(np.mean([move.gain > 0 for move in self.moves]))

    @property
    def legal(self) -> float:
        """Share of legal moves."""
        return float(np.mean([move.legal for move in self.moves]))

    @property
    def p_acc(self) -> float:
        """Share of boards described without an error; NaN for players that describe none."""
        return _share([bool(m.perception_exact) for m in self.moves if m.perception_exact is not None])

    @property
    def r_acc(self) -> float:
        """Share of moves that score, of those whose board was described without an error (the paper's R_acc)."""
        return _share([move.gain > 0 for move in self.moves if move.perception_exact])


def _share(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")


@dataclass
class _Table:
    """A run in the making."""

    seed: int
    game: Game
    rng: np.random.Generator
    moves: list[Move] = field(default_factory=list)
    boards: int = 1
    successes: int = 0

    def next_board(self) -> None:
        if self.game.over:
            self.game.reset(seed_of("board", self.seed, self.boards))
            self.boards += 1

    def add(self, move: Move, success: bool) -> None:
        self.moves.append(move)
        self.successes += success

    def run(self) -> PlayedRun:
        return PlayedRun(self.seed, tuple(self.moves), self.successes)


def _tables(task: Task, player: str, seeds: Sequence[int]) -> list[_Table]:
    tables = []
    for seed in seeds:
        game = task.new_game()
        game.reset(seed)
        tables.append(_Table(seed, game, np.random.default_rng(seed_of("player", player, seed))))
    return tables


def unlimited(config: GameConfig) -> Task:
    """The task without a horizon: the length of a run is the protocol's business."""
    task = config.task()
    return dataclasses.replace(task, reasoning=dataclasses.replace(task.reasoning, horizon=0))


def play_classic(config: GameConfig, name: str, choose: Choose, seeds: Sequence[int], moves: int) -> list[PlayedRun]:
    """Runs of a player that looks at the game itself."""
    task = unlimited(config)
    referee = Referee(config, RewardConfig())
    tables = _tables(task, name, seeds)
    for table in tables:
        for _ in range(moves):
            table.next_board()
            state = State.of(task, table.game)
            action = choose(table.game, table.rng)
            outcome = table.game.step(action)
            reward = float(referee.reward(outcome))
            move = Move(state, action, "", outcome.legal, outcome.gain, reward, None, "", 0)
            table.add(move, outcome.success)
    return [table.run() for table in tables]


def play_model(
    config: GameConfig, name: str, chat: Chat, ask: Ask, seeds: Sequence[int], moves: int, sampling: Sampling
) -> list[PlayedRun]:
    """Runs of a model, one picture a move. An answer that can't be read is a move lost."""
    task = unlimited(config)
    referee = Referee(config, RewardConfig())
    tables = _tables(task, name, seeds)
    for number in range(moves):
        requests = []
        for table in tables:
            table.next_board()
            prompt = chat.prompt([(State.of(task, table.game), None)])
            requests.append(Request(prompt, 1, seed_of("move", name, table.seed, number)))
        for table, request, (completion,) in zip(tables, requests, ask(requests, sampling), strict=True):
            turn = referee.turn(request.prompt.states[0], request, completion, chat.decode(completion.token_ids))
            outcome = table.game.step(turn.action)
            table.add(_move(turn), outcome.success)
    return [table.run() for table in tables]


def _move(turn: Turn) -> Move:
    return Move(
        state=turn.prompt.states[-1],
        action=turn.action,
        text=turn.text,
        legal=turn.legal,
        gain=turn.gain,
        reward=turn.rewards["game"],
        perception_exact=turn.perception_exact,
        cause=turn.cause,
        tokens=len(turn.completion.token_ids),
    )


@dataclass(frozen=True)
class Result:
    """What a player's runs on a game came to: means over runs with 95 % bootstrap intervals."""

    game: str
    player: str
    runs: int
    score: Mean
    scoring: Mean
    """Of the moves, in %."""
    legal: Mean
    """Of the moves, in %."""
    p_acc: float
    """NaN for players that describe no boards, like `r_acc`."""
    r_acc: float
    unreadable: float
    """Share of answers that could not be read."""
    tokens: float
    """Mean length of an answer."""


def result_of(game: str, player: str, runs: Sequence[PlayedRun]) -> Result:
    """The line of a table."""
    moves = [move for run in runs for move in run.moves]
    return Result(
        game,
        player,
        len(runs),
        bootstrap_mean([run.score for run in runs]),
        bootstrap_mean([100 * run.scoring for run in runs]),
        bootstrap_mean([100 * run.legal for run in runs]),
        _share([bool(move.perception_exact) for move in moves if move.perception_exact is not None]),
        _share([move.gain > 0 for move in moves if move.perception_exact]),
        float(np.mean([bool(move.cause) for move in moves])),
        float(np.mean([move.tokens for move in moves])),
    )


HEADER = ("game", "player", "score", "moves that score, %", "legal moves, %", "P_acc", "R_acc", "unreadable")


def table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Results as rows of text, the header first."""
    rows: list[tuple[str, ...]] = [HEADER]
    for result in results:
        shares = [f"{x:.3f}" if x == x else "" for x in (result.p_acc, result.r_acc)]
        unreadable = f"{result.unreadable:.3f}" if result.tokens else ""
        means = [str(mean) for mean in (result.score, result.scoring, result.legal)]
        rows.append((result.game, result.player, *means, *shares, unreadable))
    return rows
