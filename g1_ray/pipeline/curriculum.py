"""Where the next group starts: its game, the source of its state, and the state itself where it is one seen before.

    by weights       games by their ratio, sources by their weights, visited states each as likely
    by learnability  the same, and more where answers differ: games and sources by how often theirs did, and states
                     again at which they did a moment ago

What is learned from is where the outcome is open: of answers with two outcomes the gradient's size goes with p (1 - p)
(learnability: Tzannetos et al., arXiv 2304.12877; Rutherford et al., arXiv 2408.15099). `spread` is that for any number
of outcomes. What a group showed ages, as the policy goes on (prioritised level replay: Jiang et al., arXiv 2010.03934).

Plain code, no Ray. A draw depends on the run's seed, the group's number and on what was learned, nothing else; what is
learned is learned batch by batch, so with staleness 0 a run is the same each time.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from envs import State
from envs.rewards import reward_named
from g1_ray.config import STATE_SOURCES, GameConfig, RunConfig
from g1_ray.rollout.starts import is_open
from g1_ray.types import Group, Ticket

POOL = 1024
"""Visited states, and states to come back to, that are kept for each game."""
FLOOR = 0.1
"""What is added to a share of open outcomes, so that nothing is drawn from no more for ever."""
MEMORY = 32.0
"""Groups after which the mean over a source's groups has forgotten two thirds of those before."""
AGAIN = "again"
"""The source of states at which answers differed before."""


class Start(NamedTuple):
    """Where a group starts."""

    game: str
    """Name of the entry in the config's `games`."""
    source: str
    """One of `STATE_SOURCES`, or `AGAIN`."""
    state: State | None
    """None: the source draws one."""


def spread(totals: Sequence[float]) -> float:
    """How far the outcome is open: the chance that two of the returns, drawn with replacement, differ; 2 p (1 - p) for
    two outcomes."""
    counts = Counter(round(total, 5) for total in totals)
    return 1 - sum(count * count for count in counts.values()) / len(totals) ** 2


@dataclass
class Record:
    """What was seen of the groups of a source."""

    open: float = 0.5
    """Mean of their spread; the newer, the more it counts. At first as if half of all answers differed."""
    asked: int = 0
    """How many they were."""

    def see(self, spread: float) -> None:
        """Takes a group in."""
        self.asked += 1
        self.open += (spread - self.open) / min(self.asked + 1, MEMORY)


class Known:
    """A state that answers differed at."""

    def __init__(self, state: State, spread: float, version: int, number: int) -> None:
        self.state, self.spread, self.version = state, spread, version
        self.number = number
        """Of the last group that started here."""

    def chance(self, version: int, usual: float, half_life: float) -> float:
        """The spread to expect of a group now: what was seen, and by its age what is usual."""
        fresh = 0.5 ** ((version - self.version) / half_life)
        return fresh * self.spread + (1 - fresh) * usual


@dataclass(frozen=True)
class Lesson:
    """What there is to learn of a group about where to start."""

    ticket: Ticket
    start: State
    spread: float
    """How far its outcome was open."""
    end: State | None
    """A state that it led to, and that may be visited; None where there is none."""


def lesson_of(group: Group, game: GameConfig) -> Lesson:
    """Of a group that has turns."""
    its = spread([rollout.total for rollout in group.rollouts])
    return Lesson(group.ticket, group.start, its, _end_of(group, game))


def _end_of(group: Group, game: GameConfig) -> State | None:
    """One state that a group led to; the board that it began with, where the answer changed nothing."""
    ends = [rollout.turns[-1].next_state for rollout in group.rollouts if not rollout.over]
    if not ends:
        return None
    end = ends[group.ticket.seed % len(ends)]
    return end if not game.states.open_only or is_open(end.game(), reward_named(game.reward)) else None


