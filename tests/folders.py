"""Folders of a training run and of an evaluation, as the real writers write them, with answers of every sort."""

import asyncio
import json

import numpy as np

from envs import Codec, State
from g1_ray.config import RunConfig
from g1_ray.evaluation.moves import file_name, write_moves
from g1_ray.evaluation.play import Reply, play, play_asked
from g1_ray.evaluation.results import result_of, results_table, write_results
from g1_ray.rollout.referee import Referee
from g1_ray.types import Completion, Group, Prompt, Request, Rollout, Ticket, Turn

GAMES = [
    {"game": "2048", "reasoning": {"size": 3}, "perception": {"tiles": "numbers", "tile_px": 28}},
    {
        "game": "shisen",
        "name": "moved",
        "reasoning": {"rows": 4, "cols": 4},
        "perception": {"tile_px": 28, "offset": 20, "noise": 0.4, "rotation": 20.0},
    },
]


def small_config(folder, **more):
    games = [{"game": "2048", "reasoning": {"size": 3}, "perception": {"tiles": "numbers", "tile_px": 28}}]
    values = {"name": "small", "out": str(folder), "model": {"path": "tiny-base"}, "games": games, **more}
    return RunConfig.model_validate(values)


def small_group(number, task, texts=("a", "b")):
    """A group whose answers are the oracle's move and an unreadable one."""
    game = task.new_game()
    game.reset(number)
    state, codec = State.of(task, game), Codec(task)
    move = game.oracle()
    rollouts = []
    for i, action in enumerate((move, None)[: len(texts)]):
        length = 5 + i
        completion = Completion(
            np.arange(length, dtype=np.int32),
            np.full(length, -0.5, np.float32),
            np.full(length, 3, np.int32),
            "stop" if i == 0 else "length",
        )
        after = state.game()
        after.step(action)
        turn = Turn(
            prompt=Prompt(np.arange(7, dtype=np.int32), (state,)),
            completion=completion,
            text=codec.write(game.perception(), "", move) if action is not None else "hm",
            action=action,
            cause="" if action is not None else "no answer",
            legal=action is not None,
            gain=4.0 if action is not None else 0.0,
            rewards={"game": 1.0 - 2 * i, "format": 1.0 - i, "perception": 1.0 - i},
            reward=2.0 - 4 * i,
            perception_exact=i == 0,
            next_state=State.of(task, after),
        )
        rollouts.append(Rollout((turn,)))
    return Group(Ticket(number, "2048", 1, 3), state, tuple(rollouts))


def config_in(folder, **more):
    values = {
        "name": "small",
        "out": str(folder),
        "model": {"path": "tiny-base"},
        "games": GAMES,
        "trackers": [],
        **more,
    }
    return RunConfig.model_validate(values)


def turn_of(referee, state, text, version):
    length = 3 + len(text) % 5
    versions = np.full(length, version, np.int32)
    words = Completion(np.arange(length, dtype=np.int32), np.full(length, -0.5, np.float32), versions, "stop")
    request = Request(Prompt(np.arange(7, dtype=np.int32), (state,)), 1, 0)
    return referee.turn(state, request, words, text)


def answers(referee, state):
    """One answer of each sort: right, another board, a row too few, illegal, no answer, an unknown word."""
    game, codec = state.game(), referee.codec
    board = game.perception()
    right = codec.write(board, "so be it", game.oracle())
    other = board.copy()
    other[0, 0] = other[0, 0] % (len(codec.names) - 1) + 1
    illegal = next((a for a in range(codec.actions.num) if a not in game.legal_actions()), None)
    return [
        right,
        codec.write(other, "<b>not bold</b>", game.oracle()),
        right.replace(codec.describe(board).splitlines()[0] + "\n", "", 1),
        codec.write(board, "hm", illegal) if illegal is not None else right.replace("<answer>", "<answer>no "),
        "I see nothing",
        right.replace(codec.names[board[-1, -1]], "</script><script>alert(1)</script>"),
    ]


def groups_of(config, number):
    """Groups of six rollouts, of one turn in the first game and of two in the second."""
    for i in range(number):
        entry = config.games[i % 2]
        referee = Referee(entry, config.reward)
        game = referee.task.new_game()
        game.reset(i)
        start = State.of(referee.task, game)
        rollouts = []
        for text in answers(referee, start):
            turns = [turn_of(referee, start, text, i)]
            if i % 2:
                turns.append(turn_of(referee, turns[0].next_state, answers(referee, turns[0].next_state)[0], i + 1))
            rollouts.append(Rollout(tuple(turns)))
        yield Group(Ticket(10 + i, entry.name, i, i), start, tuple(rollouts))


def write_evaluation(folder, config):
    """Two players on each game: the oracle, and one whose answers are of all sorts."""
    results = []
    for entry in config.games:
        referee = Referee(entry, config.reward)

        async def ask(question, referee=referee):
            told = answers(referee, question.state)
            return Reply(told[question.move % len(told)], tokens=9, prompt_tokens=30, seconds=0.5)

        oracle = [play(entry.task(), "oracle", lambda game, _: game.oracle(), seed, 8) for seed in (5, 6, 7)]
        model = [asyncio.run(play_asked(entry.task(), entry.name, "a, model", ask, seed, 8)) for seed in (5, 6)]
        for name, runs in (("oracle", oracle), ("a, model", model)):
            write_moves(folder / "moves" / file_name(entry.name, name), entry.name, name, runs)
            results.append(result_of(entry.name, name, runs))
    write_results(folder, results, results_table(results))
    lab = {
        entry.name: {
            "states": 12,
            "player": "a, model",
            "cells": [[0.5, 1.0], [0.25, 0.75]],
            "names": ["-", "one", "two"],
            "confusion": [[4, 0, 0, 0], [0, 3, 2, 1], [0, 0, 9, 0]],
            "interventions": {
                "as is": {"p_acc": 0.5, "r_acc": 0.25},
                "blank image": {"p_acc": 0.0, "r_acc": float("nan")},
            },
        }
        for entry in config.games
    }
    (folder / "lab.json").write_text(json.dumps(lab))


METRICS = (
    *"reward r_acc p_acc flat_groups groups groups/in_flight groups/quarantined staleness_mean staleness_max".split(),
    *"tokens_per_s sync/pause_s sync/load_s sync/bytes canary_nats inference_kl".split(),
    *(f"recovered/{role}" for role in ("engine", "learner", "buffer", "env worker")),
)
"""Of a run's line, what jobs/grafana.json shows, and more."""
