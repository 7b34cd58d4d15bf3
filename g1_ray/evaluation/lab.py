"""The perception-reasoning lab: the same states asked about under interventions, to see which of the two fails.

    as is                 the picture, as in play
    true perception       the answer is begun with the true board: what is left is reasoning
    k cells wrong         begun with a board of which k cells are wrong: what misreading costs
    no perception         begun with the thinking: whether describing the board helps
    blank image           nothing in the picture: what is known without looking
    shuffled tiles        the same tiles in other places: whether boards are read, or guessed from what is usual

P_acc and R_acc are the paper's (G1, arXiv 2505.13426, section 4): boards described without an error, and of these the
moves that score. With the true perception P_acc is 1, and R_acc is the share of all moves that score.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from envs import Codec, State, Task
from envs.rewards import ternary
from envs.teacher import Oracle
from g1_ray.config import StatesConfig
from g1_ray.evaluation.confusion import misread
from g1_ray.evaluation.play import Generate
from g1_ray.files import part_of, read_json, write_json
from g1_ray.rollout.begun import THINK, described
from g1_ray.rollout.judge import accuracies, judge, share
from g1_ray.rollout.starts import draw
from g1_ray.seeds import seed_of
from g1_ray.types import Prompt, Request, Sampling

if TYPE_CHECKING:
    from g1_ray.models.chat import Chat

AS_IS, TRUE, NO_PERCEPTION = "as is", "true perception", "no perception"
BLANK, SHUFFLED = "blank image", "shuffled tiles"
WRONG_CELLS = (1, 3)
"""Numbers of cells that are told wrong."""
INTERVENTIONS = (AS_IS, TRUE, *(f"{k} cell{'s' * (k > 1)} wrong" for k in WRONG_CELLS), NO_PERCEPTION, BLANK, SHUFFLED)


@dataclass(frozen=True)
class Case:
    """A state under an intervention."""

    state: State
    """What is shown, and played on."""
    truth: State
    """What the description is compared with."""
    begun: str
    """How the answer begins: the model goes on from there."""


@dataclass(frozen=True)
class Finding:
    """What answers under one intervention came to: shares of the states."""

    p_acc: float
    """NaN where no description was asked for."""
    cell_acc: float
    r_acc: float
    """Of the boards that were described without an error; NaN where there is none."""
    reward_rate: float
    """Moves that score."""
    legal: float
    unreadable: float


COLUMNS = {
    "p_acc": "P_acc",
    "cell_acc": "cells right",
    "r_acc": "R_acc",
    "reward_rate": "moves that score",
    "legal": "legal moves",
    "unreadable": "unreadable",
}
"""Field of a finding -> what tables call it, in their order."""


@dataclass(frozen=True)
class Lab:
    """What the lab found of a player on a game."""

    game: str
    player: str
    states: int
    names: tuple[str, ...]
    """Of the kinds; 0 is the empty cell."""
    cells: list[list[float]]
    """[rows, cols] share of the states in which the cell was described right, as is."""
    confusion: list[list[int]]
    """[kinds + 1, kinds + 2] cells by true kind and told kind, as is; the last column: missing or unknown."""
    interventions: dict[str, Finding]

    def as_json(self) -> dict[str, Any]:
        """For a JSON file, where NaN becomes null."""
        values = dataclasses.asdict(self)
        values["interventions"] = {
            name: {key: None if value != value else value for key, value in finding.items()}
            for name, finding in values["interventions"].items()
        }
        return values


def case_of(state: State, intervention: str, seed: int) -> Case:
    """The state under an intervention. Same seed, same case. Raises `ValueError` for an unknown intervention."""
    rng = np.random.default_rng(seed_of("lab", intervention, seed))
    codec, board = Codec(state.task), state.game().perception()
    match intervention:
        case "as is":
            return Case(state, state, "")
        case "true perception":
            return Case(state, state, described(codec, board, 0, rng))
        case "no perception":
            return Case(state, state, THINK)
        case "blank image":
            blank = dataclasses.replace(state.task.perception, blank=1)
            return Case(State(dataclasses.replace(state.task, perception=blank), state.data), state, "")
        case "shuffled tiles":
            shown = shuffled(state, rng)
            return Case(shown, shown, "")
    if intervention not in INTERVENTIONS:
        raise ValueError(f"unknown intervention {intervention!r}; known: {', '.join(INTERVENTIONS)}")
    return Case(state, state, described(codec, board, int(intervention.split()[0]), rng))


def shuffled(state: State, rng: np.random.Generator) -> State:
    """The same tiles in other places: cells exchanged at random, as far as the rules of the game let boards be."""
    game = state.game()
    board = game.perception()
    head = state.data[: len(state.data) - board.size]
    for _ in range(4 * board.size):
        a, b = rng.integers(board.size, size=2).tolist()
        trial = board.copy()
        trial.flat[a], trial.flat[b] = board.flat[b], board.flat[a]
        try:
            game.restore(head + trial.tobytes())
        except ValueError:  # no board that can come up: a match that stands, say
            continue
        if not game.over:
            board = trial
    return State(state.task, head + board.tobytes())


async def experiment(
    game: str,
    player: str,
    states: Sequence[State],
    chat: "Chat",
    generate: Generate,
    sampling: Sampling,
    interventions: Sequence[str] = INTERVENTIONS,
) -> Lab:
    """Asks a model about states of one task under interventions, the first of which is 'as is'."""
    task = states[0].task
    codec = Codec(task)
    findings, texts = {}, list[str]()
    for name in interventions:
        cases = [case_of(state, name, i) for i, state in enumerate(states)]
        told, longest = await _ask(cases, chat, generate, sampling, seed_of(game, name))
        findings[name] = _finding(codec, cases, told, described=name != NO_PERCEPTION)
        if name == AS_IS:  # a model that is led astray may find no end
            texts, sampling = told, dataclasses.replace(sampling, max_tokens=min(sampling.max_tokens, 2 * longest + 64))
    counts, right = misread(states, texts)
    return Lab(
        game=game,
        player=player,
        states=len(states),
        names=tuple(task.renderer.names),
        cells=right.tolist(),
        confusion=counts.tolist(),
        interventions=findings,
    )


async def _ask(
    cases: Sequence[Case], chat: "Chat", generate: Generate, sampling: Sampling, seed: int
) -> tuple[list[str], int]:
    """The whole answers, what they were begun with included, and the tokens of the longest."""
    requests = []
    for number, case in enumerate(cases):
        prompt = chat.prompt([(case.state, None)])
        ids = np.concatenate([prompt.token_ids, chat.ids(case.begun)]) if case.begun else prompt.token_ids
        requests.append(Request(Prompt(ids, prompt.states), 1, seed_of("lab answer", seed, number)))
    answers = await generate(requests, sampling)
    texts = [chat.decode(answer.token_ids, case.begun) for case, (answer,) in zip(cases, answers, strict=True)]
    return texts, max(len(answer.token_ids) for (answer,) in answers)


def _finding(codec: Codec, cases: Sequence[Case], texts: Sequence[str], described: bool) -> Finding:
    judged = [
        judge(codec, case.state.game(), text, ternary, case.truth.game().perception())
        for case, text in zip(cases, texts, strict=True)
    ]
    scores = [its.outcome.gain > 0 for its in judged]
    nan = float("nan")
    p_acc, r_acc = accuracies([its.seen.exact for its in judged], scores) if described else (nan, nan)
    return Finding(
        p_acc=p_acc,
        cell_acc=float(np.mean([its.seen.share for its in judged])) if described else nan,
        r_acc=r_acc,
        reward_rate=share(scores),
        legal=share([its.outcome.legal for its in judged]),
        unreadable=share([its.answer.action is None for its in judged]),
    )


def lab_metrics(lab: Lab) -> dict[str, float]:
    """What curves are drawn of: <game>/lab_p_acc, lab_r_acc, lab_reward_rate and lab_reward_rate_true_perception.

    The paper's claim is that the first two raise each other; the last says what reasoning alone has learned.
    """
    as_is = lab.interventions[AS_IS]
    values = {"p_acc": as_is.p_acc, "r_acc": as_is.r_acc, "reward_rate": as_is.reward_rate}
    values["reward_rate_true_perception"] = lab.interventions[TRUE].reward_rate
    return {f"{lab.game}/lab_{name}": value for name, value in values.items()}


def lab_states(task: Task, num: int) -> list[State]:
    """States for the lab, the same every time: where chance and an erring oracle lead, starts among them."""
    mix, policy = StatesConfig(fresh=1, random_walk=1, policy=1), Oracle(task)
    return [draw(task, mix, seed_of("lab state", i), ternary, policy).state for i in range(num)]


def lab_table(labs: Sequence[Lab]) -> list[tuple[str, ...]]:
    """Rows of text, the header first."""
    rows: list[tuple[str, ...]] = [("game", "player", "intervention", *COLUMNS.values())]
    for lab in labs:
        for name, finding in lab.interventions.items():
            values = (f"{value:.3f}" if value == value else "" for value in map(vars(finding).get, COLUMNS))
            rows.append((lab.game, lab.player, name, *values))
    return rows


def write_labs(folder: Path, labs: Sequence[Lab]) -> None:
    """Writes lab.json; what other players and games left there stays."""
    path = part_of(folder, "lab.json")
    before: Mapping[str, Any] = read_json(path, dict[str, Any]) if path.exists() else {}
    values = {**before, **{f"{lab.game}, {lab.player}": lab.as_json() for lab in labs}}
    write_json(path, values, indent=1)
