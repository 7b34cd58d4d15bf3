"""Animated pictures of runs."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from envs import Task
from envs.drawing import Frame
from g1_ray.episodes import Run, replay

SIDE = 336  # pixels of the longer side of a clip's board
_BAR = 40
ENDINGS = (".webp", ".gif")


def save_clip(task: Task, run: Run, path: str | Path, player: str, frame_ms: int = 350) -> None:
    """Writes a run as an animated WebP or GIF, by the path's ending: the board, and below it the next move.

    Raises `ValueError` on another ending.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path.name}: clips are {' or '.join(ENDINGS)} files")
    frames, score, made = [], 0.0, 0
    for game, action in replay(task, run):
        now = score + game.score
        if action is None:
            line, score = "won" if game.won() else "end", now
        else:
            made += 1
            line = f"{made}: {game.actions.write(action)}"
        frames.append(_frame(task.draw(game), line, f"{player}  {now:g}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=frame_ms, loop=0, quality=70, method=2)


def _frame(board: Frame, left: str, right: str) -> Image.Image:
    picture = Image.fromarray(board)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    frame = Image.new("RGB", (picture.width, picture.height + _BAR), (22, 24, 30))
    frame.paste(picture)
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(18)
    middle = picture.height + _BAR // 2
    draw.text((8, middle), left, (240, 240, 240), font, anchor="lm")
    draw.text((picture.width - 8, middle), right, (150, 200, 255), font, anchor="rm")
    return frame