class Curriculum:
    """What a run's groups are about."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.games = config, {game.name: game for game in config.games}
        self.by_learnability = config.curriculum.kind == "learnability"
        self.version = 0
        self._visited: dict[str, deque[State]] = {name: deque(maxlen=POOL) for name in self.games}
        self._known: dict[str, dict[bytes, Known]] = {name: {} for name in self.games}
        self._records = {(name, source): Record() for name in self.games for source in (*STATE_SOURCES, AGAIN)}

    def draw(self, number: int, rng: np.random.Generator) -> Start:
        """Where group `number` starts."""
        names = list(self.games)
        ratios = np.array([game.ratio for game in self.games.values()])
        if self.by_learnability:
            ratios *= [FLOOR + self._open(name) for name in names]
        game = self.games[names[int(rng.choice(len(names), p=ratios / ratios.sum()))]]
        start = self._again(game, number, rng) if self.by_learnability else None
        if start is None:
            source = self._source(game, rng)
            visited = self._visited[game.name]
            state = visited[int(rng.integers(len(visited)))] if source == "policy" else None
            return Start(game.name, source, state)
        return start

    def _open(self, game: str) -> float:
        """Mean spread of a game's groups, whatever their source."""
        return self._mean(game, (*STATE_SOURCES, AGAIN))

    def _usual(self, game: str) -> float:
        """Of those at states of which nothing was known."""
        return self._mean(game, STATE_SOURCES)

    def _mean(self, game: str, sources: Sequence[str]) -> float:
        its = [self._records[game, source] for source in sources]
        asked = np.array([min(record.asked, MEMORY) for record in its])
        return float(np.average([record.open for record in its], weights=asked)) if asked.any() else 0.5

    def _source(self, game: GameConfig, rng: np.random.Generator) -> str:
        weights = np.array([getattr(game.states, source) for source in STATE_SOURCES])
        if not self._visited[game.name]:
            weights[STATE_SOURCES.index("policy")] = 0  # falls to the others
        if self.by_learnability:
            weights *= [FLOOR + self._records[game.name, source].open for source in STATE_SOURCES]
        return STATE_SOURCES[int(rng.choice(len(STATE_SOURCES), p=weights / weights.sum()))]

    def _again(self, game: GameConfig, number: int, rng: np.random.Generator) -> Start | None:
        """A state to come back to; None where it is time for another, or no state is known to be better."""
        if rng.random() < self.config.curriculum.explore:
            return None
        usual = self._usual(game.name)
        free = [known for known in self._known[game.name].values() if known.number + self.config.capacity <= number]
        chances = np.array([known.chance(self.version, usual, self.config.curriculum.half_life) for known in free])
        better = np.flatnonzero(chances > usual)
        if not len(better):
            return None
        known = free[int(rng.choice(better, p=chances[better] / chances[better].sum()))]
        known.number = number
        return Start(game.name, AGAIN, known.state)

    def learn(self, lessons: Sequence[Lesson], version: int) -> None:
        """Learns of the groups that came since the last batch, whatever their order.

        Only here does what is drawn from change, so all of a step draw from one.
        """
        self.version = version
        for lesson in sorted(lessons, key=lambda lesson: lesson.ticket.group):
            ticket = lesson.ticket
            self._records[ticket.game, ticket.source].see(lesson.spread)
            if self.by_learnability:
                self._remember(lesson, version)
            if lesson.end is not None:
                self._visited[ticket.game].append(lesson.end)

    def _remember(self, lesson: Lesson, version: int) -> None:
        known, key, its = self._known[lesson.ticket.game], lesson.start.to_bytes(), lesson.spread
        before = known.pop(key, None)
        if before:
            its = (before.spread + its) / 2
        if its > FLOOR / 2:
            known[key] = Known(lesson.start, its, version, lesson.ticket.group)  # the newest last
        if len(known) > POOL:
            del known[next(iter(known))]

    def metrics(self) -> dict[str, float]:
        """Of each game, by source: mean spread, and share of all groups so far; how many states there are to come back
        to."""
        told: dict[str, float] = {}
        for name, known in self._known.items():
            its = {source: record for (game, source), record in self._records.items() if game == name and record.asked}
            asked = sum(record.asked for record in its.values())
            told |= {f"{name}/open_{source}": record.open for source, record in its.items()}
            told |= {f"{name}/share_{source}": record.asked / asked for source, record in its.items()}
            told |= {f"{name}/known": float(len(known))} if self.by_learnability else {}
        return told

    def state_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "version": self.version,
            "visited": {name: [state.to_bytes().hex() for state in states] for name, states in self._visited.items()},
            "known": {
                name: [[key.hex(), its.spread, its.version, its.number] for key, its in known.items()]
                for name, known in self._known.items()
            },
            "records": [[*key, its.open, its.asked] for key, its in self._records.items() if its.asked],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`; games that are no more are left out."""
        self.version = state["version"]
        for name, states in self._of_games(state["visited"]):
            self._visited[name].extend(State.from_bytes(bytes.fromhex(data)) for data in states)
        for name, known in self._of_games(state["known"]):
            for data, *its in known:
                key = bytes.fromhex(data)
                self._known[name][key] = Known(State.from_bytes(key), *its)
        for name, source, *its in state["records"]:
            if (name, source) in self._records:
                self._records[name, source] = Record(*its)

    def _of_games(self, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        return ((name, value) for name, value in values.items() if name in self.games)
