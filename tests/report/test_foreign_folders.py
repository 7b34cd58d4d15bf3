"""A folder that comes from elsewhere does not say what is run, what is opened, or what a terminal does."""

import json
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folders import config_in, groups_of, small_config, small_group, write_evaluation
from PIL import Image

from envs import State, Task, perception
from g1_ray.evaluation.folder import EvaluationFolder, Protocol
from g1_ray.evaluation.job import Entry
from g1_ray.evaluation.moves import write_moves
from g1_ray.evaluation.named import parse_game, parse_player
from g1_ray.evaluation.play import Move, Run
from g1_ray.runs.layouts import MOVES, TURNS
from g1_ray.runs.run_folder import RunFolder
from jobs.__main__ import main

STEERING = "\x1b]0;owned\x07\x1b]52;c;aGk=\x07\x9b31m\u202etxet\r\n<answer>up</answer>"


@pytest.fixture
def run(tmp_path):
    """A run with an evaluation."""
    config = config_in(tmp_path, name="run")
    folder = RunFolder.open(config)
    for group in groups_of(config, 1):
        folder.keep_group(group)
    folder.log(1, {"2048/reward": 1.0})
    folder.close()
    write_evaluation(folder.path / "eval", config)
    return folder.path


def commands(run):
    page = ["--rollouts", "1", "--workers", "1", "--out", str(run / "page.html")]
    yield ["report", str(run), *page]
    yield ["explain", f"{run}:10"]
    yield ["explain", f"{run}:2048/oracle/5/0"]
    yield ["export", str(run), "--to", "datasets", "--out", str(run / "export")]


@pytest.mark.parametrize("what", ["game", "reward"])
def test_nothing_is_imported_because_a_file_says_so(run, tmp_path, monkeypatch, capsys, what):
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = json.loads((run / "config.json").read_text())
    config["games"][0][what] = "evil_module:2048"
    (run / "config.json").write_text(json.dumps(config))
    for command in commands(run):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "config.json" in said and "--import evil_module" in said and said.count("\n") <= 3
    main(["runs", str(run)])
    with pytest.raises(ValueError, match="another|goes on|steps were trained"):
        RunFolder.open(config_in(tmp_path, name="run", seed=5), resume=True)
    assert not (tmp_path / "ran").exists() and "evil_module" not in sys.modules
    main([*next(commands(run)), "--import", "evil_module"])
    assert (tmp_path / "ran").exists()
    sys.modules.pop("evil_module")


def test_no_folder_of_photos_is_opened_because_a_state_says_so(tmp_path, monkeypatch, capsys):
    for name in ("ann", "bob", "cat", "dog", "eel"):
        (tmp_path / "private" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "private" / name / f"{i}.png")
    private = str(tmp_path / "private")
    task = Task.make("2048", reasoning={"size": 2, "goal": 32}, perception={"tiles": "folder", "path": private})
    folder = RunFolder.open(small_config(tmp_path))
    folder.log(1, {"2048/reward": 1.0})
    folder.keep_group(small_group(0, task))
    folder.close()
    monkeypatch.setattr(perception, "FOLDERS", opened := set())
    monkeypatch.setattr("envs.task.FOLDERS", opened)
    monkeypatch.setattr("jobs.options.FOLDERS", opened)
    Task.from_json.cache_clear()
    command = ["report", str(folder.path), "--workers", "1"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "000000.parquet" in said and private in said and "--photos" in said
    assert not (folder.path / "report.html").exists() and not opened
    assert main([*command, "--photos", private]) == 0
    Task.from_json.cache_clear()


@pytest.mark.parametrize("command", ["explain group", "explain move", "explain answer"])
def test_answers_do_not_steer_the_terminal(tmp_path, capsys, command):
    task = Task.make("2048", reasoning={"size": 3})
    state = State.start(task, 0)
    folder = RunFolder.open(small_config(tmp_path))
    group = small_group(0, task)
    object.__setattr__(group.rollouts[0].turns[0], "text", STEERING)
    folder.keep_group(group)
    folder.close()
    move = Move(state, None, False, 0.0, 0.0, 0.0, False, False, text=STEERING, cause="no answer")
    write_moves(folder.path / "eval" / "moves" / "a.parquet", "2048", "me", [Run(0, (move,))])
    words = {
        "explain group": [f"{folder.path}:0"],
        "explain move": [f"{folder.path}:2048/me/0/0"],
        "explain answer": ["2048", "--answer", STEERING],
    }[command]
    assert main(["explain", *words]) == 0
    said = capsys.readouterr().out
    assert not {sign for sign in said if not sign.isprintable()} - {"\n"}
    assert command == "explain answer" or "\\x1b]0;owned\\x07" in said


def column(kind, rows, size):
    """A column that is small on disk and large in memory."""
    if pa.types.is_list(kind):
        return pa.array([[7] * (size // 4)] * rows, kind)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return pa.array(["x" * size] * rows).cast(kind)
    return pa.array([0] * rows).cast(kind)


@pytest.mark.parametrize("layout", [TURNS, MOVES], ids=["turns", "moves"])
@pytest.mark.parametrize("rows, size, wide", [(4000, 1 << 19, "text"), (40, 1 << 22, "versions"), (3_000_000, 0, "")])
def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path, layout, rows, size, wide):
    if wide == "versions" and layout is MOVES:
        pytest.skip("moves have no lists")
    path, schema = tmp_path / "bomb.parquet", layout.schema
    few = min(rows, 40)
    table = pa.table([column(field.type, few, size if field.name == wide else 0) for field in schema], schema=schema)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(rows // few if rows < 10_000 else 1):
            writer.write_table(table if rows < 10_000 else pa.concat_tables([table] * (rows // few)))
    assert path.stat().st_size < 4e6
    begun = time.process_time()
    with pytest.raises(ValueError, match="bomb.parquet: .* MB that unpack to more than"):
        layout.rows(path)
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("one, two", [("a/b", "a-b"), ("A", "a"), ("x y", "x-y")])
def test_two_players_never_have_one_file(tmp_path, one, two):
    players = [parse_player("oracle").model_copy(update={"name": name}) for name in (one, two)]
    entries = [Entry(parse_game("2048"), player) for player in players]
    with pytest.raises(ValueError, match="would both be kept in .*\n.*NAME=PLAYER"):
        EvaluationFolder(tmp_path / "e", entries, Protocol(1, 1))
    EvaluationFolder(tmp_path / "e", entries[:1], Protocol(1, 1)).close()
    with pytest.raises(ValueError, match="would both be kept in"):
        EvaluationFolder(tmp_path / "e", entries[1:], Protocol(1, 1))  # which is joined to what is there


def test_a_reply_in_a_file_that_leads_elsewhere_is_not_written_on(run, tmp_path):
    (tmp_path / "mine").write_text("mine\n")
    for name in ("metrics.jsonl", "notes.jsonl"):
        (run / name).unlink()
        (run / name).symlink_to(tmp_path / "mine")
    folder = RunFolder(run)
    for write in (lambda: folder.log(2, {}), lambda: folder.note("x")):
        with pytest.raises(ValueError, match="is a link"):
            write()
    assert (tmp_path / "mine").read_text() == "mine\n"
