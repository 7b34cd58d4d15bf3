"""The reward debugger: why a state, an answer, a group of rollouts or a move of an evaluation earned what it earned.

Everything is told as plain text. Nothing is judged anew: moves are played on forks, answers are read and scored by the
same `Codec` and rewards that training uses, and what a run has on disk is set beside it.
"""

import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from envs import REWARDS, Answer, Codec, Outcome, RewardTable, State, Task
from envs.answers import MAX_BODY, Cause
from envs.codec import MAX_CHARS, ORDER, TAG, align, align_rows, blocks_of
from envs.core import Board, Game
from envs.env import board_text
from envs.lookahead import TERNARY, Worth
from envs.rewards import reward_named
from g1_ray.config import REWARD_PARTS, AlgorithmConfig, RewardConfig
from g1_ray.config_file import Section
from g1_ray.config_text import explain
from g1_ray.learner.samples import group_advantages
from g1_ray.rollout.judge import differ, judge
from g1_ray.runs.layouts import state_in
from g1_ray.tables import aligned

Kind = TypeVar("Kind", bound=Section)
SHOWN = 800
"""Characters of an answer that are printed."""
CAUSES: dict[str, str] = {
    Cause.NO_ANSWER: "there is no <answer>...</answer> with anything in it",
    Cause.SEVERAL_ANSWERS: "more than one answer is given, and none of them is taken for the right one",
    Cause.OVER_LONG: f"nobody reads on after {MAX_BODY} characters of a move, or {MAX_CHARS} of an answer",
    Cause.MALFORMED: "that is not written like a move",
    Cause.OUT_OF_BOARD: "it names a place, or the number of a choice, that there is not",
    Cause.SAME_CELL: "it names one cell twice, and a move takes two",
}
"""Why an answer is no move, in words."""


# A state


def play_moves(task: Task, seed: int, moves: str = "", worth: Worth = TERNARY) -> tuple[State, str]:
    """The state that moves lead to from a seed's board, and a table of what each came to ('' for none).

    Moves are `up, left` or `(0, 1) (0, 2); (1, 1) (2, 1)`; an illegal one counts, as in training. Raises `ValueError`
    on what is no move, or comes after the end.
    """
    game = State.start(task, seed).game()
    rows: list[tuple[str, ...]] = [("played", "legal", *_heads(worth))]
    bodies = re.split(r"[;,](?![^(\[]*[)\]])", moves) if moves.strip() else []  # no comma within brackets
    for number, body in enumerate(bodies, 1):
        action = game.actions.read(body)
        if isinstance(action, Cause):
            raise ValueError(
                f"--moves: move {number}, {body.strip()!r}, is no move ({action}); expected {game.actions.ask}"
            )
        if game.over:
            raise ValueError(f"--moves: the episode is over after {number - 1} moves; leave out the rest")
        table = worth.table(game)
        outcome = game.step(action)
        cells = _cells(outcome, worth, *_earns(table, action, outcome, worth))
        rows.append((game.actions.write(action), "yes" if outcome.legal else "no", *cells))
    return State.of(task, game), aligned(rows) if bodies else ""


def explain_state(state: State, worth: Worth = TERNARY) -> str:
    """The board, and every legal move with what it does and earns; regrets are in what it is `worth`."""
    game = state.game()
    head = f"{state.task.name}: move {game.moves}, score {game.score:g}"
    if game.over:
        time = game.moves == game.options.horizon
        ended = "won" if game.won() else "time is up" if time else "no legal move is left"
        return f"{head}\n\n{board_text(state.task, game)}\n\nthe episode is over: {ended}"
    table = worth.table(game)
    rows = [
        (game.actions.write(action), *_cells(outcome, worth, *_earns(table, action, outcome, worth)))
        for action, outcome in zip(table.actions, table.outcomes, strict=True)
    ]
    best = game.actions.write(game.fork().oracle())
    legal = f"{len(table.actions)} legal moves of {game.actions.num}; the oracle plays {best}"
    return f"{head}\n\n{board_text(state.task, game)}\n\n{legal}\n{aligned([('move', *_heads(worth)), *rows])}"


def _earns(table: RewardTable, action: int | None, outcome: Outcome, worth: Worth) -> tuple[float, float]:
    """What a move earns, and its regret. One that is not legal leads nowhere: it earns its own reward."""
    looked_up = outcome.legal and action is not None
    earned = float(table.rewards[table.actions.index(action)]) if looked_up else reward_named(worth.reward)(outcome)
    return earned, float(table.rewards.max()) - earned


