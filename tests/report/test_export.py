"""What other tools see of a run: `datasets` shows its pictures, inspect-ai its evaluation."""

import asyncio
import base64
import io
import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from folders import small_config, small_group
from inspect_ai.log import list_eval_logs, read_eval_log, read_eval_log_sample_summaries
from PIL import Image

import envs.task
from envs import PLAYERS, Codec, State, Task, game_names
from g1_ray.evaluation.moves import SCHEMA, file_name, write_moves
from g1_ray.evaluation.play import Question, Reply, play, play_asked
from g1_ray.runs import progress
from g1_ray.runs.reading import sources_of
from g1_ray.runs.run_folder import RunFolder
from g1_ray.runs.trajectories import SCHEMA as TURNS
from jobs.__main__ import main

MOVES, SEEDS = 5, (7, 8, 9)
TASK = Task.make("2048", reasoning={"size": 3}, perception={"tiles": "numbers", "tile_px": 28})


async def answer(question: Question) -> Reply:
    """Tells the board and the oracle's move; every third answer is no move."""
    game = question.state.game()
    if question.move % 3 == 2:
        return Reply("no idea", tokens=2, prompt_tokens=30, seconds=0.5)
    text = Codec(question.state.task).write(game.perception(), "well", game.oracle())
    return Reply(text, tokens=20, prompt_tokens=30, seconds=0.5)


@pytest.fixture(scope="module")
def runs():
    """Of the oracle and of one that is asked, on three seeds."""
    oracle = [play(TASK, "oracle", PLAYERS["oracle"], seed, MOVES) for seed in SEEDS]
    asked = [asyncio.run(play_asked(TASK, "2048", "me, T=1", answer, seed, MOVES)) for seed in SEEDS]
    return {"oracle": oracle, "me, T=1": asked}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, runs):
    """A training run with trajectories and an evaluation."""
    folder = RunFolder.open(small_config(tmp_path_factory.mktemp("runs")))
    for number in range(3):
        folder.keep_group(small_group(number, TASK))
    folder.close()
    for player, played in runs.items():
        write_moves(folder.path / "eval" / "moves" / file_name("2048", player), "2048", player, played)
    return folder.path


@pytest.mark.parametrize(
    "options, told",
    [
        (["--to", "datasets"], ["rows of trajectories", "rows of moves"]),
        (["--to", "datasets", "--limit", "3"], ["3 rows of trajectories", "3 rows of moves"]),
        (["--to", "inspect"], ["6 of 6 runs"]),
        (["--to", "inspect", "--limit", "2"], ["4 of 4 runs"]),
    ],
)
def test_how_much_is_written_is_told(folder, tmp_path, monkeypatch, capsys, options, told):
    monkeypatch.setattr(progress, "SECONDS_OF_SILENCE", 0.0)
    source = folder / "eval" if "inspect" in options else folder
    assert main(["export", str(source), "--out", str(tmp_path), *options]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" left")]
    for what in told:
        done, of, total, *_ = next(line for line in reversed(said) if what in line).split()
        assert done == total and of == "of"


def load(path, cache):
    return load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(cache))


