"""What clients are shown, as JSON: tasks, lanes, moves. Boards are kinds [rows][cols], pictures PNG data URIs."""

import base64
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from envs import Game, RewardTable, State, Task
from envs.answers import CellPairs, Choices
from envs.rewards import ternary
from g1_ray.evaluation.confusion import told_board, told_words
from g1_ray.evaluation.play import Move
from g1_ray.rollout.judge import accuracies
from g1_ray.serve.session import Event, Lane, Session, cells_of, codec_of, words_of


def png(pixels: Any) -> str:
    """Pixels [height, width, 3] as a data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@functools.lru_cache(maxsize=64)
def task_view(task: Task) -> dict[str, Any]:
    """What there is to know of a task to show and play it. `tiles`: one tile of each kind, side by side from kind 0."""
    game, renderer = task.new_game(), task.renderer
    kinds = np.arange(game.num_kinds + 1, dtype=np.uint8)
    with renderer.lock:
        slots = renderer.slots(kinds, np.zeros(len(kinds), np.uint16))
        tiles = np.concatenate([renderer.tile(slot) for slot in slots], axis=1)
    actions = game.actions
    return {
        "game": task.name,
        "reasoning": task.reasoning.as_dict(),
        "perception": {key: value for key, value in task.perception.as_dict().items() if key != "path"},
        "rows": game.rows,
        "cols": game.cols,
        "names": list(renderer.names[: len(kinds)]),
        "px": renderer.px,
        "size": [renderer.shape[1], renderer.shape[0]],
        "tiles": png(tiles),
        "actions": "words" if isinstance(actions, Choices) else "cells" if isinstance(actions, CellPairs) else "text",
        "words": list(actions.words) if isinstance(actions, Choices) else [],
        "ask": actions.ask,
        "prompt": codec_of(task).prompt(),
    }


def session_view(session: Session, models: Sequence[str], with_task: bool = True) -> dict[str, Any]:
    """A session with its lanes."""
    view = {
        "id": session.id,
        "game": session.game,
        "seed": session.seed,
        "name": session.name,
        "lanes": [lane_view(session, number, models) for number in range(len(session.lanes))],
    }
    return view | ({"task": task_view(session.task)} if with_task else {})


def lane_view(session: Session, number: int, models: Sequence[str], last: int | None = None) -> dict[str, Any]:
    """A lane as it stands; `last`: the move to be told of, by default the last one."""
    lane = session.lanes[number]
    game, moves = lane.table.game, lane.table.moves
    described = [move for move in moves if move.perception_exact is not None]
    p_acc, r_acc = accuracies([bool(m.perception_exact) for m in described], [m.gain > 0 for m in described])
    last = len(moves) - 1 if last is None else last
    return {
        "lane": number,
        "revision": lane.revision,
        "seat": lane.seat,
        "seat_kind": "person" if lane.seat == "person" else "model" if lane.seat in models else "classic",
        "moves": len(moves),
        "score": game.score,
        "over": game.over,
        "won": game.won(),
        "helped": lane.helped,
        "p_acc": None if p_acc != p_acc else p_acc,
        "r_acc": None if r_acc != r_acc else r_acc,
        "boards_described": len(described),
        **board_view(session.task, game),
        "last": move_view(moves[last], lane.played[last], last) if 0 <= last < len(moves) else None,
    }


def seen_view(task: Task, game: Game) -> dict[str, Any]:
    """What there is to see of a board. `shift`: rows and columns of pixels before it in the picture."""
    return {
        "board": game.perception().tolist(),
        "picture": png(task.draw(game)),
        "shift": list(task.renderer.shift(game.looks)),
    }


def board_view(task: Task, game: Game) -> dict[str, Any]:
    """A board: its kinds, its picture as a model is shown it, the legal moves."""
    return {
        **seen_view(task, game),
        "legal": [
            {"action": action, "text": game.actions.write(action), "cells": cells_of(task, action)}
            for action in game.legal_actions()
        ],
    }


def move_view(move: Move, event: Event | None, number: int, options: RewardTable | None = None) -> dict[str, Any]:
    """A move and what came of it. `state` is not in it: the board before is `Move.state`'s."""
    reply = dict(event.reply or {}) if event else {}
    return {
        "number": number,
        "by": event.by if event else "",
        "action": move.action,
        "text": words_of(move),
        "cells": [] if move.action is None else cells_of(move.state.task, move.action),
        "legal": move.legal,
        "gain": move.gain,
        "reward": move.reward,
        "regret": move.regret,
        "cause": move.cause,
        "over": move.over,
        "success": move.success,
        **({"answer": answer_view(move.state, reply["text"]) | {"exact": move.perception_exact}} if reply else {}),
        **{name: reply.get(name) for name in ("tokens", "prompt_tokens", "seconds", "versions") if name in reply},
        **({} if options is None else {"options": options_view(move.state.task, options)}),
    }


def answer_view(state: State, text: str) -> dict[str, Any]:
    """What an answer, whole or as far as it has come, says: words, the board that it tells, what is wrong in it."""
    codec, truth = codec_of(state.task), state.game().perception()
    answer = codec.read(text)
    begun = text.rpartition("<perception>")[2] if answer.perception is None else ""
    begun = begun[: max(begun.rfind("|"), begun.rfind("\n"), 0)]  # a word that is still being written is not read
    words = told_words(codec, text) if answer.perception is not None else codec.table(begun)
    score = codec.score_perception(answer.perception if answer.perception is not None else begun, truth)
    told = told_board(codec, words)
    return {
        "text": text,
        "told": [row[: 4 * codec.cols] for row in words][: 4 * codec.rows],
        "wrong": [
            [row, col]
            for row, line in enumerate(words[: codec.rows])
            for col, word in enumerate(line[: codec.cols])
            if word != codec.names[truth[row, col]].lower()
        ],
        "right": score.right,
        "cells": int(truth.size),
        "whole": bool((told >= 0).all()),
        "thinking": answer.thinking,
        "body": answer.body,
    }


def options_view(task: Task, table: RewardTable) -> list[dict[str, Any]]:
    """What every legal move earns, the best first."""
    actions = codec_of(task).actions
    order = sorted(range(len(table.actions)), key=lambda i: (-table.rewards[i], -table.outcomes[i].gain))
    return [
        {
            "action": table.actions[i],
            "text": actions.write(table.actions[i]),
            "cells": cells_of(task, table.actions[i]),
            "reward": float(table.rewards[i]),
            "gain": table.outcomes[i].gain,
        }
        for i in order
    ]


def replay_view(task: Task, seed: int, actions: Sequence[int | None], start: int, end: int) -> list[dict[str, Any]]:
    """The boards before moves `start` to `end` of a game, and at last the one after them, with each move's outcome."""
    game = task.new_game()
    game.reset(seed)
    frames: list[dict[str, Any]] = []
    for number, action in enumerate([*actions, None]):
        before = State.of(task, game) if start <= number < end else None
        final = number == len(actions)
        outcome = None if final else game.step(action)
        if before is not None:
            was = before.game()
            frames.append(
                {
                    "number": number,
                    "score": was.score,
                    "over": was.over,
                    **board_view(task, was),
                    "move": None
                    if outcome is None
                    else {
                        "action": action,
                        "text": "" if action is None else game.actions.write(action),
                        "cells": [] if action is None else cells_of(task, action),
                        "legal": outcome.legal,
                        "gain": outcome.gain,
                        "reward": ternary(outcome),
                    },
                }
            )
    return frames


def lane_actions(lane: Lane) -> list[int | None]:
    """The moves of a lane, as they stand."""
    return [move.action for move in lane.table.moves]