def _heads(worth: Worth) -> tuple[str, ...]:
    return "gain", "tiles", "ends", *REWARDS, *([str(worth)] if worth.ahead else []), f"regret ({worth})"


def _cells(outcome: Outcome, worth: Worth, earned: float, regret: float) -> tuple[str, ...]:
    """What a move does and earns, under `_heads`."""
    own = [f"{function(outcome):g}" for function in REWARDS.values()]
    ahead = [f"{earned:.4g}"] if worth.ahead else []
    return f"{outcome.gain:g}", str(outcome.cleared), _end(outcome), *own, *ahead, f"{regret:.6g}"


def _end(outcome: Outcome) -> str:
    if outcome.success:
        return "won"
    return "stuck" if outcome.terminated else "time" if outcome.truncated else ""


# An answer


def explain_answer(
    state: State, text: str, worth: Worth = TERNARY, weights: RewardConfig | None = None, thinks_first: bool = False
) -> str:
    """What the parser made of an answer to a state, and what came of it. With a run's weights also the total.

    `thinks_first`: as the `Codec` has it.
    """
    game, codec = state.game(), Codec(state.task, thinks_first)
    if game.over:
        raise ValueError(
            f"the episode is over after {game.moves} moves: there is nothing to answer; give fewer --moves"
        )
    table = worth.table(game)
    values = dict(zip(table.actions, table.rewards.tolist(), strict=True))
    judged = judge(codec, game.fork(), text, reward_named(worth.reward), worth=values)
    answer, seen, outcome = judged.answer, judged.seen, judged.outcome
    blocks, _, open_answer = blocks_of(text) if len(text) <= MAX_CHARS else ([], "", False)
    found = ", ".join(name for name, _ in blocks) or "none"
    faults = faults_of_form(text, answer, codec.orders)
    told = f"{seen.right} of {game.rows * game.cols} cells right, share {seen.share:.3g}"
    lines = [
        f"blocks      {found}",
        f"move        {_move_read(game, answer, open_answer)}",
        f"form        {'well formed' if not faults else 'not well formed: ' + '; '.join(faults)}",
        f"perception  {'the board is told right' if seen.exact else told}",
        *(f"            {fault}" for fault in faults_of_board(codec, answer.perception, game.perception())),
        *_earned(table, answer.action, outcome, worth),
    ]
    if weights:
        parts = judged.parts.items()
        terms = " + ".join(f"{getattr(weights, name):g} x {value:.3g} ({name})" for name, value in parts)
        lines.append(f"reward      {terms} = {weights.total(judged.parts):.4g}")
    else:
        lines.append("parts       " + ", ".join(f"{name} {value:.3g}" for name, value in judged.parts.items()))
    return "\n".join(lines)


def _move_read(game: Game, answer: Answer, open_answer: bool) -> str:
    if answer.action is not None:
        return f"{(answer.body or '').strip()!r} is read as {game.actions.write(answer.action)}"
    why = CAUSES[answer.cause or ""]
    if answer.cause == Cause.MALFORMED and open_answer:
        why = "an <answer> is opened and never closed"
    elif answer.cause == Cause.MALFORMED and TAG.search(answer.body or ""):
        why = "there is another tag in it"
    given = "" if answer.body is None else f"{_short(answer.body.strip(), 80)!r} "
    return f"{given}is no move: {answer.cause}; {why}; expected {game.actions.ask}"


def _earned(table: RewardTable, action: int | None, outcome: Outcome, worth: Worth) -> list[str]:
    """What became of a move, and what it earns by every reward."""
    kind = "unreadable, a move lost" if action is None else "legal" if outcome.legal else "illegal, nothing changes"
    end = f"; the episode ends ({_end(outcome)})" if _end(outcome) else ""
    earned, regret = _earns(table, action, outcome, worth)
    own = [f"{name} {function(outcome):g}" for name, function in REWARDS.items()]
    rewards = ", ".join([*own, *([f"{worth} {earned:.4g}"] if worth.ahead else [])])
    return [
        f"outcome     {kind}; gain {outcome.gain:g}, {outcome.cleared} tiles cleared{end}",
        f"rewards     {rewards}; regret {regret:.6g} ({worth})",
    ]


