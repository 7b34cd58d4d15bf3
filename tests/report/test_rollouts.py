"""What a page has of a run's rollouts and results, without a browser."""

from dataclasses import replace

import pytest

from envs import State
from envs.lookahead import Worth
from g1_ray.report import sheets
from g1_ray.report.facts import tables
from g1_ray.report.rollouts import TRAINING, evenly, look_at, read_training
from g1_ray.runs import progress


def test_several_processes_make_the_same_page(run, tmp_path):
    played, _ = read_training(run / "trajectories", 1000, True)
    worths = {"2048": Worth(), "moved": Worth()}
    some = played * 4
    assert sheets.pack_page(some, worths, workers=2).blocks == sheets.pack_page(some, worths).blocks


def test_moves_of_training_are_worth_what_it_gives_and_those_of_an_evaluation_their_own(run):
    played, _ = read_training(run / "trajectories", 1000, True)
    one = next(rollout for rollout in played if rollout.game == "2048")
    worths = {"2048": Worth("score", 3)}
    for player, worth in ((TRAINING, worths["2048"]), ("greedy", Worth("score"))):
        (state, *_) = look_at([replace(one, player=player)], worths).states
        expected = worth.table(State.from_bytes(one.rows[0]["state"]).game()).rewards
        assert sorted({reward for reward, _ in state.moves}) == sorted({*expected.tolist()})


@pytest.mark.parametrize("workers", [1, 2])
def test_how_many_rollouts_are_looked_at_is_told(run, monkeypatch, capsys, workers):
    monkeypatch.setattr(progress, "SECONDS_OF_SILENCE", 0.0)
    played, _ = read_training(run / "trajectories", 1000, True)
    sheets.pack_page(played * 4, {"2048": Worth(), "moved": Worth()}, workers=workers)
    said = [line for line in capsys.readouterr().out.splitlines() if " so far, " in line]
    assert said[0].startswith("32 of 192 rollouts, ") and said[-1].startswith("192 of 192 rollouts, ")
    assert all(line.endswith(" left") for line in said)


def test_sheets_that_are_full_take_fewer_rollouts(run, monkeypatch):
    played, _ = read_training(run / "trajectories", 1000, True)
    monkeypatch.setattr(sheets, "SHEET_PIXELS", 28 * 28 * 12)
    packed = sheets.pack_page(played, {})
    kept = len(packed.listed["rollouts"]["game"])
    assert 0 < kept < len(played) and all(len(task["kinds"]) <= 12 for task in packed.tasks)


def test_rollouts_are_drawn_evenly_and_groups_stay_whole(run):
    assert (
        evenly(10, 4).tolist() == [0, 3, 6, 9] and evenly(3, 10).tolist() == [0, 1, 2] and evenly(0, 5).tolist() == []
    )
    played, total = read_training(run / "trajectories", 24, True)
    assert total == 48 and [p.place for p in played] == [*range(6)] * 4
    assert sorted({p.number for p in played})[::3] == [10, 17]


def test_results_are_tables_with_the_columns_of_the_terminal():
    nan = float("nan")
    rows = [
        {"game": "a", "player": "x", "score": [1.0, 0.5, 2.0], "scoring": [1.0, nan, 2.0], "p_acc": nan},
        {
            "game": "a",
            "player": "y",
            "score": None,
            "won": 3,
            "boards": 4,
            "unreadable": 0.25,
            "causes": {"malformed": 1},
        },
    ]
    (first,) = tables(rows)
    assert [column["name"] for column in first["columns"]] == ["player", "score", "boards won", "unreadable"]
    assert first["rows"] == [["x", [1.0, 0.5, 2.0], None, None], ["y", None, "3 of 4", "0.250, most malformed"]]
    assert [t["title"] for t in tables([{"game": "a", "player": "x"}, {"game": "b", "player": "x"}])] == ["a", "b"]
    assert tables([]) == []
