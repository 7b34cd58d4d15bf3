"""Lists of tiles: what they say is so, and a model learns to notice it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from envs import Codec, Task
from g1_ray.coldstart.drill import SIDES, drill, lists
from g1_ray.models.tiny import PAPER_TEXT, make_tiny
from g1_ray.models.weights import load_model

PHOTOS = Task.make("shisen-photos", preset="procedural", perception={"tile_px": 28})


@pytest.mark.parametrize("task", [PHOTOS, Task.make("shisen", preset="paper")], ids=["photos", "tiles"])
def test_a_list_ends_where_two_tiles_are_alike_and_says_which(task):
    names, ended = set(Codec(task).names[1:]), 0
    for text in lists(task, 50, np.random.default_rng(0)):
        for shown in re.split(f"(?:{'|'.join(SIDES)}) ", text)[1:]:
            told, same, places = shown.strip().partition(" same ")
            tiles = re.findall(r"([a-z][a-z ]*?)(?: (\(\d, \d\))|$)", told)
            kinds = [kind for kind, _ in tiles]
            assert set(kinds) <= names and len(set(kinds)) == len(kinds) - bool(same)
            if same:
                first = next(where for kind, where in tiles if kind == kinds[-1])
                assert re.fullmatch(r"\(\d, \d\) " + re.escape(first), places) and tiles[-1][1] == ""
                ended += 1
    assert ended > 50


@pytest.fixture
def one_thread():
    """Two tests side by side, each with both cores, take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_model_learns_to_notice_them_and_is_written_back(tmp_path, one_thread):
    folder, told = str(tmp_path / "model"), []
    make_tiny(folder, [PHOTOS], 0, text=PAPER_TEXT)
    before = load_model(folder, dtype=torch.float32).state_dict()
    assert drill(folder, [PHOTOS], 5, 0, told.append) < 0.2
    sure = drill(folder, [PHOTOS], 250, 1, told.append)
    assert sure > 0.5 and told[-1].startswith("250 steps on lists") and told[-1].endswith(f"{sure:.2f}")
    after = load_model(folder, dtype=torch.float32).state_dict()
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert not any("visual" in name for name in moved) and len(moved) > 20
    assert (Path(folder) / "preprocessor_config.json").is_file() or (Path(folder) / "processor_config.json").is_file()
