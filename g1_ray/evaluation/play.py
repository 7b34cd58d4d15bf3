"""Runs of players: so many moves on fresh boards as boards end (the paper's protocol), or one whole episode.

    a player that looks at the game itself   Choose (envs.players): game -> action, or raises `Stopped`
    a player that is asked                   Ask: question (the state, so the picture and the rules) -> reply in text;
                                             or Watch, where somebody looks on: the reply as it grows

All players see the same first board for a seed, and are counted the same way.
"""

import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from envs import Codec, Outcome, State, Task
from envs.players import Choose
from envs.rewards import Reward, reward_table, ternary
from g1_ray.rollout.judge import judge, share
from g1_ray.seeds import seed_of
from g1_ray.types import Completion, Ints, Prompt, Request, Sampling

if TYPE_CHECKING:
    from g1_ray.models.chat import Chat

CUT = "length"
"""Why an answer ended that was cut off at its longest length."""
CUT_OFF = "cut off"
"""Cause of an answer that gives no move because it was ended at its longest length."""


class Stopped(Exception):
    """A player wants no more."""


@dataclass(frozen=True)
class Question:
    """What a player is asked: a move in a state."""

    game: str
    player: str
    seed: int
    """Of the run."""
    move: int
    """Number within the run, from 0."""
    state: State

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What tells it from all other questions of an evaluation."""
        return self.game, self.player, self.seed, self.move

    @property
    def sampling_seed(self) -> int:
        """What the answer is sampled with."""
        return seed_of("move", self.player, self.seed, self.move)


@dataclass(frozen=True)
class Reply:
    """What a player answered, such that it can be written anywhere: halves of signs become U+FFFD."""

    text: str
    finish_reason: str = "stop"
    """`CUT` where the answer was cut off; '' while it grows."""
    prompt_tokens: int | None = 0
    """None: nobody told."""
    tokens: int | None = 0
    seconds: float = 0.0
    versions: tuple[int, int] | None = None
    """The oldest and the newest policy version that sampled a token of it; None where nobody tells, and as it grows."""

    def __post_init__(self) -> None:
        for name in ("text", "finish_reason"):
            whole = getattr(self, name).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            object.__setattr__(self, name, whole)
        for name in ("prompt_tokens", "tokens"):
            if not 0 <= (getattr(self, name) or 0) < 1 << 31:  # parquet has so many bits for it
                object.__setattr__(self, name, None)
        if self.versions is not None:
            object.__setattr__(self, "versions", tuple(self.versions))  # of a list, where it was read from JSON


Ask = Callable[[Question], Awaitable[Reply]]
"""A player that is shown the board. It ends its run early by raising `Stopped`."""
Watch = Callable[[Question], AsyncGenerator[Reply, None]]
"""The same, its reply seen as it grows: each one longer than the one before, the last one whole."""
Generate = Callable[[Sequence[Request], Sampling], Awaitable[Sequence[Sequence[Completion]]]]
"""An engine's `generate`."""
Stream = Callable[[Request, Sampling], AsyncGenerator[Ints | Completion, None]]
"""An engine's `stream`."""


def ask_model(chat: "Chat", generate: Generate, sampling: Sampling) -> Ask:
    """A model as a player."""

    async def ask(question: Question) -> Reply:
        begun, prompt = time.monotonic(), chat.prompt([(question.state, None)])
        ((answer,),) = await generate([Request(prompt, 1, question.sampling_seed)], sampling)
        return _reply(chat, prompt, answer, begun)

    return ask


def watch_model(chat: "Chat", stream: Stream, sampling: Sampling) -> Watch:
    """A model as a player that is looked at while it answers."""

    async def watch(question: Question) -> AsyncGenerator[Reply, None]:
        begun, prompt = time.monotonic(), chat.prompt([(question.state, None)])
        async with contextlib.aclosing(stream(Request(prompt, 1, question.sampling_seed), sampling)) as pieces:
            async for piece in pieces:
                yield _reply(chat, prompt, piece, begun)

    return watch


def _reply(chat: "Chat", prompt: Prompt, answer: Ints | Completion, begun: float) -> Reply:
    versions: tuple[int, int] | None = None
    if isinstance(answer, Completion):
        token_ids, ended = answer.token_ids, answer.finish_reason
        versions = (int(answer.versions.min()), int(answer.versions.max())) if len(token_ids) else None
    else:
        token_ids, ended = answer, ""
    return Reply(
        text=chat.decode(token_ids),
        finish_reason=ended,
        prompt_tokens=len(prompt.token_ids),
        tokens=len(token_ids),
        seconds=time.monotonic() - begun,
        versions=versions,
    )


@dataclass(frozen=True)
class Move:
    """One move of a run."""

    state: State
    """Before the move."""
    action: int | None
    """None: the answer could not be read."""
    legal: bool
    gain: float
    """In the game's own score."""
    reward: float
    """The game's reward, unweighted."""
    regret: float
    """What the best legal move earns, less `reward`."""
    over: bool
    """Whether the board ended with it."""
    success: bool
    text: str = ""
    """The answer; '' for players that give none."""
    cause: str = ""
    """Why there is no move."""
    perception_exact: bool | None = None
    """Whether the board was described without an error; None for players that describe none."""
    perception_share: float | None = None
    """Share of the cells that were described right."""
    prompt_tokens: int | None = 0
    """None: the endpoint does not tell."""
    tokens: int | None = 0
    seconds: float = 0.0


