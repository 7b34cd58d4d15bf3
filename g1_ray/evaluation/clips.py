"""Animated pictures of runs."""

import re
from fractions import Fraction
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from envs.drawing import Frame
from g1_ray.evaluation.play import Run

SIDE = 336  # pixels that the longer side of a clip's board has at least
_BAR, _TEXT, _LINE, _EDGE = 52, 360, 18, 10  # pixels: below the board, beside it, a line of words, what stays free
_DARK, _LIGHT, _BLUE, _RED = (22, 24, 30), (240, 240, 240), (150, 200, 255), (255, 150, 140)
ENDINGS = (".webp", ".gif", ".mp4")


def save_clip(run: Run, path: str | Path, player: str, frame_ms: int = 350, moves: int = 0) -> None:
    """Writes a run, or its first `moves`, as an animation: the board, below it the move, and a model's words beside.

    Raises `ValueError` on a path with another ending than `ENDINGS`.
    """
    shown = run.moves[: moves or None]
    frames, score, words = [], 0.0, any(move.text for move in run.moves)
    for number, move in enumerate(shown, 1):
        game = move.state.game()
        told = move.cause if move.action is None else game.actions.write(move.action)
        told += "" if move.legal or move.action is None else " (illegal)"
        frame = _frame(
            move.state.task.draw(game), f"{number}: {told}", f"score {score:g}", player, _LIGHT if move.legal else _RED
        )
        frames.append(_beside(frame, move.text) if words else frame)
        score += move.gain
        if move.over and number == len(shown):
            game.step(move.action)
            end = _frame(move.state.task.draw(game), "won" if move.success else "end", f"score {score:g}", player)
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
        raise ValueError(f"{path.name}: mp4 clips need PyAV: pip install -e '.[export]', or save a .webp") from None

    width, height = (side + side % 2 for side in frames[0].size)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as file:
        stream = file.add_stream("libx264", rate=Fraction(1000, frame_ms), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            even = Image.new("RGB", (width, height), _DARK)
            even.paste(frame)
            file.mux(stream.encode(av.VideoFrame.from_image(even)))
        file.mux(stream.encode())


def _frame(board: Frame, move: str, score: str, player: str, colour: tuple[int, int, int] = _LIGHT) -> Image.Image:
    """The board, and below it the move with the score, and who plays."""
    picture = _sized(Image.fromarray(board))
    width = max(picture.width, SIDE)
    frame = Image.new("RGB", (width, picture.height + _BAR), _DARK)
    frame.paste(picture, ((width - picture.width) // 2, 0))
    draw, font, small = ImageDraw.Draw(frame), ImageFont.load_default(18), ImageFont.load_default(14)
    right, free = width - _EDGE, width - 3 * _EDGE - font.getlength(score)
    draw.text((right, picture.height + 17), score, _LIGHT, font, anchor="rm")
    draw.text((_EDGE, picture.height + 17), _fitting(move, font, free), colour, font, anchor="lm")
    draw.text((_EDGE, picture.height + 38), _fitting(player, small, width - 2 * _EDGE), _BLUE, small, anchor="lm")
    return frame


def _sized(picture: Image.Image) -> Image.Image:
    """A board that can be looked at: small ones a whole number of times as large, so that their pixels stay squares."""
    longer = max(picture.size)
    if longer < SIDE:
        times = -(-SIDE // longer)
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def _beside(board: Image.Image, text: str) -> Image.Image:
    """The picture with the text to its right; of a text that is too long the middle is left out."""
    frame = Image.new("RGB", (board.width + _TEXT, max(board.height, SIDE + _BAR)), _DARK)
    frame.paste(board)
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(14)
    lines = _wrapped(text, font, _TEXT - 2 * _EDGE)
    fit = (frame.height - 2 * _EDGE) // _LINE
    if len(lines) > fit:  # the answer stands at the end
        lines = [*lines[: fit // 2], "[...]", *lines[len(lines) - (fit - fit // 2 - 1) :]]
    for number, line in enumerate(lines):
        draw.text((board.width + _EDGE, _EDGE + _LINE * number), line, (215, 220, 228), font)
    return frame


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _fitting(text: str, font: Font, width: float) -> str:
    """The text, without its middle where it is too wide: names differ at both ends."""
    text = _drawable(text)
    if font.getlength(text) <= width:
        return text
    kept = next(n for n in range(len(text) - 1, -1, -1) if font.getlength(_clipped(text, n)) <= width or not n)
    return _clipped(text, kept)


def _clipped(text: str, kept: int) -> str:
    return text[: kept - kept // 2] + "..." + text[len(text) - kept // 2 :]


def _wrapped(text: str, font: Font, width: float) -> list[str]:
    """The lines of a text, none wider than `width` pixels."""
    lines = []
    for line in _drawable(text).splitlines():
        lines.append("")
        for piece in re.findall(r"\s*\S{1,20}", line):  # longer words are broken
            if lines[-1] and font.getlength(lines[-1] + piece) > width:
                lines.append("")
                piece = piece.lstrip()
            lines[-1] += piece
    return lines


def _drawable(text: str) -> str:
    """The text without what no font draws: half a character, control characters other than line breaks."""
    return re.sub(r"[^\S\n ]|[\ud800-\udfff\x00-\x09\x0b-\x1f]", " ", text.replace("\r\n", "\n"))
