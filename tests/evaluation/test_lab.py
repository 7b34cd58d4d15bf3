"""The lab: what interventions do to a state, and what they show of a model that is known."""

import asyncio
import math

import numpy as np
import pytest

pytest.importorskip("torch")

from envs import Codec, Task  # noqa: E402
from g1_ray.config import EngineConfig
from g1_ray.evaluation.lab import INTERVENTIONS, Lab, case_of, experiment, lab_states, lab_table, shuffled, write_labs
from g1_ray.models.chat import Chat  # noqa: E402
from g1_ray.models.find import MODELS
from g1_ray.types import Sampling  # noqa: E402

TASKS = [
    Task.make("2048", reasoning={"size": 3}, perception={"tile_px": 28}),
    Task.make("shisen", reasoning={"rows": 4, "cols": 4}, perception={"tile_px": 28}),
    Task.make("swap", reasoning={"rows": 5, "cols": 5, "kinds": 4}, perception={"tile_px": 28}),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_interventions_change_one_thing(task):
    codec = Codec(task)
    for number, state in enumerate(lab_states(task, 4)):
        cases = {name: case_of(state, name, number) for name in INTERVENTIONS}
        assert cases["as is"].state == state and cases["as is"].begun == ""
        board = state.game().perception()
        for name, wrong in (("true perception", 0), ("1 cell wrong", 1), ("3 cells wrong", 3)):
            case = cases[name]
            seen = codec.score_perception(codec.read(case.begun).perception, board)
            assert (case.state, seen.wrong, seen.missing, seen.extra) == (state, wrong, 0, 0)
        blank = cases["blank image"].state
        assert len(np.unique(blank.draw().reshape(-1, 3), axis=0)) == 1 and blank.data == state.data
        assert Codec(blank.task).prompt() == codec.prompt() and (blank.game().perception() == board).all()
        moved = cases["shuffled tiles"].state.game().perception()
        assert sorted(moved.ravel()) == sorted(board.ravel()) and cases["shuffled tiles"].state.game().legal_actions()
        assert case_of(state, "3 cells wrong", number) == cases["3 cells wrong"]
    with pytest.raises(ValueError, match="unknown intervention"):
        case_of(state, "hypnosis", 0)


def test_shuffling_moves_most_tiles():
    changed = []
    for seed, state in enumerate(lab_states(TASKS[1], 10)):
        moved = shuffled(state, np.random.default_rng(seed))
        changed.append((moved.game().perception() != state.game().perception()).mean())
    assert np.mean(changed) > 0.3


@pytest.fixture(scope="module")
def labs() -> list[Lab]:
    """What the shipped cold-started model does on 60 states of its two games."""
    from g1_ray.engines.transformers import TransformersEngine

    path = str(MODELS / "tiny-coldstart")
    chat = Chat(path)

    async def run() -> list[Lab]:
        config = EngineConfig(kind="transformers", gpus=0, max_model_len=512)
        engine = TransformersEngine(path, config, "float32", Sampling())
        await engine.start()
        sampling = Sampling(0.0, 1.0, 160)
        made = [
            await experiment(task.name, "cold", lab_states(task, 60), chat, engine.generate, sampling)
            for task in TASKS[:2]
        ]
        await engine.stop()
        return made

    return asyncio.run(run())


@pytest.mark.parametrize("number", [0, 1])
def test_interventions_behave(labs, number):
    lab = labs[number]
    found = lab.interventions
    assert list(found) == list(INTERVENTIONS)
    true = found["true perception"]
    assert true.p_acc == 1 and true.r_acc == true.reward_rate  # by construction
    as_is = found["as is"]
    assert as_is.p_acc > 0.95 and abs(true.reward_rate - as_is.reward_rate) < 0.1  # it reads well: the truth is no news
    assert found["blank image"].p_acc <= 0.05 and found["blank image"].cell_acc < 0.7
    assert found["blank image"].reward_rate < as_is.reward_rate
    assert found["1 cell wrong"].p_acc == found["3 cells wrong"].p_acc == 0
    assert found["3 cells wrong"].reward_rate < as_is.reward_rate  # it thinks about what it was told
    assert found["shuffled tiles"].p_acc > 0.9  # it looks
    assert math.isnan(found["no perception"].p_acc)
    matrix = np.array(lab.confusion)
    assert matrix.sum() == 60 * np.array(lab.cells).size and np.trace(matrix) > 0.98 * matrix.sum()
    assert np.min(lab.cells) > 0.9


def test_findings_are_kept(labs, tmp_path):
    write_labs(tmp_path, labs[:1])
    write_labs(tmp_path, labs[1:])
    import json

    kept = json.loads((tmp_path / "lab.json").read_text())
    assert list(kept) == ["2048, cold", "shisen, cold"]
    assert kept["2048, cold"]["interventions"]["no perception"]["p_acc"] is None
    assert len(lab_table(labs)) == 1 + 2 * len(INTERVENTIONS)