def test_datasets_shows_the_pictures_and_everything_that_the_source_has(folder, tmp_path, capsys):
    assert main(["export", str(folder), "--to", "datasets", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/trajectories.parquet: 6 rows",
        f"{tmp_path}/moves.parquet: {2 * 3 * MOVES} rows",
    ]
    prompt = Codec(TASK).prompt()
    for name, schema in {"trajectories": TURNS, "moves": SCHEMA}.items():
        rows = load(tmp_path / f"{name}.parquet", tmp_path / "cache")
        assert rows.column_names == ["image", "prompt", *schema.names]
        files = sorted((folder / name if name == "trajectories" else folder / "eval" / name).glob("*.parquet"))
        source = [row for file in files for row in pq.read_table(file).to_pylist()]
        for row, known in zip(rows, source, strict=True):
            assert np.array_equal(np.asarray(row["image"]), State.from_bytes(known["state"]).draw())
            assert row["prompt"] == prompt
            assert {key: row[key] for key in known} == known


def test_a_limit_is_kept_and_a_failure_leaves_nothing(folder, tmp_path, capsys):
    assert main(["export", str(folder), "--to", "datasets", "--out", str(tmp_path), "--limit", "4"]) == 0
    assert {path.name: pq.read_metadata(path).num_rows for path in tmp_path.iterdir()} == {
        "trajectories.parquet": 4,
        "moves.parquet": 4,
    }
    rows = pq.read_table(folder / "trajectories" / "000000.parquet")
    broken = rows.set_column(rows.schema.get_field_index("state"), TURNS.field("state"), [[b"no"] * len(rows)])
    for number, table in enumerate((rows, broken)):
        (tmp_path / "run" / "trajectories").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / "run" / "trajectories" / f"{number}.parquet")
    assert main(["export", str(tmp_path / "run"), "--to", "datasets"]) == 2
    assert "not a state" in capsys.readouterr().err
    assert not list((tmp_path / "run" / "export").glob("*.parquet"))


def test_inspect_reads_scores_conversations_and_pictures(folder, runs, tmp_path, capsys):
    assert main(["export", str(folder), "--to", "inspect", "--out", str(tmp_path)]) == 0
    names = [f"2048--{player}.eval" for player in ("me-T-1", "oracle")]
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path / name}: 3 runs" for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    log = read_eval_log(str(tmp_path / names[0]), resolve_attachments=True)
    assert (log.status, log.eval.task, log.eval.model) == ("success", "2048", "me, T=1")
    assert log.eval.task_args == json.loads(runs["me, T=1"][0].moves[0].state.task.to_json())
    played = runs["me, T=1"]
    assert [sample.id for sample in log.samples] == list(SEEDS)
    for sample, run in zip(log.samples, played, strict=True):
        scores = {name: score.value for name, score in sample.scores.items()}
        assert scores == {
            "score": sum(move.gain for move in run.moves),
            "scoring": pytest.approx(np.mean([move.gain > 0 for move in run.moves])),
            "success": 0.0,
            "legal": pytest.approx(4 / 5),
            "p_acc": pytest.approx(4 / 5),
        }
        assert sample.metadata == {"seed": run.seed, "boards": 1, "boards_won": 0, "moves": MOVES}
        assert sample.model_usage["me, T=1"].output_tokens == 4 * 20 + 2 and sample.total_time == 2.5
        assert [message.role for message in sample.messages] == ["user", "assistant"] * MOVES
        for move, asked, said in zip(run.moves, sample.messages[::2], sample.messages[1::2], strict=True):
            image, words = asked.content
            kind, _, data = image.image.partition(",")
            assert kind == "data:image/png;base64" and words.text == Codec(TASK).prompt()
            with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
                assert np.array_equal(np.asarray(picture), move.state.draw())
            game = move.state.game()
            assert asked.metadata["legal_moves"] == [game.actions.write(action) for action in game.legal_actions()]
            assert said.text == move.text and said.metadata["gain"] == move.gain
            assert said.metadata["cause"] == move.cause and said.metadata["regret"] == move.regret
    assert log.stats.model_usage["me, T=1"].total_tokens == 3 * (5 * 30 + 4 * 20 + 2)
    means = {score.name: score.metrics for score in log.results.scores}
    values = [run.score for run in played]
    assert means["score"]["mean"].value == pytest.approx(np.mean(values))
    assert means["score"]["stderr"].value == pytest.approx(np.std(values, ddof=1) / 3**0.5)


