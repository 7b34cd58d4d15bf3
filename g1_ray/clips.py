"""Animated pictures of runs."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from envs import Task
from envs.drawing import Frame
from g1_ray.episodes import Run, replay
from g1_ray.evaluation import PlayedRun

SIDE = 336  # pixels of the longer side of a clip's board
_BAR = 40
_TEXT = 360  # pixels of the column for a model's words
ENDINGS = (".webp", ".gif")


def save_clip(task: Task, run: Run, path: str | Path, player: str, frame_ms: int = 350) -> None:
    """Writes a run as an animated WebP or GIF, by the path's ending: the board, and below it the next move.

    Raises `ValueError` on another ending.
    """
    frames, score, made = [], 0.0, 0
    for game, action in replay(task, run):
        now = score + game.score
        if action is None:
            line, score = "won" if game.won() else "end", now
        else:
            made += 1
            line = f"{made}: {game.actions.write(action)}"
        frames.append(_frame(task.draw(game), line, f"{player}  {now:g}"))
    _save(frames, path, frame_ms)


def save_answers_clip(run: PlayedRun, path: str | Path, player: str, frame_ms: int = 1200, moves: int = 30) -> None:
    """Writes the first moves of a model's run as an animated WebP or GIF: the board, and the answer beside it.

    Raises `ValueError` on another ending.
    """
    frames, score = [], 0.0
    for number, move in enumerate(run.moves[:moves], 1):
        score += move.gain
        told = "scores" if move.gain > 0 else "legal" if move.legal else move.cause or "illegal"
        board = _frame(move.state.draw(), f"{number}: {told}", f"{player}  {score:g}")
        frames.append(_beside(board, move.text))
    _save(frames, path, frame_ms)


def _save(frames: list[Image.Image], path: str | Path, frame_ms: int) -> None:
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path.name}: clips are {' or '.join(ENDINGS)} files")
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=frame_ms, loop=0, quality=70, method=2)


def _beside(board: Image.Image, text: str) -> Image.Image:
    """The picture with the text to its right, wrapped; what does not fit is left out."""
    scaled = board.resize((SIDE, SIDE + _BAR), Image.Resampling.NEAREST) if board.width < SIDE else board
    frame = Image.new("RGB", (scaled.width + _TEXT, scaled.height), (22, 24, 30))
    frame.paste(scaled)
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(14)
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 44) or [""]]
    for number, line in enumerate(lines[: (scaled.height - 16) // 18]):
        draw.text((scaled.width + 14, 8 + 18 * number), line, (215, 220, 228), font)
    return frame


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
