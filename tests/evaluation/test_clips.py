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
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)], file.streams.video[0]


def test_an_mp4_has_every_frame_with_its_colour_and_even_sides(tmp_path):
    frames = [Image.new("RGB", (101, 57), colour) for colour in COLOURS]
    clips._save(frames, tmp_path / "in" / "run.MP4", 500)
    pictures, stream = decoded(tmp_path / "in" / "run.MP4")
    assert [picture.shape for picture in pictures] == [(58, 102, 3)] * len(COLOURS)
    for picture, colour in zip(pictures, COLOURS, strict=True):
        assert np.abs(picture[:56, :100].reshape(-1, 3).mean(0) - colour).max() < 6
    about = stream.codec_context
    assert (about.name, about.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 2)


@pytest.mark.parametrize("player", ["G1, T=1", "cold start, greedy, of a long name"])
@pytest.mark.parametrize("side", [84, 672])
def test_a_move_and_a_player_stand_side_by_side(side, player):
    frame = np.asarray(clips._frame(np.zeros((side, side, 3), np.uint8), "16: (2, 1) (3, 1)", f"{player}  5"))
    assert frame.shape == (clips.SIDE + 40, clips.SIDE, 3)
    bar = frame[clips.SIDE :].astype(int)
    move = np.flatnonzero((bar[..., 0] > 200).any(0))
    name = np.flatnonzero((bar[..., 2] - bar[..., 0] > 60).any(0))
    assert len(move) and len(name) and move.max() + 8 < name.min()


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
