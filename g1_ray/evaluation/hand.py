"""A person at a terminal: a keystroke a move where the terminal gives them, else lines."""

import contextlib
import os
import select
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np

from envs.answers import CellPairs, Choices
from envs.core import Game
from g1_ray.evaluation.play import Stopped
from g1_ray.evaluation.screen import Screen

_STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
_LETTERS = {"w": "up", "a": "left", "s": "down", "d": "right"}
_ESCAPED = {"A": "up", "B": "down", "C": "right", "D": "left"}
_NAMED = {"\n": "enter", "\r": "enter", " ": "enter", "": "q", "\x04": "q", "\x1b": "q"}

ReadKey = Callable[[], str]
"""Waits for a key: 'up', 'down', 'left', 'right', 'enter', or a letter; 'q' for Escape and the input's end, too."""


@contextlib.contextmanager
def keys() -> Iterator[ReadKey | None]:
    """Reads single keys from the terminal; None where the input is no terminal, or one that can't."""
    try:
        import termios
        import tty

        number = sys.stdin.fileno()
        before = termios.tcgetattr(number)
    except (ImportError, OSError, ValueError, termios.error):
        yield None
        return

    def read() -> str:
        key = os.read(number, 1).decode(errors="replace")
        if key == "\x1b" and select.select([number], [], [], 0.05)[0]:
            return _ESCAPED.get(os.read(number, 8).decode(errors="replace")[-1:], "")
        return _NAMED.get(key, key.lower())

    try:
        tty.setcbreak(number)
        yield read
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


class Hand(ABC):
    """A player (`envs.players.Choose`) whose moves a person makes, looking at `screen`."""

    help = ""
    """Which keys there are."""
    screen: Screen

    def __call__(self, game: Game, rng: np.random.Generator) -> int:
        """Asks for a move until there is one. Raises `Stopped` where no more are wanted."""
        while True:
            self.screen.show(game)
            said = self.ask(game)
            if said in ("quit", "q"):
                raise Stopped
            if said in ("hint", "?"):
                self.screen.say(f"the oracle plays {game.actions.write(game.oracle())}")
            elif (action := self.read(game, said)) is not None:
                return action

    @abstractmethod
    def ask(self, game: Game) -> str:
        """What the person says."""

    @abstractmethod
    def read(self, game: Game, said: str) -> int | None:
        """The move that this is; None where it is none, or not yet."""


class Lines(Hand):
    """A move is a line, in the words of an answer or one of the one-letter keys."""

    def ask(self, game: Game) -> str:
        try:
            return input("move> ").strip()
        except EOFError:
            return "quit"

    def read(self, game: Game, said: str) -> int | None:
        if isinstance(game.actions, Choices) and (key := key_map(game.actions).get(said)) is not None:
            return key
        reading = game.actions.read(said)
        if isinstance(reading, int):
            return reading
        self.screen.say(f"not a move ({reading}): expected {game.actions.ask}")
        return None


class Keys(Hand):
    """A key is a move: arrows and w, a, s, d where moves are directions, numbers, first letters that are no other's."""

    def __init__(self, read_key: ReadKey, actions: Choices) -> None:
        self.read_key, self.moves = read_key, key_map(actions)
        keys = "arrows or w a s d" if set(actions.words) <= set(_STEPS) else " ".join(self.moves)
        self.help = f"{keys} move   ? hint   q quit"

    def ask(self, game: Game) -> str:
        return self.read_key()

    def read(self, game: Game, said: str) -> int | None:
        return self.moves.get(said)


class Cursor(Hand):
    """Two cells are a move: arrows lead to each, Enter chooses it."""

    help = "arrows or w a s d lead to a cell   Enter picks it, then another   ? hint   q quit"

    def __init__(self, read_key: ReadKey) -> None:
        self.read_key, self.cell = read_key, 0

    def ask(self, game: Game) -> str:
        self.screen.point(self.cell)
        return self.read_key()

    def read(self, game: Game, said: str) -> int | None:
        if step := _STEPS.get(_LETTERS.get(said, said)):
            row, col = divmod(self.cell, game.cols)
            self.cell = (row + step[0]) % game.rows * game.cols + (col + step[1]) % game.cols
        elif said == "enter":
            first, self.screen.marked = self.screen.marked, self.cell
            if first is not None:
                self.screen.marked = None
            if first not in (None, self.cell):
                assert isinstance(game.actions, CellPairs)
                return game.actions.action(first, self.cell)
        return None


def key_map(actions: Choices) -> dict[str, int]:
    """The action of each key."""
    words, found = actions.words, {str(action): action for action in range(min(10, actions.num))}
    for action, word in enumerate(words):
        if sum(other[:1] == word[:1] for other in words) == 1 and not set(words) <= set(_STEPS):
            found[word[:1]] = action
        if word in _STEPS:
            found[word] = action
    return found | {key: words.index(word) for key, word in _LETTERS.items() if word in words}


def hand_of(actions: object, read_key: ReadKey | None) -> Hand:
    """How a person plays a game with these actions on a terminal that gives keys, or on one that gives none."""
    if read_key and isinstance(actions, Choices):
        return Keys(read_key, actions)
    return Cursor(read_key) if read_key and isinstance(actions, CellPairs) else Lines()