OnMove = Callable[[Move], None]
"""Is told of each move as it is counted."""


@dataclass(frozen=True)
class Run:
    """One run of a player."""

    seed: int
    moves: tuple[Move, ...]

    @property
    def score(self) -> float:
        """Sum of the gains: 2048's score, pairs taken away, swaps that matched."""
        return sum(move.gain for move in self.moves)

    @property
    def scoring(self) -> float:
        """Share of the moves that score: what the paper's game reward counts."""
        return share([move.gain > 0 for move in self.moves])

    @property
    def legal(self) -> float:
        """Share of legal moves."""
        return share([move.legal for move in self.moves])

    @property
    def successes(self) -> int:
        """Boards won."""
        return sum(move.success for move in self.moves)

    @property
    def boards(self) -> int:
        """Boards played, the last one perhaps not to its end."""
        return sum(move.over for move in self.moves[:-1]) + 1


@dataclass
class Table:
    """A run in the making."""

    task: Task
    player: str
    seed: int
    num_moves: int
    """0: to the end of the episode."""
    reward: Reward
    on_move: OnMove | None = None
    moves: list[Move] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.num_moves:  # the run has its own length; boards end only by their rules
            endless = dataclasses.replace(self.task.reasoning, horizon=0)
            self.task = dataclasses.replace(self.task, reasoning=endless)
        self.game = self.task.new_game()
        self.game.reset(self.seed)
        self.rng = np.random.default_rng(seed_of("player", self.player, self.seed))
        self._boards, self._best = 1, float("nan")

    def goes_on(self) -> bool:
        """Whether there is a move to make; deals the next board where the last one ended."""
        if len(self.moves) >= self.num_moves and self.num_moves:
            return False
        if self.game.over and self.num_moves:
            self.game.reset(seed_of("board", self.seed, self._boards))
            self._boards, self._best = self._boards + 1, float("nan")
        return not self.game.over

    @property
    def state(self) -> State:
        """Before the next move."""
        return State.of(self.task, self.game)

    @property
    def best(self) -> float:
        """What the best legal move earns."""
        if self._best != self._best:
            self._best = float(reward_table(self.game, self.reward).rewards.max())
        return self._best

    def count(self, state: State, best: float, action: int | None, outcome: Outcome, **about: Any) -> None:
        """Counts a move that was played in a state whose best one earns `best`."""
        reward = float(self.reward(outcome))
        self.moves.append(
            Move(
                state,
                action,
                outcome.legal,
                outcome.gain,
                reward,
                best - reward,
                self.game.over,
                outcome.success,
                **about,
            )  # fmt: skip
        )
        if outcome.legal:  # else the board is as it was
            self._best = float("nan")
        if self.on_move:
            self.on_move(self.moves[-1])

    def hear(self, codec: Codec, state: State, best: float, reply: Reply) -> None:
        """Plays and counts a reply to a state whose best move earns `best`. What can't be read is a move lost."""
        judged = judge(codec, self.game, reply.text, self.reward)
        cut_off = judged.answer.cause and reply.finish_reason == CUT
        self.count(
            state,
            best,
            judged.answer.action,
            judged.outcome,
            text=reply.text,
            cause=CUT_OFF if cut_off else str(judged.answer.cause or ""),
            perception_exact=judged.seen.exact,
            perception_share=judged.seen.share,
            prompt_tokens=reply.prompt_tokens,
            tokens=reply.tokens,
            seconds=reply.seconds,
        )

    def undo(self) -> None:
        """Takes the last move back."""
        self.game.restore(self.moves.pop().state.data)
        self._best = float("nan")

    def run(self) -> Run:
        return Run(self.seed, tuple(self.moves))


def play(
    task: Task,
    player: str,
    choose: Choose,
    seed: int,
    moves: int = 0,
    reward: Reward = ternary,
    on_move: OnMove | None = None,
) -> Run:
    """A run of `moves` moves, or with 0 of one episode, by a player that looks at the game itself."""
    table = Table(task, player, seed, moves, reward, on_move)
    while table.goes_on():
        try:
            action = choose(table.game, table.rng)
        except Stopped:
            break
        table.count(table.state, table.best, action, table.game.step(action))
    return table.run()


async def play_asked(
    task: Task,
    game: str,
    player: str,
    ask: Ask,
    seed: int,
    moves: int = 0,
    reward: Reward = ternary,
    on_move: OnMove | None = None,
) -> Run:
    """A run of a player that is shown each board of what is called `game`. What can't be read is a move lost."""
    table = Table(task, player, seed, moves, reward, on_move)
    codec = Codec(table.task)
    while table.goes_on():
        state, best = table.state, table.best
        reply = await ask(Question(game, player, seed, len(table.moves), state))
        table.hear(codec, state, best, reply)
    return table.run()
