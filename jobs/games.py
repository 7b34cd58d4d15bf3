"""List the games and their options; draw contact sheets of their difficulties; write their pages."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from envs import Codec, GameSpec, Perception, State, Task, game_names, game_spec
from envs.options import Options, bounds
from envs.task import PERCEPTION_LEVELS
from g1_ray.files import check_writable
from jobs.options import Parser

_CELL, _GAP, _HEAD, _LEVELS = 196, 10, 26, 150  # _LEVELS: what each level of perception changes
_INK, _PAPER = (30, 32, 38), (250, 250, 248)
_SHOWN_SETS = ("numbers", "colors", "shapes", "glyphs", "photos")


def options() -> Parser:
    """What the command takes."""
    parser = Parser("games", __doc__)
    parser.add_argument("name", nargs="?", help="one game; all when left out")
    parser.add_argument("--sheet", metavar="PNG", help="draw the game's difficulties into a file")
    parser.add_argument("--docs", metavar="FOLDER", help="write a page and a sheet for the game, or for all")
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray games`."""
    args = options().parse_args(argv)
    specs = [game_spec(name) for name in ([args.name] if args.name else game_names())]
    if args.sheet and not args.name:
        raise ValueError("--sheet needs the name of a game")
    if args.docs:
        check_writable(Path(args.docs), "folder")
        write_docs(Path(args.docs), specs)
    elif args.sheet:
        check_writable(Path(args.sheet), "file")
        Path(args.sheet).parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(*specs).save(args.sheet)
        print(f"wrote {args.sheet}")
    else:
        for spec in specs:
            print(describe(spec), end="\n\n")
        print("perception\n" + option_lines(Perception))
    return 0


def describe(spec: GameSpec) -> str:
    """A game and its reasoning options in lines."""
    lines = [f"{spec.name}: {spec.summary} ({spec.gym_id})", option_lines(spec.game_type.options_type)]
    lines += [f"  level {i:<12}{_short(level)}" for i, level in enumerate(spec.levels)]
    lines += [f"  preset {name:<11}{_short({**rules, **look})}" for name, (rules, look) in spec.presets.items()]
    return "\n".join(lines)


def _short(values: object) -> str:
    return ", ".join(f"{key}={value}" for key, value in dict(values).items())  # type: ignore[call-overload]


def option_lines(options: type[Options]) -> str:
    """Every option with its default, meaning and bounds."""
    lines = []
    for field in dataclasses.fields(options):
        allowed = f" ({bounds(field)})" if bounds(field) else ""
        lines.append(f"  {f'{field.name}={field.default}':<18}{field.metadata['help']}{allowed}")
    return "\n".join(lines)


def contact_sheet(spec: GameSpec) -> Image.Image:
    """Reasoning levels down, perception levels across; below, every tile set, and its held-out variant under it."""
    rows: list[list[tuple[str, Task]]] = []
    for reasoning in range(len(spec.levels)):
        tasks = [Task.make(spec.name, reasoning=reasoning, perception=p) for p in range(len(PERCEPTION_LEVELS))]
        rows.append([(f"reasoning {reasoning}, perception {p}", task) for p, task in enumerate(tasks)])
    for split in ("train", "heldout"):
        named = [(f"{tiles}, {split}", {"tiles": tiles, "split": split}) for tiles in _SHOWN_SETS]
        rows.append([(label, Task.make(spec.name, perception=look)) for label, look in named])
    width = max(map(len, rows)) * (_CELL + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _LEVELS + len(rows) * (_CELL + _HEAD + _GAP) + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for p, level in enumerate(PERCEPTION_LEVELS):
        lines = (
            [
                f"perception {p}",
                *(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in level.items()),
            ]
            if level
            else ["perception 0", "as drawn"]
        )
        draw.multiline_text((_GAP + p * (_CELL + _GAP), _GAP), "\n".join(lines), _INK, font, spacing=2)
    for i, row in enumerate(rows):
        for j, (label, task) in enumerate(row):
            left, top = _GAP + j * (_CELL + _GAP), _LEVELS + _GAP + i * (_CELL + _HEAD + _GAP)
            draw.text((left, top + 4), label, _INK, font)
            sheet.paste(_specimen(task).resize((_CELL, _CELL), Image.Resampling.LANCZOS), (left, top + _HEAD))
    return sheet


def _specimen(task: Task) -> Image.Image:
    """A board some way into an episode, so that there is something to see."""
    game = State.start(task, 1).game()
    for _ in range(40 if game.actions.num == 4 else game.rows * game.cols // 6):
        before = game.snapshot()
        game.step(game.oracle())
        if game.over:
            game.restore(before)
            break
    return Image.fromarray(task.draw(game))


def write_docs(folder: Path, specs: Iterable[GameSpec]) -> None:
    """A page for each game, made from the code, with its contact sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    for spec in specs:
        contact_sheet(spec).save(folder / f"{spec.name}.webp", quality=80, method=6)
        (folder / f"{spec.name}.md").write_text(page(spec))
        print(f"wrote {folder / spec.name}.md and .webp")


def page(spec: GameSpec) -> str:
    """The documentation page of a game."""
    task = Task.make(spec.name)
    codec, game = Codec(task), State.start(task, 1).game()
    answer = codec.write(game.perception(), "...", game.oracle())
    return f"""<!-- Written by `g1-ray games --docs docs/games`; edit the code instead. -->
# {spec.name}: {spec.summary}

Gymnasium: `gymnasium.make("{spec.gym_id}")`. Actions: {game.actions.num}, written as {game.actions.ask}.

![difficulties of {spec.name}]({spec.name}.webp)

## Options

```
{describe(spec)}
```

Perception options and levels are the same for every game: `g1-ray games`.

## What a model is asked

```
{codec.prompt()}
```

## A well-formed answer

```
{answer}
```
"""


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("games", main))
