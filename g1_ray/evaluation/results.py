"""What runs came to: means with intervals, paired differences on equal seeds, and the tables of them."""

import dataclasses
import json
import math
import tomllib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from g1_ray.evaluation.play import Run
from g1_ray.files import write_json, write_text
from g1_ray.rollout.judge import accuracies, share
from g1_ray.tables import markdown

PAPER_SCORES: dict[str, dict[str, str]] = tomllib.loads((Path(__file__).parent / "paper.toml").read_text())
"""Game -> player -> score: what the paper publishes."""


class Mean(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = _digits(self.mean)
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def _digits(mean: float) -> int:
    return 0 if mean >= 100 else 1 if mean >= 10 else 2


def _number(mean: float) -> str:
    return f"{mean:.{_digits(mean)}f}"


def bootstrap_mean(values: Sequence[float], resamples: int = 10_000) -> Mean:
    """The mean of independent runs with its percentile bootstrap interval (Efron 1979). Same values, same interval."""
    data = np.asarray(values, np.float64)
    if not len(data):
        raise ValueError("no values to take the mean of")
    rng = np.random.default_rng(0)
    means = np.concatenate(
        [data[rng.integers(0, len(data), (500, len(data)))].mean(1) for _ in range(-(-resamples // 500))]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return Mean(float(data.mean()), float(low), float(high))


def difference_of(one: Mean, other: Mean) -> Mean:
    """`one` less `other`, of independent runs, with the interval that follows from theirs (MOVER: Zou and Donner 2008,
    equation 6). On equal seeds, whose scores go together, it is wider than it need be."""
    mean = one.mean - other.mean
    down = math.hypot(one.mean - one.low, other.high - other.mean)
    up = math.hypot(one.high - one.mean, other.mean - other.low)
    return Mean(mean, mean - down, mean + up)


@dataclass(frozen=True)
class Result:
    """What a player's runs on a game came to: means over runs have 95 % bootstrap intervals, means over moves none."""

    game: str
    player: str
    runs: int
    score: Mean
    scoring: Mean
    """Of the moves, in %."""
    legal: Mean
    """Of the moves, in %."""
    regret: Mean
    """Of a move: what the best legal move earns less what it earned, in the game's reward."""
    boards: int
    won: int
    """Of the boards."""
    p_acc: float
    """Share of boards described without an error; NaN for players that describe none, like `cell_acc` and `r_acc`."""
    cell_acc: float
    """Share of cells described right."""
    r_acc: float
    """Share of moves that score, of those whose board was described without an error (the paper's R_acc)."""
    unreadable: float
    """Share of answers that could not be read."""
    causes: Mapping[str, float]
    """Share of the answers by why they could not be read."""
    prompt_tokens: float
    """A move; NaN, as `tokens` and `cost`, where an endpoint tells none."""
    tokens: float
    """Of an answer."""
    seconds: float
    """From asking to the answer."""
    cost: float
    """Of all runs, in the currency of the player's prices."""
    difference: Mean | None = None
    """Of the score from that of the reference player on the same seeds."""


class Stopped(NamedTuple):
    """The line of a player that gave no more replies on a game."""

    game: str
    player: str
    cause: str
    """E.g. "content_filter"."""


def result_of(
    game: str, player: str, runs: Sequence[Run], reference: Sequence[Run] = (), prices: tuple[float, float] = (0, 0)
) -> Result:
    """The line of a table. `prices` are those of a million tokens of prompts and of answers."""
    moves = [move for run in runs for move in run.moves]
    described = [move for move in moves if move.perception_exact is not None]
    exact = [bool(move.perception_exact) for move in described]
    p_acc, r_acc = accuracies(exact, [move.gain > 0 for move in described])
    causes = Counter(move.cause for move in moves if move.cause)
    asked, told = (_mean([getattr(move, name) for move in moves]) for name in ("prompt_tokens", "tokens"))
    theirs = {run.seed: run.score for run in reference}
    pairs = [run.score - theirs[run.seed] for run in runs if run.seed in theirs]
    return Result(
        game=game,
        player=player,
        runs=len(runs),
        score=bootstrap_mean([run.score for run in runs]),
        scoring=bootstrap_mean([100 * run.scoring for run in runs]),
        legal=bootstrap_mean([100 * run.legal for run in runs]),
        regret=bootstrap_mean([float(np.mean([move.regret for move in run.moves])) for run in runs]),
        boards=sum(run.boards for run in runs),
        won=sum(run.successes for run in runs),
        p_acc=p_acc,
        cell_acc=float(np.mean([move.perception_share for move in described])) if described else float("nan"),
        r_acc=r_acc,
        unreadable=share([bool(move.cause) for move in moves]),
        causes={cause: count / len(moves) for cause, count in causes.most_common()},
        prompt_tokens=asked,
        tokens=told,
        seconds=sum(move.seconds for move in moves) / len(moves),
        cost=len(moves) * (asked * prices[0] + told * prices[1]) / 1e6 if any(prices) else 0.0,
        difference=bootstrap_mean(pairs) if pairs else None,
    )


def _mean(counts: Sequence[int | None]) -> float:
    """Of those that are told."""
    told = [count for count in counts if count is not None]
    return float(np.mean(told)) if told else float("nan")


DIGITS = {"P_acc": 3, "cells right": 3, "R_acc": 3, "tokens": 1, "seconds a move": 2, "cost": 4}
"""Of the columns whose cells are plain numbers."""


def cells_of(line: Mapping[str, Any], reference: str = "") -> dict[str, Any]:
    """A line of results.json as every table shows it: name of a column -> text, number, [mean, low, high] or None.

    `reference`: the player whose scores the differences are from. Files of an earlier day have fewer entries.
    """
    causes, tokens = line.get("causes"), line.get("tokens")
    most = f", most {next(iter(causes))}" if causes else ""
    return {
        "game": line["game"],
        "player": line["player"],
        "score": line.get("score"),
        "moves that score, %": line.get("scoring"),
        "legal moves, %": line.get("legal"),
        "boards won": f"{line['won']} of {line['boards']}" if "won" in line else None,
        "regret a move": line.get("regret"),
        f"score less {reference}'s": line.get("difference"),
        "P_acc": line.get("p_acc"),
        "cells right": line.get("cell_acc"),
        "R_acc": line.get("r_acc"),
        "unreadable": f"{line['unreadable']:.3f}{most}" if tokens or causes else None,
        "tokens": tokens or None,
        "seconds a move": line.get("seconds") or None,
        "cost": line.get("cost") or None,
    }


def reference_in(lines: Sequence[Mapping[str, Any]]) -> str:
    """The player whom the scores of a results.json were compared with; '' where they were not."""
    alone = {line["player"] for line in lines if not line.get("difference")}
    return alone.pop() if len(alone) == 1 and any(line.get("difference") for line in lines) else ""


def results_table(
    results: Sequence[Result | Stopped], reference: str = "", published: Collection[str] = ()
) -> list[tuple[str, ...]]:
    """Results as rows of text, the header first; columns without anything in them are left out.

    What the paper gives for the games `published` stands below their results, and is marked.
    """
    rows = []
    for i, result in enumerate(results):
        if isinstance(result, Stopped):
            cells = {"game": result.game, "player": result.player, "score": f"stopped: {result.cause}"}
        else:
            cells = cells_of(vars(result), reference)
        rows.append({name: _text(value, DIGITS.get(name, 0)) for name, value in cells.items()})
        if result.game in published and (i + 1 == len(results) or results[i + 1].game != result.game):
            for name, told in PAPER_SCORES.get(result.game, {}).items():
                rows.append({"game": result.game, "player": f"{name} (published)", "score": told})
    known = dict.fromkeys(column for row in rows for column in row)  # in the order of their first row
    columns = [column for column in known if any(row.get(column) for row in rows)]
    return [tuple(columns), *(tuple(row.get(column, "") for column in columns) for row in rows)]


def _text(value: Any, digits: int) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def verdict(results: Sequence[Mapping[str, Any]], trained: str, before: str) -> list[str]:
    """What the scores say of a model and of the one that it was trained from: a line for each game and way of asking.

    `results` are lines of results.json (`as_json`); `trained` and `before` are the names of the two in them, with or
    without the way that they were asked: "G1" is "G1", "G1, T=1" and "G1, greedy". A line is e.g.
    "2048, greedy: G1 is better than cold start by 100 [41, 161]: 724 after 624". Where the interval of the difference
    has 0 in it the two are "level, no difference that 30 runs can tell". None where one of them did not play. A player
    that is not asked, as "random-legal", has but one way.
    """
    scores = {(line["game"], line["player"]): (Mean(*line["score"]), line["runs"]) for line in results}
    lines = []
    for (game, player), (now, runs) in scores.items():
        way = player.removeprefix(trained)
        past, _ = scores.get((game, before + way)) or scores.get((game, before)) or (None, 0)
        if past is None or not player.startswith(trained) or not (not way or way.startswith(", ")):
            continue
        where = f"{game}{way}: {trained}"
        means = f"{_number(now.mean)} after {_number(past.mean)}"
        if (gain := difference_of(now, past)).low > 0:
            lines.append(f"{where} is better than {before} by {gain}: {means}")
        elif (loss := difference_of(past, now)).low > 0:
            lines.append(f"{where} is worse than {before} by {loss}: {means}")
        else:
            lines.append(f"{where} and {before} are level, no difference that {runs} runs can tell: {means}")
    return lines


def write_results(
    folder: Path, results: Sequence[Result], rows: Sequence[Sequence[str]], below: Sequence[str] = ()
) -> None:
    """Writes table.md, with lines below it, results.json and results.parquet."""
    import pyarrow as pa

    from g1_ray.runs.parquet import write_tables

    write_text(folder / "table.md", markdown(rows) + "".join(f"\n{line}\n" for line in below))
    write_json(folder / "results.json", as_json(results), indent=1)
    flat = [_flat(result) for result in results]
    names = {name: None for line in flat for name in line}
    table = pa.table({name: [line.get(name) for line in flat] for name in names})
    write_tables(folder / "results.parquet", table.schema, [table])


def as_json(results: Sequence[Result]) -> list[dict[str, object]]:
    """Results for a JSON file, where NaN becomes null."""
    lines = [dataclasses.asdict(result) for result in results]
    return [{name: None if value != value else value for name, value in line.items()} for line in lines]


def _flat(result: Result) -> dict[str, object]:
    """One value a column: `score`, `score_low`, `score_high`."""
    line: dict[str, object] = {}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, Mean):
            line |= {field.name: value.mean, f"{field.name}_low": value.low, f"{field.name}_high": value.high}
        elif isinstance(value, Mapping):
            line[field.name] = json.dumps(value)
        elif value is not None:
            line[field.name] = value
    return line
