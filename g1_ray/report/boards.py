"""A game on the paper's own board: everybody's scores beside those that the paper publishes."""

import json
from pathlib import Path

from g1_ray.evaluation.moves import file_name, read_runs
from g1_ray.evaluation.results import PAPER_SCORES, Mean, bootstrap_mean

FEW = 10
"""Runs of the paper's protocol (G1, arXiv 2505.13426; on Swap 100)."""
MOVES_ARE_COUNTED = ("shisen", "shisen-photos", "swap")
"""Games whose score in the paper is the number of moves that scored; of 2048 it is the game's own."""


def boards_table(run: Path, game: str) -> list[list[str]]:
    """What every player of a run's evaluation scores in the paper's unit, in the first runs and in all, and the paper's
    rows below."""
    lines = [line for line in json.loads((run / "eval" / "results.json").read_text()) if line["game"] == game]
    kind = next(each["game"] for each in json.loads((run / "config.json").read_text())["games"] if each["name"] == game)
    rows = [["player", f"score, {FEW} runs", f"score, {lines[0]['runs']} runs", "moves that score, %"]]
    for line in lines:
        runs = read_runs(run / "eval" / "moves" / file_name(game, line["player"]))
        counted = kind in MOVES_ARE_COUNTED
        scores = [sum(move.gain > 0 for move in its.moves) if counted else its.score for its in runs]
        few, many = bootstrap_mean(scores[:FEW]), bootstrap_mean(scores)
        rows.append([line["player"], str(few), str(many), str(Mean(*line["scoring"]))])
    return rows + [[f"{name} (published)", told, "", ""] for name, told in PAPER_SCORES.get(kind, {}).items()]