def test_players_without_words_say_their_move_and_describe_no_board(folder, runs, tmp_path):
    assert main(["export", str(folder / "eval"), "--to", "inspect", "--out", str(tmp_path), "--limit", "1"]) == 0
    (sample,) = read_eval_log(str(tmp_path / "2048--oracle.eval")).samples
    first = runs["oracle"][0].moves[0]
    assert sample.messages[1].text == first.state.game().actions.write(first.action)
    assert sorted(sample.scores) == ["legal", "score", "scoring", "success"]


def test_inspects_own_tools_list_and_dump_the_logs(folder, tmp_path):
    assert main(["export", str(folder), "--to", "inspect", "--out", str(tmp_path)]) == 0
    logs = list_eval_logs(str(tmp_path))
    assert [info.task for info in logs] == ["2048"] * 2 and len({info.task_id for info in logs}) == 2
    path = tmp_path / "2048--oracle.eval"
    summaries = read_eval_log_sample_summaries(str(path))  # what the viewer's list shows
    assert [(line.id, line.completed, line.metadata["seed"]) for line in summaries] == [(s, True, s) for s in SEEDS]
    command = [sys.executable, "-c", "from inspect_ai._cli.main import main; main()", "log", "dump", str(path)]
    dumped = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len(dumped["samples"]) == 3 and dumped["results"]["scores"][0]["metrics"]["mean"]["value"] > 0


def test_won_boards_are_the_share_of_boards(tmp_path):
    task = Task.make("2048", reasoning={"size": 3, "goal": 16}, perception={"tile_px": 28})
    run = play(task, "oracle", PLAYERS["oracle"], 3, 60)
    assert run.successes == run.boards - 1 > 1
    write_moves(tmp_path / "moves" / "a.parquet", "small", "oracle", [run])
    assert main(["export", str(tmp_path), "--to", "inspect"]) == 0
    (sample,) = read_eval_log(str(tmp_path / "export" / "a.eval")).samples
    assert sample.scores["success"].value == pytest.approx(run.successes / run.boards)


def test_games_that_live_elsewhere_are_imported_where_the_command_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "far_away.py").write_text(
        "from envs import GameSpec, game_spec, register_game\n"
        'register_game(GameSpec("far", game_spec("2048").game_type, "another 2048", gym_name="Far"))\n'
    )
    config = {"games": [{"game": "far_away:far", "name": "far"}]}
    (tmp_path / "run" / "eval" / "moves").mkdir(parents=True)
    (tmp_path / "run" / "eval" / "moves" / "a.parquet").touch()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(envs.task.GAMES, "far", None)  # and undone: taken out again
    for folder in ("run", "run/eval"):
        envs.task.GAMES.pop("far", None)
        sys.modules.pop("far_away", None)
        with pytest.raises(ValueError, match="config.json: the game 'far_away:far' .*\n.*: --import far_away"):
            sources_of(tmp_path / folder)
        assert "far" not in game_names() and "far_away" not in sys.modules
        assert main(["export", str(tmp_path / folder), "--to", "datasets", "--import", "far_away"]) == 2
        assert "a.parquet: no parquet file" in capsys.readouterr().err
        assert "far" in game_names() and list(sources_of(tmp_path / folder)) == ["moves"]


@pytest.mark.parametrize(
    "more, message",
    [
        (["--to", "datasets"], "give the folder of a training run"),
        (["--to", "inspect"], "give the folder of a training run"),
        (["--to", "datasets", "--limit", "-1"], "--limit -1"),
    ],
)
def test_mistakes_are_answered_in_a_line(tmp_path, capsys, more, message):
    assert main(["export", str(tmp_path), *more]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_a_run_without_an_evaluation_has_no_log(tmp_path, capsys):
    folder = RunFolder.open(small_config(tmp_path))
    folder.keep_group(small_group(0, TASK))
    folder.close()
    assert main(["export", str(folder.path), "--to", "inspect"]) == 2
    assert "no evaluation; play one with g1-ray evaluate" in capsys.readouterr().err
    assert not (folder.path / "export").exists()
