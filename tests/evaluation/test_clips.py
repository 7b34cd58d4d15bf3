"""Clips: what stands in the file is what was drawn, whatever the format."""

import sys

import av
import numpy as np
import pytest
from PIL import Image

from envs import PLAYERS, Task
from g1_ray.evaluation import clips
from g1_ray.evaluation.play import play

COLOURS = [(200, 30, 30), (30, 180, 60), (40, 60, 220), (240, 240, 240)]


def decoded(path):
    """Its frames; codec, format of pixels and frames a second, as they are told while the file is open."""
    with av.open(str(path)) as file:
        frames, stream = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)], file.streams.video[0]
        return frames, (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate)


def test_an_mp4_has_every_frame_with_its_colour_and_even_sides(tmp_path):
    frames = [Image.new("RGB", (101, 57), colour) for colour in COLOURS]
    clips._save(frames, tmp_path / "in" / "run.MP4", 500)
    pictures, about = decoded(tmp_path / "in" / "run.MP4")
    assert [picture.shape for picture in pictures] == [(58, 102, 3)] * len(COLOURS)
    for picture, colour in zip(pictures, COLOURS, strict=True):
        assert np.abs(picture[:56, :100].reshape(-1, 3).mean(0) - colour).max() < 6
    assert about == ("h264", "yuv420p", 2)


NAMES = ["G1, T=1", "a-model-of-2026/checkpoints/step-100, greedy, of a long name " * 2]
MOVES = ["16: (2, 1) (3, 1)", "9: " + "two different answers, " * 4]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("player", NAMES)
@pytest.mark.parametrize("height, width", [(56, 56), (140, 140), (672, 672), (56, 280), (280, 28)])
def test_words_stand_below_the_board_and_never_over_each_other(height, width, player, move):
    frame = np.asarray(clips._frame(np.zeros((height, width, 3), np.uint8), move, "score 1234", player)).astype(int)
    bar = frame[-clips._BAR :]
    light, blue = bar.min(-1) > 150, (bar[..., 2] - bar[..., 0] > 60) & (bar[..., 2] > 150)
    columns = np.flatnonzero(light.any(0))
    gap = np.diff(columns)[np.diff(columns) > 1].max()  # between the move and the score
    assert gap >= clips._EDGE and columns.min() >= clips._EDGE - 2 and columns.max() < frame.shape[1] - clips._EDGE + 2
    rows = np.flatnonzero(blue.any(1))
    assert rows.min() > np.flatnonzero(light.any(1)).max() and rows.max() < clips._BAR - 2
    assert np.flatnonzero(blue.any(0)).max() < frame.shape[1] - clips._EDGE + 2
    assert np.ptp(rows) >= 9  # a name is as large as it can be read


GAMES = [("2048", {"size": n}) for n in (2, 3, 5)] + [
    ("swap", {"rows": 8, "cols": 8}),
    ("shisen", {"rows": 2, "cols": 6}),
]


@pytest.mark.parametrize("name, reasoning", [*GAMES, ("shisen-photos", {"rows": 4, "cols": 4})])
def test_a_small_board_is_a_whole_number_of_times_as_large(name, reasoning):
    task = Task.make(name, reasoning=reasoning, perception={"tile_px": 28})
    game = task.new_game()
    game.reset(0)
    board = task.draw(game)
    frame = np.asarray(clips._frame(board, "1: up", "score 0", "G1"))
    times = frame[: -clips._BAR].shape[0] // board.shape[0]
    large = board.repeat(times, 0).repeat(times, 1)
    assert max(large.shape) >= clips.SIDE and np.array_equal(frame[: large.shape[0], : large.shape[1]], large)


def test_words_are_wrapped_and_the_answer_at_the_end_is_kept():
    font = clips.ImageFont.load_default(14)
    text = "<think>" + "W" * 90 + " wide WORDS \ud83d and 走 \t\x00" * 60 + "</think>\r\n\r\n<answer>up</answer>"
    lines = clips._wrapped(text, font, 340)
    assert all(font.getlength(line) <= 340 for line in lines) and lines[-2:] == ["", "<answer>up</answer>"]
    assert "".join(lines).replace(" ", "").count("W") == 90 + 60
    board = Image.new("RGB", (336, 107))
    first, second = (np.asarray(clips._beside(board, told)) for told in (text, text.replace("up", "left")))
    assert first.shape == second.shape == (clips.SIDE + clips._BAR, 336 + clips._TEXT, 3)
    differ = np.flatnonzero((first != second).any((1, 2)))
    assert len(differ) and differ.min() > clips.SIDE  # in the last line


def test_a_run_is_the_same_clip_as_mp4_and_as_webp(tmp_path):
    task = Task.make("2048", reasoning={"size": 3}, perception={"tile_px": 28})
    run = play(task, "random-legal", PLAYERS["random-legal"], seed=1, moves=6)
    for ending in (".mp4", ".webp"):
        clips.save_clip(run, tmp_path / f"run{ending}", "random-legal")
    pictures, _ = decoded(tmp_path / "run.mp4")
    with Image.open(tmp_path / "run.webp") as clip:
        assert clip.n_frames == len(pictures) >= 6
        for number, picture in enumerate(pictures):
            clip.seek(number)
            there = np.asarray(clip.convert("RGB"), np.float64)
            assert np.abs(picture[: there.shape[0], : there.shape[1]] - there).mean() < 8


def test_an_unknown_ending_and_a_missing_pyav_are_told_in_a_line(tmp_path, monkeypatch):
    frames = [Image.new("RGB", (10, 10))]
    with pytest.raises(ValueError, match=r"^run.avi: clips are .webp, .gif or .mp4 files$"):
        clips._save(frames, tmp_path / "run.avi", 100)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"^run.mp4: mp4 clips need PyAV: pip install .*$"):
        clips._save(frames, tmp_path / "run.mp4", 100)
    assert list(tmp_path.iterdir()) == []
