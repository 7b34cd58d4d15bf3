"""Animated pictures of runs."""

import textwrap
from fractions import Fraction
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from envs.drawing import Frame
from g1_ray.evaluation.play import Run

SIDE = 336  # pixels of the longer side of a clip's board
_BAR = 40
_TEXT = 360  # pixels of the column for a model's words
_DARK = (22, 24, 30)
ENDINGS = (".webp", ".gif", ".mp4")


def save_clip(run: Run, path: str | Path, player: str, frame_ms: int = 350, moves: int = 0) -> None:
    """Writes a run, or its first `moves`, as an animation: the board, below it the move, and a model's words beside.

    Raises `ValueError` on a path with another ending than `ENDINGS`.
    """
    frames, score, words = [], 0.0, any(move.text for move in run.moves)
    for number, move in enumerate(run.moves[: moves or None], 1):
        game = move.state.game()
        told = move.cause if move.action is None else game.actions.write(move.action)
        if move.action is not None and not move.legal:
            told += " (illegal)"
        frames.append(_frame(move.state.task.draw(game), f"{number}: {told}", f"{player}  {score:g}"))
        if words:
            frames[-1] = _beside(frames[-1], move.text)
        score += move.gain
        if move.over and number == len(run.moves[: moves or None]):
            game.step(move.action)
            end = _frame(move.state.task.draw(game), "won" if move.success else "end", f"{player}  {score:g}")
            frames.append(_beside(end, "") if words else end)
    _save(frames, path, frame_ms)


def _save(frames: list[Image.Image], path: str | Path, frame_ms: int) -> None:
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path.name}: clips are {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} files")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".mp4":
        _save_mp4(frames, path, frame_ms)
    else:
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=frame_ms, loop=0, quality=70, method=2)


def _save_mp4(frames: list[Image.Image], path: Path, frame_ms: int) -> None:
    """H.264 as every browser plays it: 4:2:0, so that sides are even, and with the index at the file's start."""
    try:
        import av
    except ImportError:
        raise ValueError(f"{path.name}: mp4 clips need PyAV: pip install 'g1-ray[export]', or save a .webp") from None

    width, height = (side + side % 2 for side in frames[0].size)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as file:
        stream = file.add_stream("libx264", rate=Fraction(1000, frame_ms), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            even = Image.new("RGB", (width, height), _DARK)
            even.paste(frame)
            file.mux(stream.encode(av.VideoFrame.from_image(even)))
        file.mux(stream.encode())


def _beside(board: Image.Image, text: str) -> Image.Image:
    """The picture with the text to its right, wrapped; what does not fit is left out."""
    frame = Image.new("RGB", (board.width + _TEXT, board.height), _DARK)
    frame.paste(board)
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(14)
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 44) or [""]]
    for number, line in enumerate(lines[: (board.height - 16) // 18]):
        draw.text((board.width + 14, 8 + 18 * number), line, (215, 220, 228), font)
    return frame


def _frame(board: Frame, left: str, right: str) -> Image.Image:
    """The board, as large for every task, and two texts below it that share its width."""
    picture = Image.fromarray(board)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    picture = ImageOps.contain(picture, (SIDE, SIDE), Image.Resampling.NEAREST)
    frame = Image.new("RGB", (picture.width, picture.height + _BAR), _DARK)
    frame.paste(picture)
    draw, sizes = ImageDraw.Draw(frame), map(ImageFont.load_default, range(18, 6, -1))
    font = next((font for font in sizes if draw.textlength(left + right, font) < picture.width - 40), None)
    middle = picture.height + _BAR // 2
    draw.text((8, middle), left, (240, 240, 240), font, anchor="lm")
    draw.text((picture.width - 8, middle), right, (150, 200, 255), font, anchor="rm")
    return frame
