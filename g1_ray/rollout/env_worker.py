"""Games seen from the pipeline: tickets become prompts, answers become rewards and the next prompts.

A worker keeps nothing between calls but caches: the states are in what flows, so a group outlives its worker.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from envs import Codec, State
from g1_ray.config import RunConfig
from g1_ray.models.words import Phrases, Words
from g1_ray.rollout.begun import described
from g1_ray.rollout.judge import differ
from g1_ray.rollout.referee import Referee
from g1_ray.rollout.starts import draw_state
from g1_ray.seeds import seed_of
from g1_ray.types import Completion, Group, Ints, OpenGroup, Prompt, Request, Rollout, Spoiled, Ticket

Answers = Sequence[Sequence[Completion]]
"""Of each request, its answers."""
GAME_S = 30.0
"""Longest that a group's games may take for one call."""
_T = TypeVar("_T")


def phrases(config: RunConfig, model_path: str) -> Phrases:
    """What the prompts of a run are made of.

    Raises `ValueError` where the model can't be asked about its games: at the start, and not by an actor.
    """
    from g1_ray.models.chat import Chat  # and with it transformers: only where it is used

    turns, room = config.rollout.turns, config.engine.max_model_len
    made = Chat(model_path).phrases([game.task() for game in config.games], turns)
    for game in config.games:
        length = len(made.head(game.task()))
        if turns > 1:
            length += min(turns - 1, config.rollout.window) * len(made.following(game.task()))
        if config.rollout.perception == "given":
            rng, fresh = np.random.default_rng(0), game.task().new_game()
            length += len(made.ids(described(Codec(game.task()), fresh.perception(), 0, rng)))
        if length + config.rollout.max_tokens > room:
            raise ValueError(
                f"engine.max_model_len = {room}: a prompt about {game.name} takes {length} tokens, and leaves no room "
                f"for an answer of rollout.max_tokens = {config.rollout.max_tokens}.\n"
                f"Give it {length + config.rollout.max_tokens}, the answer less, or the game smaller tiles "
                "(perception.tile_px)."
            )
    return made


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` in what takes longer, in a process's main thread: in no other can anything be stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def unspoiled(ticket: Ticket, call: Callable[..., _T], *arguments: Any) -> _T | Spoiled:
    """What a call for one group gives, or what became of the group where that raises or hangs."""
    try:
        with limited(GAME_S):
            return call(*arguments)
    except Exception as error:  # noqa: BLE001 - a game may raise anything, and it is this group's alone
        said = str(error).strip().partition("\n")[0]
        return Spoiled(ticket, f"{call.__name__.strip('_')}: {type(error).__name__}: {said}")


class EnvWorker:
    """The games of a run. All of its methods are functions of their arguments.

    What a game raises, or that it hangs, is the fault of its group, which becomes `Spoiled`.
    """

    def __init__(self, config: RunConfig, words: Words) -> None:
        self.config, self.words = config.rollout, words
        opened = bool(words.opened)
        self.referees = {game.name: Referee(game, config.reward, opened) for game in config.games}

    def observe(self, tickets: Sequence[Ticket]) -> list[OpenGroup | Spoiled]:
        """Puts every ticket's game into its start state, and asks for the first answers of its group."""
        return [unspoiled(ticket, self._start, ticket) for ticket in tickets]

    def _start(self, ticket: Ticket) -> OpenGroup:
        referee = self.referees[ticket.game]
        start = ticket.state
        if start is None:
            mix = referee.config.states.only(ticket.source)
            start = draw_state(referee.task, mix, seed_of("start", ticket.game, ticket.seed), referee.reward)
        size = self.config.screen_size or self.config.group_size
        prompt = self.words.prompt([(start, None)])
        if begun := self._begun(ticket, start):
            prompt = Prompt(np.concatenate([prompt.token_ids, self.words.ids(begun)]), prompt.states)
        first = Request(prompt, size, seed_of("answer", ticket.seed, 0))
        return OpenGroup(ticket, start, (Rollout(),) * size, (first,), tuple(range(size)))

    def _begun(self, ticket: Ticket, start: State) -> str:
        """What the answers of a group are begun with, the same for all."""
        if self.config.perception == "own":
            return ""
        rng = np.random.default_rng(seed_of("begun", ticket.seed))
        return described(self.referees[ticket.game].codec, start.game().perception(), self.config.wrong_cells, rng)

    def score(self, groups: Sequence[OpenGroup | Spoiled], answers: Sequence[Answers]) -> list[OpenGroup | Spoiled]:
        """Plays the answers; the groups that come back ask for the next ones, if any rollout goes on."""
        return [
            group if isinstance(group, Spoiled) else unspoiled(group.ticket, self._score, group, given)
            for group, given in zip(groups, answers, strict=True)
        ]

    def _score(self, group: OpenGroup, answers: Answers) -> OpenGroup:
        referee = self.referees[group.ticket.game]
        rollouts, begun = list(group.rollouts), self._begun(group.ticket, group.start)
        pairs = [(request, one) for request, all_of in zip(group.requests, answers, strict=True) for one in all_of]
        for number, (request, completion) in zip(group.waiting, pairs, strict=True):
            state = request.prompt.states[-1]
            turn = referee.turn(state, request, completion, self.words.decode(completion.token_ids, begun))
            rollout = rollouts[number]
            rollouts[number] = Rollout((*rollout.turns, turn), over=turn.next_state.game().over)
        group = replace(group, rollouts=tuple(rollouts))
        if len(rollouts) < self.config.group_size and differ([rollout.total for rollout in rollouts]):
            return self._ask_the_rest(group)
        return self._ask(group)

    def _ask_the_rest(self, group: OpenGroup) -> OpenGroup:
        """The other answers of a group that has passed the screen: SPEED, arXiv 2506.09016, section 4."""
        there, size = len(group.rollouts), self.config.group_size
        rest = Request(group.requests[0].prompt, size - there, seed_of("answer", group.ticket.seed, 0, "rest"))
        rollouts = (*group.rollouts, *(Rollout(),) * (size - there))
        return replace(group, rollouts=rollouts, requests=(rest,), waiting=tuple(range(there, size)))

    def _ask(self, group: OpenGroup) -> OpenGroup:
        """The group with its next requests, one for each rollout that goes on."""
        waiting = tuple(
            number
            for number, rollout in enumerate(group.rollouts)
            if not rollout.over and len(rollout.turns) < self.config.turns
        )
        requests = []
        for number in waiting:
            turns = group.rollouts[number].turns
            kept = turns[len(turns) - min(self.config.window, len(turns)) :]
            history = [(turn.prompt.states[-1], turn.completion.token_ids) for turn in kept]
            prompt = self.words.prompt([*history, (turns[-1].next_state, None)])
            requests.append(Request(prompt, 1, seed_of("answer", group.ticket.seed, len(turns), number)))
        return replace(group, requests=tuple(requests), waiting=waiting)

    def finish(self, groups: Sequence[OpenGroup | Spoiled]) -> list[Group | Spoiled]:
        """The groups that groups with nothing left to ask have become."""
        for group in groups:
            assert not group.requests, f"group {group.ticket.group} still waits for {len(group.requests)} answers"
        return [
            group if isinstance(group, Spoiled) else Group(group.ticket, group.start, group.rollouts)
            for group in groups
        ]

    def canaries(self) -> list[tuple[Prompt, Ints]]:
        """What engines and learner are compared on, for each game: what `check_sight` asks, and an answer alone."""
        sequences = []
        for referee in self.referees.values():
            seed = seed_of("canary", referee.config.name)
            state = draw_state(referee.task, referee.config.states, seed, referee.reward)
            game = state.game()
            answer = self.words.ids(referee.codec.write(game.perception(), "", game.legal_actions()[0]))
            shown = self.words.prompt([(state, None)])
            looks = replace(state.task.perception, blank=1)
            blank = replace(shown, states=(State(replace(state.task, perception=looks), state.data),))
            sequences += [(shown, answer), (shown, answer), (blank, answer), (Prompt(answer[:1], ()), answer[1:])]
        return sequences