def faults_of_form(text: str, answer: Answer, orders: Sequence[list[str]] = (ORDER,)) -> list[str]:
    """The rules of form that an answer breaks: none where it is `well_formed`."""
    faults = [] if answer.cause is None else [f"it gives no move ({answer.cause})"]
    if len(text) > MAX_CHARS:
        return faults
    blocks, outside, _ = blocks_of(text)
    names = [name for name, _ in blocks]
    for name in ORDER:
        if names.count(name) != 1:
            faults.append(f"<{name}> is missing" if name not in names else f"{names.count(name)} <{name}> blocks")
    if sorted(names) == sorted(ORDER) and names not in orders:
        faults.append(f"the order is {', '.join(names)}; expected {', '.join(ORDER)}")
    faults += [f"<{name}> is empty" for name, body in blocks if not body.strip()]
    if outside.strip():
        faults.append(f"text around the blocks: {_short(outside.strip(), 60)!r}")
    return faults


def faults_of_board(codec: Codec, text: str | None, board: Board) -> list[str]:
    """The cells of a described board that are wrong, missing or too many, as `Codec.score_perception` counts them."""
    truth = [[codec.names[kind].lower() for kind in row] for row in board.tolist()]
    told = codec.table((text or "")[: 1000 + 4 * len(codec.describe(board))])
    faults, row = [], -1
    for true_row, said in align_rows(truth, told):
        row += bool(true_row)
        if not true_row:
            faults.append(f"{f'after row {row}' if row >= 0 else 'at the top'}: {len(said)} cells of a row too many")
        elif not said:
            faults.append(f"row {row}: missing, {len(true_row)} cells")
        elif true_row != said:
            faults.append(f"row {row}: {'; '.join(_faults_of_row(true_row, said))}")
    return faults


def _faults_of_row(truth: list[str], told: list[str]) -> Iterator[str]:
    kept = told[: 4 * len(truth)]
    pairs: Iterable[tuple[str | None, str | None]] = zip(truth, told, strict=False)
    if len(told) != len(truth):
        pairs = align(truth, kept, operator.ne)
    col = -1
    for true, said in pairs:
        col += true is not None
        if true is None:
            yield f"{f'after column {col}' if col >= 0 else 'at its start'} {said!r} is too many"
        elif said is None:
            yield f"column {col} is missing, it is {true!r}"
        elif said != true:
            yield f"column {col} told {said!r}, it is {true!r}"
    if len(told) > len(kept):
        yield f"at its end {len(told) - len(kept)} cells too many"


# A group of a run


def explain_group(folder: Path, number: int) -> str:
    """A group among a run's trajectories: returns, advantages, and what each rollout's answers came to.

    Raises `ValueError` where the folder is no run's, or has no such group.
    """
    from g1_ray.runs.reading import config_in, rows_of_group, worth_in
    from g1_ray.runs.run_folder import RunFolder

    fates = [fate for fate in RunFolder(folder).ledger() if fate.group == number]
    rows = rows_of_group(folder, number, "".join(f"it was {fate.fate}: {fate.reason}" for fate in fates))
    settings = config_in(folder)
    weights = _section(RewardConfig, settings.get("reward"), folder)
    algorithm = _section(AlgorithmConfig, settings.get("algorithm"), folder)
    worth = worth_in(folder, rows[0]["game"])
    rollouts = [list(its) for _, its in itertools.groupby(rows, lambda row: row["rollout"])]
    versions = sorted({version for row in rows for version in row["versions"]})
    fate = "".join(f"; {fate.fate} {fate.reason}".rstrip() + f", staleness {fate.staleness}" for fate in fates)
    start = state_in(rollouts[0][0])
    return "\n\n".join(
        [
            f"group {number} of {folder}: {rows[0]['game']}, {len(rollouts)} rollouts, "
            f"policy version {', '.join(map(str, versions))}{fate}",
            explain_state(start, worth),
            _returns(rollouts, weights, algorithm),
            *_answers(rollouts, start, worth, weights),
        ]
    )


