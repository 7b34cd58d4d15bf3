"""How a run is going: a live panel on a terminal, plain lines elsewhere."""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from g1_ray.config import RunConfig
from g1_ray.tables import visible

SECONDS_BETWEEN_LINES = 5.0
"""Where there is no terminal."""
SECONDS_OF_SILENCE = 30.0
"""After which a line says what is going on, where there is no terminal."""
COLUMNS = {"reward": "reward", "p_acc": "P_acc", "r_acc": "R_acc"}
SMOOTHING = 0.9
"""Weight of the past in the averages that are shown."""


class Voice:
    """Lines on a console that is no terminal: what is said, and after each long silence what is `still` going on."""

    def __init__(self, console: Console, still: Callable[[], str]) -> None:
        self.console, self._still = console, still
        self._over = threading.Event()
        self._spoke = time.monotonic()

    def start(self) -> None:
        """From here on it is never silent for long: whoever waits for something has nothing to say itself."""
        self._spoke = time.monotonic()
        threading.Thread(target=self._keep_talking, daemon=True).start()

    def _keep_talking(self) -> None:
        while not self._over.wait(1.0):
            if self.silent_s >= SECONDS_OF_SILENCE:
                self.say(self._still())

    @property
    def silent_s(self) -> float:
        """Seconds since the last line."""
        return time.monotonic() - self._spoke

    def say(self, line: str) -> None:
        """Prints a line."""
        self._spoke = time.monotonic()
        self.console.print(visible(line), highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Ends it."""
        self._over.set()


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
        self._voice = Voice(self.console, self._still)
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self._panel)
            self._live.start()
        else:
            self._voice.start()
        return self

    def _still(self) -> str:
        where = f" | {self._done()}" if self._latest else ""
        return f"still {self._note}, {_clock(time.monotonic() - self._since)}{where}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._voice.stop()
        if self._live:
            self._live.stop()
        elif self.step_done > self._told:
            self._print_line()

    def note(self, text: str) -> None:
        """What is going on, in a few words."""
        self._note, self._since = visible(text), time.monotonic()
        if not self._live:
            self._voice.say(text)

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
        return max(0.0, min(self._ends()))

    def _ends(self) -> tuple[float, float]:
        """Seconds until the steps are over, and until the minutes are."""
        spent, done = time.monotonic() - self._begun, self.step_done - self.first_step
        by_steps = spent / done * (self.config.steps - self.step_done) if done else float("inf")
        return by_steps, self.config.minutes * 60 - spent if self.config.minutes else float("inf")

    def _done(self) -> str:
        """How far the run is, by what will end it: "step 53, minute 3 of 11" or "step 53 of 1000"."""
        by_steps, by_clock = self._ends()
        if by_clock < by_steps:
            minute = min(math.ceil(self.config.minutes), int((time.monotonic() - self._begun) / 60) + 1)
            return f"step {self.step_done}, minute {minute} of {self.config.minutes:g}"
        return f"step {self.step_done} of {self.config.steps}"

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
        parts = [self._done()]
        for game in self._games():
            means = {title: self._means.get(f"{game}/{name}") for name, title in COLUMNS.items()}
            shown = [f"{title} {mean:.2f}" for title, mean in means.items() if mean is not None]
            parts.append(f"{game}: {' '.join(shown)}")
        self._voice.say(" | ".join([*parts, self._facts()]))

    def _panel(self) -> RenderableType:
        spent = time.monotonic() - self._begun
        share = max(
            self.step_done / self.config.steps, spent / (self.config.minutes * 60) if self.config.minutes else 0
        )
        bar = ProgressBar(total=1.0, completed=min(1.0, share) if self._latest else 0.0, width=40)
        head = Table.grid(padding=(0, 2))
        head.add_row(self.config.name, bar, self._done(), self._facts() if self._latest else "")
        note = Text(f"{self._note}, {_clock(time.monotonic() - self._since)}", style="dim")
        if not self._latest:
            return Group(head, note)
        table = Table(box=None, padding=(0, 2))
        for title in ("game", *COLUMNS.values(), "answer tokens"):
            table.add_column(title, justify="left" if title == "game" else "right")
        for game in self._games():
            values = [self._means.get(f"{game}/{name}") for name in (*COLUMNS, "answer_tokens")]
            table.add_row(game, *("-" if value is None else f"{value:.2f}" for value in values))
        return Group(head, table, note)


class _Bar(Bar):
    about = ""
    """What stands under it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.about:
            yield Text(self.about, style="dim", no_wrap=True, overflow="ellipsis")


class Count:
    """How far something is that has a total: a bar on a terminal, elsewhere a line now and then; and the time left.

    `with Count("moves", 3000) as count: count(17)` says that 17 are done. Without a total (0) it says how many are.
    While nothing is done for long, that is said too.
    """

    def __init__(self, what: str, total: int, done: int = 0, console: Console | None = None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = _Bar(*columns, TextColumn("{task.fields[left]}"), console=console or Console(), transient=True)
        self.what, self.total, self.done, self._first = what, total, done, done
        self._begun = time.monotonic()
        self._task = self.bar.add_task(what, total=total or None, completed=done, left="")
        self.live = self.bar.console.is_terminal
        self._voice = Voice(self.bar.console, self._told)

    def __enter__(self) -> Self:
        if self.live:
            self.bar.start()
        else:
            self._voice.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._voice.stop()
        if self.live:
            self.bar.stop()
            if self.bar.about:  # the bar is gone; what was said last stays
                self._voice.say(f"{self._told()}, {self.bar.about}")

    def __call__(self, done: int, about: str = "") -> None:
        """So many are done. What there is to say `about` it is said at once: under the bar, or in a line."""
        self.done = done
        if self.live:
            self.bar.about = visible(about) or self.bar.about
            self.bar.update(self._task, completed=done, left=self.left)
        elif about or self._voice.silent_s >= SECONDS_OF_SILENCE / 2:
            self._voice.say(", ".join(filter(None, (self._told(), about))))

    def _told(self) -> str:
        told = f"{self.done:,} of {self.total:,} {self.what}" if self.total else f"{self.done:,} {self.what}"
        return ", ".join(filter(None, (told, f"{_clock(time.monotonic() - self._begun)} so far", self.left)))

    @property
    def left(self) -> str:
        """The time left, as what was done so far took; '' where that is not known."""
        made, spent = self.done - self._first, time.monotonic() - self._begun
        return f"{_clock(spent / made * (self.total - self.done))} left" if made > 0 and self.total else ""


def _clock(seconds: float) -> str:
    """1:02:03, or 2:03 under an hour; ? where it is not known."""
    if seconds == float("inf"):
        return "?"
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
