"""How a run is going: a live panel on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from g1_ray.config import RunConfig

SECONDS_BETWEEN_LINES = 5.0
"""Where there is no terminal."""
COLUMNS = {"reward": "reward", "p_acc": "P_acc", "r_acc": "R_acc"}
SMOOTHING = 0.9
"""Weight of the past in the averages that are shown."""


class Progress:
    """Shows the steps of a run while it is open: `with Progress(config) as progress`."""

    def __init__(self, config: RunConfig, console: Console | None = None, first_step: int = 0) -> None:
        self.config = config
        self.console = console or Console(file=sys.stdout)
        self.first_step = self.step_done = first_step
        self._begun = time.monotonic()
        self._last_line, self._told = -SECONDS_BETWEEN_LINES, first_step
        self._means: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._note = ""
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self._panel)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        elif self.step_done > self._told:
            self._print_line()

    def note(self, text: str) -> None:
        """What is going on, in a few words."""
        self._note = text
        if not self._live:
            self.console.print(text, highlight=False, markup=False)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """An optimizer step is done. The first one starts the clock that the time left is reckoned with."""
        if self.step_done == self.first_step:
            self.first_step, self._begun = step - 1, time.monotonic() - metrics.get("step_s", 0.0)
        self.step_done = step
        self._latest = dict(metrics)
        for name, value in metrics.items():
            if value == value:  # a number
                self._means[name] = SMOOTHING * self._means.get(name, value) + (1 - SMOOTHING) * value
        if not self._live and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line()

    @property
    def seconds_left(self) -> float:
        """Until the steps or the minutes of the run are over, whichever comes first."""
        spent, done = time.monotonic() - self._begun, self.step_done - self.first_step
        by_steps = spent / done * (self.config.steps - self.step_done) if done else float("inf")
        by_clock = self.config.minutes * 60 - spent if self.config.minutes else float("inf")
        return max(0.0, min(by_steps, by_clock))

    def _games(self) -> list[str]:
        return [game.name for game in self.config.games if f"{game.name}/reward" in self._means]

    def _facts(self) -> str:
        latest, facts = self._latest, [f"{_clock(self.seconds_left)} left"]
        if "tokens_per_s" in latest:
            facts.append(f"{latest['tokens_per_s']:,.0f} tokens/s")
        if "staleness_mean" in latest:
            facts.append(f"staleness {latest['staleness_mean']:.1f} (most {latest.get('staleness_max', 0):.0f})")
        return ", ".join(facts)

    def _print_line(self) -> None:
        self._last_line, self._told = time.monotonic(), self.step_done
        parts = [f"step {self.step_done}/{self.config.steps}"]
        for game in self._games():
            means = {title: self._means.get(f"{game}/{name}") for name, title in COLUMNS.items()}
            shown = [f"{title} {mean:.2f}" for title, mean in means.items() if mean is not None]
            parts.append(f"{game}: {' '.join(shown)}")
        self.console.print(" | ".join([*parts, self._facts()]), highlight=False, markup=False, soft_wrap=True)

    def _panel(self) -> RenderableType:
        steps = f"step {self.step_done}/{self.config.steps}"
        bar = ProgressBar(total=self.config.steps, completed=self.step_done, width=40)
        head = Table.grid(padding=(0, 2))
        head.add_row(self.config.name, bar, steps, self._facts() if self._latest else "")
        note = Text(self._note, style="dim")
        if not self._latest:
            return Group(head, note)
        table = Table(box=None, padding=(0, 2))
        for title in ("game", *COLUMNS.values(), "answer tokens"):
            table.add_column(title, justify="left" if title == "game" else "right")
        for game in self._games():
            values = [self._means.get(f"{game}/{name}") for name in (*COLUMNS, "answer_tokens")]
            table.add_row(game, *("-" if value is None else f"{value:.2f}" for value in values))
        return Group(head, table, note)


def _clock(seconds: float) -> str:
    """1:02:03, or 2:03 under an hour; ? where it is not known."""
    if seconds == float("inf"):
        return "?"
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
