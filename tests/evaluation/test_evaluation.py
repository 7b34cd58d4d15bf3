"""Evaluations as users run them: over Ray, killed and gone on with, with models, a recorded person, grids, the lab."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")

from endpoints import reply, serving  # noqa: E402

from g1_ray.config import GameConfig  # noqa: E402
from g1_ray.evaluation.evaluation import Evaluation  # noqa: E402
from g1_ray.evaluation.folder import Protocol  # noqa: E402
from g1_ray.evaluation.grid import variants  # noqa: E402
from g1_ray.evaluation.job import Entry, Job, RunOver, work  # noqa: E402
from g1_ray.evaluation.moves import read_runs  # noqa: E402
from g1_ray.evaluation.named import parse_game, parse_player  # noqa: E402
from g1_ray.models.find import MODELS  # noqa: E402
from jobs.__main__ import main  # noqa: E402

SMALL = ["2048?size=3&tile_px=28", "shisen?rows=4&cols=4&tile_px=28"]


def evaluate(*argv: str) -> int:
    return main(["evaluate", *argv])


@pytest.mark.xdist_group("ray")
def test_a_table_of_everyone(ray_cluster, tmp_path, capsys):
    """Classic players, a person, a model at two temperatures: on the same seeds, and again without playing anew."""
    record = tmp_path / "me.parquet"
    for seed in ("0", "1"):
        spec = ["shisen", "--reasoning", "rows=4,cols=4", "--perception", "tile_px=28"]
        assert main(["play", *spec, "--player", "oracle", "--moves", "12", "--seed", seed, "--save", str(record)]) == 0
    players = ["uniform", f"me=human:{record}", "oracle", "cold=tiny-coldstart", "sure=tiny-coldstart?temperature=0"]
    command = ["--games", SMALL[1], "--players", *players, "--runs", "2", "--moves", "12", "--against", "uniform"]
    out = tmp_path / "out"
    capsys.readouterr()
    assert evaluate(*command, "--out", str(out), "--clips", "mp4", "--lab", "12") == 0
    told = capsys.readouterr().out
    results = {line["player"]: line for line in json.loads((out / "results.json").read_text())}
    assert list(results) == ["uniform", "me", "oracle", "cold", "sure"]
    assert results["me"]["score"] == results["oracle"]["score"] and results["oracle"]["scoring"] == [100, 100, 100]
    assert results["sure"]["p_acc"] > 0.9 and results["sure"]["tokens"] > 20 and results["oracle"]["p_acc"] is None
    assert results["sure"]["difference"][0] > 0 and "score less uniform's" in told
    files = sorted(path.name for path in (out / "moves").iterdir())
    assert len(files) == 5 and all(len(read_runs(out / "moves" / name)) == 2 for name in files)
    assert len(list(out.glob("*.mp4"))) == 5
    labs = json.loads((out / "lab.json").read_text())
    assert len(labs) == 2 and "true perception" in told

    replies = (out / "replies.jsonl").read_text()
    table = (out / "table.md").read_text()
    assert evaluate(*command, "--out", str(out)) == 0
    assert (out / "replies.jsonl").read_text() == replies and (out / "table.md").read_text() == table
    assert "5 of 5 lines of the table are there" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_table(tmp_path):
    """Killed at a random moment of its playing, twice: the table is that of an undisturbed run, to the letter."""

    def start(out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "jobs.evaluate", "--games", *SMALL, "swap", "--runs", "12", "--out", str(out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    whole, broken = start(tmp_path / "whole"), None
    assert whole.wait(120) == 0
    for _ in range(2):
        broken = start(tmp_path / "broken")
        assert broken.stdout is not None
        while " is done, " not in broken.stdout.readline():
            assert broken.poll() is None
        time.sleep(random.random() * 1.5)
        os.killpg(broken.pid, signal.SIGKILL)
        broken.wait()
    again = start(tmp_path / "broken")
    assert again.wait(120) == 0
    assert (tmp_path / "broken" / "table.md").read_text() == (tmp_path / "whole" / "table.md").read_text()
    for path in (tmp_path / "whole" / "moves").iterdir():
        assert read_runs(tmp_path / "broken" / "moves" / path.name) == read_runs(path)


def test_variants_of_a_game():
    made = variants(parse_game("s=shisen?rows=4&cols=4&tile_px=28"))
    names = ["heldout", "smaller", "larger", "larger2", "perturbed1", "perturbed2", "perturbed3"]
    assert [game.name for game in made] == ["s", *(f"s.{name}" for name in names)]
    tasks = [game.task() for game in made]
    assert len(set(tasks)) == len(tasks) and tasks[1].perception.split == "heldout"
    shapes = [(task.reasoning.rows, task.reasoning.cols) for task in tasks[2:5]]
    assert shapes == [(4, 3), (4, 5), (6, 6)]  # 3x3 and 5x5 have a cell that pairs with none
    assert tasks[-1].perception.noise > 0 and tasks[-1].perception.tile_px == 28
    level = variants(GameConfig(game="2048", reasoning=1, name="l"))
    assert {game.task().reasoning.size for game in level} == {level[0].task().reasoning.size + d for d in (-1, 0, 1, 2)}


@pytest.mark.xdist_group("ray")
def test_a_grid_is_a_heat_map(ray_cluster, tmp_path):
    out = tmp_path / "out"
    games = ["--games", "2048?size=3&tile_px=28"]
    assert evaluate(*games, "--players", "greedy", "--runs", "2", "--moves", "4", "--grid", "--out", str(out)) == 0
    assert (out / "grid.png").stat().st_size > 5000
    assert len(json.loads((out / "results.json").read_text())) >= 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("orcale", "did you mean 'oracle'"),
        ("tiny-bse", "did you mean 'tiny-base'"),
        ("http://host/v1", "URL?model=NAME"),
        ("http://host/v1?model=m&key_env=NOT_SET_AT_ALL", "that environment variable is not set"),
        ("oracle?temperatur=1", "unknown option 'temperatur'; it has none"),
        ("oracle?kind=human", "unknown option 'kind'"),
        ("http://h/v1?model=m&dtype=float32", "unknown option 'dtype'"),
        ("http://h/v1?model=m&engine.gpus=1", "unknown option 'engine'"),
        ("http://h/v1?model=m&api-version=1", "query.NAME=VALUE"),
        ("http://h/v1?model=m&url=http://g/v1", "unknown option 'url'"),
        ("http://h/v1?model=m&extra.temperature=1", "temperature has an option of its own"),
        ("http://h/v1?model=m&limit=none&max_tokens=64", "with limit = none it is not sent; leave out one"),
        ("http://h/v1?model=m&top_p=none&seed=3", "seed = '3' is not one of the choices; known: sent, none"),
        ("http://h/v1?model=m&temperature=no", "temperature = 'no': expected a number"),
        ("http://h:99999/v1?model=m", "is no address: "),
        ("http:///v1?model=m", "is no address: "),
        ("ftp://h/v1?model=m", "begins with http:// or https://"),
        ("localhost:8000/v1?model=m", "begins with http:// or https://"),
        ("http://me:s3cret@h/v1?model=m", "key_env=VARIABLE"),
        ("http://h/v1?model=m&api_key=s3cret", "key_env=VARIABLE"),
        ("http://h/v1?model=m&query.sig=s3cret", "key_env=VARIABLE"),
        ("http://h/v1?model=m&extra.provider.token=s3cret", "key_env=VARIABLE"),
        ("tiny-base?temperatur=1", "did you mean 'temperature'"),
        ("human:nowhere.parquet", "no such file"),
        ("tiny-base?engine.kinds=vllm", "did you mean 'kind'"),
        ("tiny-base?temperature=hot", "expected a number"),
        ("tiny-base?temperature", "'temperature': expected ?OPTION=VALUE&OPTION=VALUE in 'tiny-base?temperature'"),
    ],
)
def test_players_that_are_none(text, message):
    with pytest.raises(ValueError) as error:
        parse_player(text)
    assert message in str(error.value) and len(str(error.value).splitlines()) <= 3
    assert "s3cret" not in str(error.value)


def test_players_and_games_are_named():
    player = parse_player("cold=tiny-coldstart?temperature=0&engine.kind=vllm&engine.gpus=0")
    assert (player.name, player.kind, player.what, player.temperature) == ("cold", "model", "tiny-coldstart", 0)
    assert player.engine == {"kind": "vllm", "gpus": 0}
    assert player.resolved_engine(4, 100).kind == "vllm" and parse_player("tiny-base").resolved_engine(0, 9).gpus == 0
    assert parse_player("tiny-base").resolved_engine(4, 100).gpus == 1
    game = parse_game("swap?reasoning=2&noise=0.3&reward=paper")
    assert (game.reasoning, game.perception, game.reward) == (2, {"noise": 0.3}, "paper")
    for text, message in (("2048?siz=3", "'size'"), ("2048?size=x", "expected int"), ("swop", "'swap'")):
        with pytest.raises(ValueError, match=message):
            parse_game(text)


def test_an_adapter_is_merged_into_its_model(tmp_path):
    """An adapter that adds nothing plays as its model does; one that adds something has other weights."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForImageTextToText

    from g1_ray.evaluation.play import Run
    from g1_ray.models.find import MODELS, merge_adapter

    base = str(MODELS / "tiny-coldstart")
    model = AutoModelForImageTextToText.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    adapted.save_pretrained(tmp_path / "idle")
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "busy")

    def moves(what: str) -> list[Run]:
        entry = Entry(parse_game(SMALL[0]), parse_player(f"x={what}?temperature=0&max_tokens=160"))
        return [news.run for batch in work(Job((entry,), (0,), 6)) for news in batch if isinstance(news, RunOver)]

    assert [move.text for move in moves(str(tmp_path / "idle"))[0].moves] == [
        move.text for move in moves(base)[0].moves
    ]
    merged = AutoModelForImageTextToText.from_pretrained(
        merge_adapter(str(tmp_path / "busy"), str(tmp_path / "merged"))
    )
    plain = dict(AutoModelForImageTextToText.from_pretrained(base).named_parameters())
    changed = {name for name, value in merged.named_parameters() if not torch.allclose(value, plain[name], atol=1e-6)}
    assert changed and all(".q_proj." in name or ".v_proj." in name for name in changed)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--players", "oracle", "oracle"], "two players are called 'oracle'"),
        (["--against", "nobody"], "--against nobody"),
        (["--against", "greedi"], "did you mean 'greedy'"),
        (["--lab", "4"], "--lab is for models"),
        (["--players", "tiny-base?engine.gpus=64"], "'tiny-base' asks for 64 GPUs, the largest node has "),
        (["--players", "tiny-base?engine.cpus=999"], "'tiny-base' asks for 999 CPUs, the largest node has "),
        (["--players", "tiny-base?engine.num_engines=2"], "engine.num_engines has no effect on one "),
        (["--players", "far=http://127.0.0.1:1/v1?model=m"], "connection refused"),
        (["--players", "far=http://nobody.invalid/v1?model=m"], "name of the host is not known"),
        (["--games", "swap?horizon=0", "--moves", "0"], "never ends"),
    ],
)
def test_evaluations_that_cannot_be(argv, message, capsys, tmp_path, monkeypatch):
    """Told in a few lines, before anything is started or written."""
    monkeypatch.setattr("g1_ray.cluster.join.join", lambda address: pytest.fail("nothing is to be started"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert evaluate(*argv, "--out", str(tmp_path / "out")) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) <= 3 and not (tmp_path / "out").exists()


@pytest.mark.xdist_group("ray")
def test_what_the_driver_has_reaches_the_workers(ray_cluster, tmp_path, monkeypatch, capsys):
    """A key and paths of the driver's own folder, neither of which a worker would find; a model too large for it."""
    keys = set()

    def respond(asked, headers):
        keys.add(headers["Authorization"])
        return reply("<answer>up</answer>")

    shutil.copytree(MODELS / "tiny-base", tmp_path / "lr=1")
    monkeypatch.setenv("ONLY_HERE", "s3cret")
    monkeypatch.chdir(tmp_path)
    assert main(["play", "2048", "--player", "greedy", "--moves", "2", "--save", "me=1.parquet"]) == 0
    command = ["--games", "2048", "--runs", "1", "--moves", "2", "--out", "out", "--players"]
    with serving(respond) as url:
        players = ["lr=1?max_tokens=32", "human:me=1.parquet", f"far={url}?model=m&key_env=ONLY_HERE"]
        assert evaluate(*command, *players) == 0
    assert keys == {"Bearer s3cret"}
    results = json.loads(Path("out/results.json").read_text())
    assert [line["player"] for line in results] == ["lr=1", "me=1.parquet", "far"]
    assert all(b"s3cret" not in path.read_bytes() for path in Path("out").rglob("*") if path.is_file())
    monkeypatch.setenv(
        "RAY_ADDRESS", ray_cluster.get_runtime_context().gcs_address
    )  # not of this machine, for all it knows
    capsys.readouterr()
    assert evaluate(*command[:-3], "--players", "tiny-base?engine.gpus=1") == 2
    assert "asks for 1 GPU, the largest node has 0 GPUs.\nGive it less" in capsys.readouterr().err


@pytest.mark.xdist_group("ray")
def test_a_recording_of_another_game_is_refused(ray_cluster, tmp_path, capsys):
    record = tmp_path / "me.parquet"
    assert main(["play", "2048", "--player", "greedy", "--moves", "5", "--save", str(record)]) == 0
    argv = ["--games", SMALL[0], "--players", f"human:{record}", "--runs", "1", "--moves", "5"]
    assert evaluate(*argv) == 2 and "played on another game" in capsys.readouterr().err
    assert evaluate(*argv[:-3], "2", "--moves", "5") == 2


def test_what_is_all_there_is_told_again_without_a_cluster(tmp_path, monkeypatch, capsys):
    game, player = parse_game("2048"), parse_player("oracle")
    evaluation = Evaluation.open(tmp_path, [Entry(game, player)], Protocol(2, 3))
    for job in evaluation.jobs():
        for batch in work(job):
            for news in batch:
                evaluation.hear(news)
    evaluation.folder.close()
    monkeypatch.setattr("g1_ray.cluster.join.join", lambda address: pytest.fail("nothing is left to play"))
    command = ["evaluate", "--games", "2048", "--players", "oracle", "--runs", "2", "--moves", "3", "--out"]
    assert main([*command, str(tmp_path)]) == 0
    assert "oracle" in capsys.readouterr().out
