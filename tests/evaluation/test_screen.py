"""What a terminal shows of a game, and the keys of a person who plays there."""

import contextlib
import io
import os
import re

import numpy as np
import pytest
from rich.console import Console

from envs import Task
from envs.answers import Choices
from envs.players import oracle
from g1_ray.evaluation.hand import Cursor, Keys, hand_of, key_map, keys
from g1_ray.evaluation.play import Move, Reply, Stopped, play
from g1_ray.evaluation.screen import Screen, told

SWAP = Task.make("swap", reasoning={"rows": 4, "cols": 4, "kinds": 4, "horizon": 3})
SMALL = Task.make("2048", reasoning={"size": 3, "horizon": 5})


def terminal(width: int, height: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)


def shown(screen: Screen) -> list[str]:
    plain = Console(file=io.StringIO(), width=screen.console.width, height=screen.console.height)
    plain.print(screen._view())
    return plain.file.getvalue().splitlines()


@pytest.mark.parametrize("width, height, beside", [(120, 40, True), (80, 24, True), (48, 40, False), (30, 12, False)])
def test_words_stand_beside_the_board_where_there_is_room_and_never_on_it(width, height, beside):
    game = SMALL.new_game()
    game.reset(1)
    with Screen(SMALL, "tiny", words=True, console=terminal(width, height)) as screen:
        screen.show(game)
        screen.hear(Reply("word " * 400 + "LAST", "", tokens=401))
        lines = shown(screen)
    rows = [line for line in lines if re.match("│ {1,2}[012] ", line)]
    assert len(rows) == 3
    for row, kinds in zip(rows, game.perception().tolist(), strict=True):
        assert row.split("│")[1].split() == [row.split()[1], *(SMALL.renderer.names[kind] for kind in kinds if kind)]
    assert any("LAST" in line for line in lines) and all(len(line) <= width for line in lines)
    assert any("word" in line for line in rows) is beside
    assert len(lines) <= height


def test_a_run_is_told_move_by_move():
    moves: list[Move] = []
    with Screen(SMALL, "oracle", console=terminal(80, 30)) as screen:

        def on_move(move: Move) -> None:
            moves.append(move)
            screen.count(move)
            assert screen.note == f"{len(moves)}: {told(move)}"
            assert f"score {sum(m.gain for m in moves):g} " in "\n".join(shown(screen))

        run = play(SMALL, "oracle", oracle, 3, on_move=on_move)
    assert tuple(moves) == run.moves and len(moves) == 5
    assert "time is up: score" in screen.console.file.getvalue()


def test_without_a_terminal_each_board_and_each_answer_is_there_once():
    plain = Console(file=io.StringIO(), width=80)
    game = SMALL.new_game()
    game.reset(1)
    with Screen(SMALL, "tiny", words=True, console=plain) as screen:
        screen.show(game)
        for text, reason in (("half an", ""), ("half an answer", "stop")):
            screen.hear(Reply(text, reason))
    out = plain.file.getvalue()
    assert out.count("half an") == 1 and "\x1b" not in out and out.count("\n 0 ") == 1


@pytest.mark.parametrize(
    "words, key, word",
    [
        (("up", "right", "down", "left"), "w", "up"),
        (("up", "right", "down", "left"), "d", "right"),
        (("up", "right", "down", "left"), "2", "down"),
        (("up", "right", "down", "left"), "left", "left"),
        (("open", "close"), "c", "close"),
        (("north", "nod", "east"), "e", "east"),
    ],
)
def test_keys_of_moves(words, key, word):
    assert words[key_map(Choices(*words))[key]] == word


def test_a_letter_that_two_moves_begin_with_is_no_key():
    assert "n" not in key_map(Choices("north", "nod", "east"))


def pressed(text: str):
    waiting = text.split()
    return lambda: waiting.pop(0)


def test_two_cells_are_chosen_with_the_cursor():
    game = SWAP.new_game()
    game.reset(2)
    hand = Cursor(pressed("down d enter right enter left enter enter enter q"))
    with Screen(SWAP, "you", console=terminal(80, 40)) as hand.screen:
        assert hand(game, np.random.default_rng(0)) == game.actions.action(5, 6)
        assert hand.screen.marked is None
        with pytest.raises(Stopped):  # a cell chosen twice is given up
            hand(game, np.random.default_rng(0))


def test_a_hint_names_the_oracles_move():
    game = SMALL.new_game()
    game.reset(2)
    hand = Keys(pressed("? x a"), game.actions)
    with Screen(SMALL, "you", console=terminal(80, 40)) as hand.screen:
        assert game.actions.write(hand(game, np.random.default_rng(0))) == "left"
        assert hand.screen.note == f"the oracle plays {game.actions.write(game.oracle())}"


@pytest.mark.parametrize(
    "typed, expected",
    [
        (b"\x1b[A\x1b[B\x1bOC\x1b[D", ["up", "down", "right", "left"]),
        (b"wQ? \n", ["w", "q", "?", "enter", "enter"]),
        (b"\x1b", ["q"]),
    ],
)
def test_keys_come_as_they_are_pressed(typed, expected, monkeypatch):
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "r") as terminal_input, contextlib.ExitStack() as closing:
        closing.callback(os.close, ours)
        monkeypatch.setattr("sys.stdin", terminal_input)
        with keys() as read_key:
            assert read_key is not None
            assert isinstance(hand_of(SMALL.new_game().actions, read_key), Keys)
            got = []
            for size in [3] * 4 if typed.startswith(b"\x1b[") else [1] * len(typed):
                os.write(ours, typed[:size])
                typed = typed[size:]
                got.append(read_key())
    assert got == expected


def test_without_a_terminal_there_are_no_keys(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("up\n"))
    with keys() as read_key:
        assert read_key is None
