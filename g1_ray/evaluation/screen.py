"""A game on a terminal: the board in the colours of its picture, a player's words beside it, drawn in place.

    +-----------------+  player ---------------+
    |  2 | 4 |   | 8  |  <think> rows 8 | ...  |
    +-----------------+ -----------------------+
    3: up +8, board 100 % right

Where there is no terminal: plain lines, each board and each answer once.
"""

import textwrap
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from envs import Game, Task
from envs.env import board_text
from g1_ray.evaluation.play import Move, Reply
from g1_ray.tables import visible

_TALL = 3
"""Lines of a cell, where the terminal has room for them."""
_AROUND = 6
"""Lines around the cells: the score, the frame, the numbers of the columns, the note, the keys."""
_FEW = 4
"""Lines of words, at least, if there is room."""
_SECONDS = 1 / 12
"""Least time between two pictures of words that come."""
_NARROW = 32
"""Columns of words, below which they stand under the board."""


class Screen:
    """Shows a run while it is open: `with Screen(task, "oracle") as screen`.

    `words`: whether there are any to be shown. `help` stands at the foot. `live`: drawn in place; by default on a
    terminal.
    """

    def __init__(
        self,
        task: Task,
        player: str,
        words: bool = False,
        help: str = "",
        live: bool | None = None,
        console: Console | None = None,
    ) -> None:
        self.task, self.player, self.help = task, visible(player), help
        self.console = console or Console(highlight=False)
        self.live = self.console.is_terminal if live is None else live
        self.game, self.num_moves, self.note = task.new_game(), 0, ""
        self.cursor: int | None = None
        """The cell that a person points at."""
        self.marked: int | None = None
        """The cell that a person has chosen."""
        self._reply = Reply("", "") if words else None
        self._live: Live | None = None
        self._drawn = 0.0

    def __enter__(self) -> Self:
        if self.live:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self.help, self.cursor = "", None
            self._live.update(self._view(), refresh=True)
            self._live.stop()
        self.console.print(result(self.game))

    def show(self, game: Game) -> None:
        """The board before a move."""
        if game.moves == 0 and self.num_moves:
            self.say("that board is over: a fresh one")
        self.game = game
        self._draw(lambda: board_text(self.task, game))

    def point(self, cell: int) -> None:
        """A person points at a cell."""
        self.cursor = cell
        self._draw(lambda: "")

    def hear(self, reply: Reply) -> None:
        """What a player says, as far as it has come."""
        self._reply = reply
        if reply.finish_reason or (self._live and time.monotonic() - self._drawn > _SECONDS):
            self._draw(lambda: visible(reply.text))

    def count(self, move: Move) -> None:
        """A move was made: what it came to."""
        self.num_moves += 1
        self.game = move.state.game()
        self.game.step(move.action)
        self.say(f"{self.num_moves}: {told(move)}")

    def say(self, text: str) -> None:
        """Something to read, below the board."""
        self.note = visible(text)
        self._draw(lambda: f"{self.note}\n")

    def _draw(self, plain: Callable[[], str]) -> None:
        if self._live:
            self._live.update(self._view(), refresh=True)
            self._drawn = time.monotonic()
        else:
            self.console.print(Text(plain()), soft_wrap=True)

    def _view(self) -> RenderableType:
        game, (width, height) = self.game, self.console.size
        score = Text(f"{self.task.name}  score {game.score:g}  moves {self.num_moves}", style="bold")
        below = Group(Text(self.note), Text(self.help, style="dim"))
        beside = width - self._cell_width * game.cols - 12
        room = height - _AROUND - (0 if self._reply is None or beside >= _NARROW else _FEW + 2)
        tall = _TALL if game.rows * _TALL <= room else 1
        board = Panel(self._board(tall), expand=False)
        if self._reply is None:
            return Group(score, board, below)
        lines = game.rows * tall
        if beside >= _NARROW:
            table = Table.grid(padding=(0, 1))
            table.add_row(board, self._words(beside, max(lines + 1, _FEW)))
            return Group(score, table, below)
        return Group(score, board, self._words(width - 4, max(1, height - _AROUND - lines - 2)), below)

    @property
    def _cell_width(self) -> int:
        """Columns of a cell and of the gap after it: its name fits, or where there is no room for that, its words."""
        names = self.task.renderer.names[: self.game.num_kinds + 1]
        return min(max(map(len, names)) + 3, max(5, (self.console.width - 8) // self.game.cols))

    def _words(self, width: int, lines: int) -> Panel:
        """The last lines of what the player says."""
        assert self._reply is not None
        wrapped = Text(visible(self._reply.text), overflow="fold").wrap(self.console, width)
        text = Text("\n").join([*wrapped[-lines:], *[Text("")] * (lines - len(wrapped))])
        tokens = "" if self._reply.tokens is None else f"{self._reply.tokens} tokens "
        state = tokens if self._reply.finish_reason else f"{tokens}..."
        return Panel(text, title=self.player, subtitle=state.strip() or None, width=width + 4)

    def _board(self, tall: int) -> Text:
        """The board with its row and column numbers."""
        game, renderer = self.game, self.task.renderer
        if game.over and not game.moves:
            return Text("")
        board, names = game.perception(), renderer.names
        slots = renderer.slots(board, game.looks)
        width = self._cell_width - 1
        heading = " " * 3 + "".join(str(col).center(width) + " " for col in range(game.cols))
        lines = [Text(heading, style="dim")]
        for row in range(game.rows):
            cells = []
            for col in range(game.cols):
                cell, name = row * game.cols + col, names[board[row, col]] if board[row, col] else ""
                ends = "[]" if cell == self.cursor else "<>" if cell == self.marked else "  "
                color = [255.0] * 3 if cell == self.cursor else renderer.tile(slots[row, col]).mean((0, 1)).tolist()
                cells.append(_cell(name, ends, width, color, tall))
            for part in range(tall):
                lines.append(Text(f"{row:2} " if part == tall // 2 else "   ", style="dim"))
                lines[-1].append_text(Text(" ").join(cell[part] for cell in cells))
        return Text("\n").join(lines)


def _cell(name: str, ends: str, width: int, color: list[float], tall: int) -> list[Text]:
    """The lines of a cell: its name on the mean colour of its picture, and half a line of nothing below."""
    red, green, blue = map(int, color)
    fill = f"rgb({red},{green},{blue})"
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 120
    on = Style(color="black" if light else "white", bgcolor=fill, bold=True)
    parts = textwrap.wrap(name, width - 2)[:2] if tall > 1 else [name[: width - 2]]
    lines = [Text(ends[0] + part.center(width - 2) + ends[1], on) for part in parts or [""]]
    if tall == 1:
        return lines
    return [*[Text(" " * width, on)] * (2 - len(lines)), *lines, Text("▀" * width, Style(color=fill))]


def told(move: Move) -> str:
    """What a move came to, in a few words."""
    if move.action is None:
        words = f"no move ({move.cause})"
    else:
        words = move.state.task.new_game().actions.write(move.action)
        words += f" {move.gain:+g}" if move.legal else " (illegal)"
    return words if move.perception_share is None else f"{words}, board {move.perception_share:.0%} right"


def result(game: Game) -> str:
    """How a game stands, in a line."""
    if game.won():
        word = "won"
    elif not game.over:
        word = "stopped"
    else:
        word = "time is up" if game.moves == game.options.horizon else "no legal move is left"
    return f"{word}: score {game.score:g} after {game.moves} moves"
