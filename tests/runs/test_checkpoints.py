import json
from pathlib import Path

import pytest

from g1_ray.models.manifest import MANIFEST, fault_of
from g1_ray.runs.checkpoints import checkpoints, newest, prune, published


def write(folder: Path, text: str = "weights") -> None:
    with published(folder) as beside:
        (beside / "learner").mkdir()
        (beside / "model.safetensors").write_text(text)
        (beside / "learner" / "state.json").write_text("{}")
        (beside / "README.md").write_text("a card")


def test_a_checkpoint_lists_a_checksum_for_every_file(tmp_path: Path):
    write(tmp_path / "step-1")
    manifest = json.loads((tmp_path / "step-1" / MANIFEST).read_text())
    assert set(manifest) == {"model.safetensors", "learner/state.json"}
    assert fault_of(tmp_path / "step-1") == ""
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]  # nothing is left beside it


def test_a_card_may_be_written_on(tmp_path: Path):
    write(tmp_path / "step-1")
    (tmp_path / "step-1" / "README.md").write_text("license: mit")
    assert fault_of(tmp_path / "step-1") == ""
    (tmp_path / "step-1" / "README.md").unlink()
    assert fault_of(tmp_path / "step-1") == ""


def test_damage_is_named(tmp_path: Path):
    write(tmp_path / "step-1")
    (tmp_path / "step-1" / "model.safetensors").write_text("weighta")
    assert "model.safetensors is not what was written" in fault_of(tmp_path / "step-1")
    (tmp_path / "step-1" / "model.safetensors").unlink()
    assert "model.safetensors is missing" in fault_of(tmp_path / "step-1")
    (tmp_path / "step-1" / MANIFEST).unlink()
    assert "it is no checkpoint" in fault_of(tmp_path / "step-1")


def test_an_unfinished_checkpoint_is_not_there(tmp_path: Path):
    write(tmp_path / "step-1")
    (tmp_path / ".step-2.part").mkdir()  # where a killed process was writing
    (tmp_path / ".step-2.part" / "model.safetensors").write_text("half")
    with pytest.raises(RuntimeError), published(tmp_path / "step-3") as failing:
        (failing / "model.safetensors").write_text("half")
        raise RuntimeError("out of disk")
    assert checkpoints(tmp_path) == [tmp_path / "step-1"]
    write(tmp_path / "step-2")  # what the crash left is in nobody's way
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]
    assert newest(tmp_path)[0] == tmp_path / "step-2"


def test_a_checkpoint_replaces_an_older_one_of_its_step(tmp_path: Path):
    write(tmp_path / "step-1", "old")
    write(tmp_path / "step-1", "new")
    assert (tmp_path / "step-1" / "model.safetensors").read_text() == "new" and fault_of(tmp_path / "step-1") == ""


def test_the_latest_is_the_newest_that_is_intact(tmp_path: Path):
    assert newest(tmp_path)[0] is None
    for step in (9, 10, 100):
        write(tmp_path / f"step-{step}")
    assert newest(tmp_path)[0] == tmp_path / "step-100"
    (tmp_path / "step-100" / "model.safetensors").write_text("?")
    assert newest(tmp_path)[0] == tmp_path / "step-10"


def test_the_newest_few_are_kept(tmp_path: Path):
    for step in (9, 10, 100):
        write(tmp_path / f"step-{step}")
    prune(tmp_path, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-10", "step-100"]
    with pytest.raises(AssertionError):
        prune(tmp_path, keep=1)