def _section(kind: type[Kind], values: object, folder: Path) -> Kind:
    """A table of a run's config. Raises `ValueError` that names the file."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(explain(error, kind, str(folder / "config.json"))) from None


def _returns(rollouts: Sequence[Sequence[dict[str, Any]]], weights: RewardConfig, algorithm: AlgorithmConfig) -> str:
    """The table of the rollouts, and what their returns make of the group."""
    totals = np.array([sum(row["reward"] for row in rows) for rows in rollouts], np.float64)
    standard, centred = (group_advantages(totals, divide_by_std=divide).tolist() for divide in (True, False))
    table: list[tuple[str, ...]] = [("rollout", "tokens", *REWARD_PARTS, "return", "GRPO", "Dr. GRPO", "moves")]
    odd = []
    for i, rows in enumerate(rollouts):
        parts = [f"{sum(row[f'reward_{part}'] or 0.0 for row in rows):.3g}" for part in REWARD_PARTS]
        tokens = str(sum(len(row["completion_ids"]) for row in rows))
        moves = ", ".join(row["action_text"] or f"({row['cause']})" for row in rows)
        table.append((str(i), tokens, *parts, f"{totals[i]:.4g}", f"{standard[i]:.4g}", f"{centred[i]:.4g}", moves))
        odd += [_odd(i, row, weights) for row in rows]
    terms = " + ".join(f"{getattr(weights, part):g} x {part}" for part in REWARD_PARTS)
    lines = [
        aligned(table),
        f"return = {terms}, summed over the turns",
        f"mean {totals.mean():.4g}, standard deviation {totals.std(ddof=1):.4g}; advantages: GRPO (return - mean) / "
        f"(deviation + 1e-4), Dr. GRPO return - mean; this run uses {algorithm.advantage}",
    ]
    if differ(totals.tolist()):
        lines.append("not flat: the returns differ, so there is something to learn")
    else:
        left = "left out of training" if algorithm.skip_flat_groups else "trained on all the same, with advantages of 0"
        setting = f"algorithm.skip_flat_groups = {str(algorithm.skip_flat_groups).lower()}"
        lines.append(f"flat: all returns are the same, so no answer is better than another; {left} ({setting})")
    return "\n".join([*lines, *(line for line in odd if line)])


def _odd(rollout: int, row: dict[str, Any], weights: RewardConfig) -> str:
    """Says so where a stored reward is not what the weights make of its parts."""
    total = weights.total({part: row[f"reward_{part}"] or 0.0 for part in REWARD_PARTS})
    if abs(total - row["reward"]) <= 1e-6:
        return ""
    return (
        f"rollout {rollout}, turn {row['turn']}: the stored reward is {row['reward']:g}, but with the weights of "
        f"config.json its parts make {total:g}"
    )


def _answers(
    rollouts: Sequence[Sequence[dict[str, Any]]], start: State, worth: Worth, weights: RewardConfig
) -> Iterator[str]:
    """Every different answer once, with the rollouts that gave it."""
    given: dict[tuple[bytes, str], list[dict[str, Any]]] = {}
    for rows in rollouts:
        for row in rows:
            given.setdefault((row["state"], row["text"]), []).append(row)
    for (_, text), rows in given.items():
        state = state_in(rows[0])
        who = ", ".join(f"{row['rollout']}" + (f" turn {row['turn']}" if row["turn"] else "") for row in rows)
        cut = "; cut off at its longest length" if rows[0]["finish_reason"] == "length" else ""
        board = [] if state == start else [explain_state(state, worth)]
        head = f"--- rollout{'s' if len(rows) > 1 else ''} {who}{cut}"
        opened = rows[0]["reward_format"] == 1  # the run knew whether the chat template opens the thinking
        yield "\n".join([head, *board, _quoted(text), explain_answer(state, text, worth, weights, opened)])


# A move of an evaluation


def explain_move(folder: Path, game: str, player: str, seed: int, move: int) -> str:
    """A move of an evaluation, or of the evaluation in a run's folder, as it is stored and as it comes out now.

    Raises `ValueError` where there is none.
    """
    from g1_ray.runs.reading import row_of_move, worth_in

    row, worth = row_of_move(folder, game, player, seed, move), replace(worth_in(folder, game), ahead=0)
    state = state_in(row)
    stored = (
        f"stored      {row['action_text'] or row['cause']}; gain {row['gain']:g}, game reward {row['reward_game']:g}, "
        f"regret {row['regret']:g}, {row['tokens']} tokens in {row['seconds']:.3g} s"
    )
    said = [_quoted(row["text"]), explain_answer(state, row["text"], worth)] if row["text"] else []
    if not said:
        game_then = state.game()
        outcome = game_then.fork().step(row["action"])
        said = ["the player gives no answer in words", *_earned(worth.table(game_then), row["action"], outcome, worth)]
    head = f"{game}, {player}: seed {seed}, board {row['board']}, move {move}"
    return "\n\n".join([head, explain_state(state, worth), "\n".join([*said, stored])])


def _quoted(text: str) -> str:
    return "\n".join(f"  | {line}" for line in _short(text, SHOWN).splitlines())


def _short(text: str, most: int) -> str:
    """The text, or its start and its end."""
    return text if len(text) <= most else f"{text[: most // 2]} [...] {text[-most // 2 :]}"
