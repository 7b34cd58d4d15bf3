"""What a run leaves behind, what it goes on from, and how it shows itself meanwhile."""

import io
import json
import re
import struct
import time
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from folders import small_config, small_group
from PIL import Image
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from envs import State, Task
from g1_ray.runs import checkpoints, progress
from g1_ray.runs.curves import save_curves, smooth
from g1_ray.runs.progress import Progress
from g1_ray.runs.run_folder import RunFolder
from g1_ray.runs.trajectories import TrajectoryWriter, packed_rows
from g1_ray.types import Fate


@pytest.fixture(scope="module")
def task():
    return Task.make("2048", reasoning={"size": 3}, perception={"tiles": "numbers", "tile_px": 28})


@pytest.fixture
def clock(monkeypatch):
    """The clock that progress is told by: it stands still until a test adds seconds to its `now`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def save_checkpoint(folder, step):
    """A checkpoint as the learner publishes it."""
    with checkpoints.published(folder.checkpoint(step)) as beside:
        (beside / "model.safetensors").write_bytes(b"weights")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_new_folder_holds_the_config_as_resolved(tmp_path):
    config = small_config(tmp_path)
    folder = RunFolder.open(config)
    assert folder.path == tmp_path / "small"
    assert json.loads((folder.path / "config.json").read_text())["rollout"]["group_size"] == 8
    assert RunFolder(folder.path).config == config


def test_a_folder_that_is_not_free_is_refused_with_the_fix(tmp_path):
    config = small_config(tmp_path)
    RunFolder.open(config).log(1, {"reward": 0.5})
    with pytest.raises(ValueError, match="holds a run already, 1 steps of it.\n.*--resume.*name=small-2"):
        RunFolder.open(config)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not the folder of a run"):
        RunFolder.open(small_config(tmp_path, name="other"))
    with pytest.raises(ValueError, match="no config.json"):
        RunFolder(tmp_path / "other")
    for changed in ({"seed": 3}, {"model": {"path": "tiny-coldstart"}}):
        with pytest.raises(ValueError, match="run with another (seed|model.path)"):
            RunFolder.open(small_config(tmp_path, **changed), resume=True)


def test_metrics_are_json_and_go_to_tensorboard(tmp_path):
    folder = RunFolder.open(small_config(tmp_path))
    assert folder.track() == [f"tensorboard --logdir {tmp_path}"]
    folder.log(1, {"2048/reward": 0.5, "loss": float("nan")})
    folder.log(2, {"2048/reward": 0.75})
    # Flushed while the run goes on.
    first, second = lines(folder.path / "metrics.jsonl")
    assert (first["step"], first["2048/reward"], first["loss"]) == (1, 0.5, None) and second["step"] == 2
    folder.close()
    scalars = [(v.tag, e.step, v.simple_value) for e in events_in(folder) for v in e.summary.value]
    assert scalars == [("2048/reward", 1, 0.5), ("2048/reward", 2, 0.75)]
    # Where a run goes on, or back, TensorBoard is told to forget what was logged from there on.
    save_checkpoint(folder, 1)
    folder.mark(1, num_issued=0)
    again = RunFolder.open(small_config(tmp_path), resume=True)
    again.track()
    for value in (0.25, 0.5):  # as after a learner's death
        again.log(2, {"2048/reward": value})
    again.close()
    begun = [event.step for event in events_in(folder) if event.session_log.status == event.session_log.START]
    assert begun == [1, 2, 2]


def events_in(folder):
    """TensorBoard's records: length and its checksum, an event and its checksum."""
    for path in sorted((folder.path / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_going_on_takes_back_what_came_after_the_checkpoint(tmp_path, task):
    config = small_config(tmp_path)
    folder = RunFolder.open(config)
    for step in (1, 2):
        folder.log(step, {"2048/reward": step})
        folder.log_fate(Fate(step, "2048", "trained", "", step, 0))
        folder.keep_group(small_group(step, task))
    folder.mark(2, num_issued=5)  # groups 0, 3 and 4 are in flight
    save_checkpoint(folder, 2)
    for step in (3, 4):
        folder.log(step, {"2048/reward": step})
    folder.log_fate(Fate(3, "2048", "dropped", "flat", 2, 0))  # after the checkpoint, though of the same step
    folder.log_fate(Fate(0, "2048", "trained", "", 3, 1))
    folder.keep_group(small_group(3, task))
    folder.close()
    assert len(list((folder.path / "trajectories").glob("*.parquet"))) == 2

    again = RunFolder.open(small_config(tmp_path, steps=900), resume=True)
    assert again.config.steps == 900 and again.goes_on_from == again.checkpoint(2)
    assert again.num_steps == 2 and [line["step"] for line in lines(again.path / "metrics.jsonl")] == [1, 2]
    fates = [(fate.group, fate.fate, fate.reason) for fate in again.ledger()]
    lost = [(number, "dropped", "lost") for number in (0, 3, 4)]
    assert fates == [(1, "trained", ""), (2, "trained", ""), *lost]
    assert len(list((folder.path / "trajectories").glob("*.parquet"))) == 1
    again.log(3, {"2048/reward": 3})
    again.log_fate(Fate(5, "2048", "trained", "", 3, 0))
    books = {"issued": 7, "trained": 3, "dropped": 3, "quarantined": 0, "in_flight": 1}
    report = again.write_report(books, 2.0, results=[])
    assert report["groups_add_up"] and report["ledger_agrees"] and report["last_metrics"]["step"] == 3
    assert json.loads((again.path / "report.json").read_text())["checkpoint"] == "checkpoints/step-2"
    wrong = again.write_report({**books, "trained": 4}, 2.0)
    assert not wrong["groups_add_up"] and not wrong["ledger_agrees"]


def test_what_a_curriculum_had_learned_comes_from_the_newest_checkpoint_that_has_it_whole(tmp_path):
    folder = RunFolder.open(small_config(tmp_path))
    assert folder.goes_on_from is None and folder.learned() is None
    for step in (1, 2):
        with checkpoints.published(folder.checkpoint(step)) as beside:
            (beside / "model.safetensors").write_bytes(b"weights")
            (beside / "learner").mkdir()
            state = {"extra": {"buffer": {"curriculum": {"step": step}}}}
            (beside / "learner" / "state.json").write_text(json.dumps(state))
    (folder.checkpoint(2) / "model.safetensors").write_bytes(b"wei")  # large, and not what is asked for
    assert folder.learned() == {"step": 2}
    (folder.checkpoint(2) / "learner" / "state.json").write_text("{}")
    assert folder.learned() == {"step": 1}


def test_going_on_without_a_checkpoint_starts_anew(tmp_path, task):
    folder = RunFolder.open(small_config(tmp_path))
    folder.log(1, {"reward": 1.0})
    folder.log_fate(Fate(0, "2048", "trained", "", 1, 0))
    folder.keep_group(small_group(0, task))
    folder.close()
    again = RunFolder.open(small_config(tmp_path), resume=True)
    assert again.num_steps == 0 and again.ledger() == [] and not list((folder.path / "trajectories").iterdir())


def test_a_damaged_checkpoint_is_passed_over_and_a_cut_off_line_too(tmp_path):
    folder = RunFolder.open(small_config(tmp_path))
    for step in (1, 2):
        folder.log(step, {"reward": 1.0})
        folder.mark(step, num_issued=0)
        folder.saved(step)
        save_checkpoint(folder, step)
    (folder.checkpoint(2) / "model.safetensors").write_bytes(b"wei")
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    folder.close()
    again = RunFolder.open(small_config(tmp_path), resume=True)
    assert again.goes_on_from == again.checkpoint(1) and again.num_steps == 1
    again.log(2, {"reward": 2.0})
    assert [line["step"] for line in lines(again.path / "metrics.jsonl")] == [1, 2]


def trained(out, steps=(1, 2)):
    folder = RunFolder.open(small_config(out))
    for step in steps:
        folder.log(step, {"reward": 1.0})
        folder.log_fate(Fate(step, "2048", "trained", "", step, 0))
        folder.mark(step, num_issued=0)
        folder.saved(step)
        save_checkpoint(folder, step)
    folder.close()
    return folder


SPOILS = {
    "flipped": lambda step: (step / "model.safetensors").write_bytes(b"weightz"),
    "cut": lambda step: (step / "model.safetensors").write_bytes(b"wei"),
    "lost": lambda step: (step / "model.safetensors").unlink(),
    "no manifest": lambda step: (step / "manifest.json").unlink(),
    **{
        repr(data): lambda step, data=data: (step / "manifest.json").write_bytes(data)
        for data in (b"", b"{}", b"[]", b"\xff\0", b'{"model.safetensors": 3}', b'{"../../config.json": "a"}')
    },
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_broken_checkpoint_is_told_kept_and_an_older_one_taken(tmp_path, caplog, spoil):
    folder = trained(tmp_path)
    spoil(folder.checkpoint(2))
    before = sorted(path.name for path in folder.checkpoint(2).iterdir())
    again = RunFolder.open(small_config(tmp_path), resume=True)
    again.close()
    assert again.goes_on_from == again.checkpoint(1) and again.num_steps == 1
    aside = folder.path / "checkpoints" / "broken-step-2"
    assert sorted(path.name for path in aside.iterdir()) == before
    told = [record.message for record in caplog.records]
    assert "step-2" in told[0] and "it is kept as broken-step-2" in told[0] and "1 steps are taken back" in told[-1]
    assert [line["step"] for line in lines(folder.path / "taken-back" / "metrics.jsonl")] == [2]
    assert [line.get("group") for line in lines(folder.path / "taken-back" / "ledger.jsonl")] == [2, None, None]


@pytest.mark.parametrize("steps", [(1,), (1, 2)])
@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_without_an_intact_checkpoint_a_run_is_refused_and_left_as_it_is(tmp_path, spoil, steps):
    folder = trained(tmp_path, steps)
    for step in steps:
        spoil(folder.checkpoint(step))
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(ValueError, match=f"{steps[-1]} steps were trained.*\n.*step-.*\n.*name=small-2") as error:
        RunFolder.open(small_config(tmp_path), resume=True)
    assert len(str(error.value).splitlines()) == 3
    after = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_a_run_that_lost_its_metrics_is_no_free_place(tmp_path):
    folder = trained(tmp_path)
    (folder.path / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match="holds a run already"):
        RunFolder.open(small_config(tmp_path))


def test_trajectories_open_with_datasets_and_states_draw_their_picture(tmp_path, task):
    from datasets import load_dataset

    folder = RunFolder.open(small_config(tmp_path))
    groups = [small_group(number, task) for number in range(3)]
    for group in groups:
        folder.keep_group(group)
    folder.close()
    files = [str(path) for path in sorted((folder.path / "trajectories").glob("*.parquet"))]
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 6 and [row["group"] for row in rows] == [0, 0, 1, 1, 2, 2]
    good, bad = rows[2], rows[3]
    turn = groups[1].rollouts[0].turns[0]
    assert good["completion_ids"] == turn.completion.token_ids.tolist() and good["logprobs"] == [-0.5] * 5
    assert good["versions"] == [3] * 5 and good["prompt_ids"] == list(range(7)) and good["game"] == "2048"
    assert good["action_text"] in {"0", "1", "2", "3"} or good["action_text"].isalpha()
    assert good["action"] == turn.action and good["reward_perception"] == 1.0 and good["perception_exact"]
    assert bad["action"] is None and bad["action_text"] == "" and bad["cause"] == "no answer"
    assert Task.from_json(good["task"]) == task
    assert np.array_equal(State.from_bytes(good["state"]).draw(), groups[1].start.draw())


def test_a_long_run_does_not_hold_its_trajectories_in_memory(tmp_path, task):
    writer = TrajectoryWriter(tmp_path, tokens_per_file=50)
    group = small_group(0, task)
    per_group = 2 * 7 + 5 + 6
    for _ in range(5):
        writer.add(packed_rows(group))
        assert writer._tokens < 50
    writer.flush()
    writer.flush()
    assert len(list(tmp_path.glob("*"))) == 5 * per_group // 50 + 1


def test_trajectories_that_cannot_be_written_are_written_later(tmp_path, task):
    folder = tmp_path / "there"
    folder.write_text("a file in the way")
    writer = TrajectoryWriter(folder, tokens_per_file=50)
    with pytest.raises(OSError):
        for number in range(8):
            writer.add(packed_rows(small_group(number, task)))
    folder.unlink()
    writer.add(packed_rows(small_group(8, task)))
    writer.flush()
    numbers = [row["group"] for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert numbers[0] == 0 and numbers[-1] == 8 and sorted(numbers) == numbers


def test_curves_show_every_game_and_leave_gaps_out(tmp_path):
    folder = RunFolder.open(small_config(tmp_path, trackers=[]))
    with pytest.raises(ValueError, match="metrics.jsonl"):
        folder.save_curves()
    rng = np.random.default_rng(0)
    for step in range(1, 61):
        metrics = {
            f"{game}/{name}": step / 60 + rng.normal(0, 0.1)
            for game in ("2048", "swap")
            for name in ("reward", "p_acc")
        }
        if step > 5:
            metrics["swap/r_acc"] = 0.5
        folder.log(step, metrics)
    with Image.open(folder.save_curves()) as picture:
        assert picture.width > 900
    table = (folder.path / "curves.csv").read_text().splitlines()
    assert table[0] == "step,2048/reward,2048/p_acc,2048/r_acc,swap/reward,swap/p_acc,swap/r_acc"
    assert len(table) == 61 and table[1].endswith(",") and table[-1].endswith(",0.5")
    with pytest.raises(ValueError, match="give the folder of a run"):
        save_curves(tmp_path / "nowhere")


def test_smoothing_is_a_centred_mean():
    values = np.array([0.0, 3.0, np.nan, 9.0, 12.0])
    assert smooth(values, 3).tolist() == [1.5, 1.5, 6.0, 10.5, 10.5]
    assert np.isnan(smooth(np.array([np.nan, 1.0, 2.0]), 1)[0])


def shown(config, monkeypatch, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=140)
    with Progress(config, console) as bar:
        bar.note("starting the actors")
        for step in (1, 2, 3):
            metrics = {"2048/reward": 1.0, "2048/p_acc": 0.5, "tokens_per_s": 1234.0, "staleness_mean": 1.0}
            bar.step(step, {**metrics, "step_s": 2.0, "staleness_max": 2.0})
    return console.file.getvalue()


def test_progress_is_plain_lines_off_a_terminal_and_not_too_many(tmp_path, monkeypatch):
    text = shown(small_config(tmp_path, steps=10), monkeypatch, terminal=False)
    assert "\x1b" not in text and text.startswith("starting the actors\n")
    told = text.splitlines()[1:]
    assert [line.split(" | ")[0] for line in told] == ["step 1 of 10", "step 3 of 10"]  # the first and the last
    assert "2048: reward 1.00 P_acc 0.50" in told[0] and "1,234 tokens/s, staleness 1.0 (most 2)" in told[0]
    assert "0:18 left" in told[0]  # nine more of two seconds each
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert len(shown(small_config(tmp_path, steps=10), monkeypatch, terminal=False).splitlines()) == 4


def test_progress_is_a_panel_on_a_terminal(tmp_path, monkeypatch):
    text = shown(small_config(tmp_path, steps=10), monkeypatch, terminal=True)
    assert "\x1b" in text and "step 3 of 10" in text and "P_acc" in text and "starting the actors" in text


def test_no_silence_is_long_where_there_is_no_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_OF_SILENCE", 0.5)
    out = io.StringIO()
    with Progress(small_config(tmp_path, steps=10), Console(file=out, width=200)) as bar:
        bar.note("starting the actors")
        time.sleep(2.5)
        bar.step(3, {"step_s": 2.0})
        time.sleep(2.5)
    lines = out.getvalue().splitlines()
    assert any(line.startswith("still starting the actors, 0:0") for line in lines[:3])
    assert any(line.startswith("still ") and "step 3 of 10" in line for line in lines[2:])


def test_a_run_that_its_minutes_will_end_is_told_by_them(tmp_path, clock):
    out = io.StringIO()
    with Progress(small_config(tmp_path, steps=1000, minutes=11), Console(file=out, width=200)) as bar:
        bar.step(1, {"step_s": 130.0})
        clock.now += 9 * 60
        bar.step(53, {"step_s": 10.0})
    first, last = out.getvalue().splitlines()
    assert first.startswith("step 1, minute 3 of 11 | ") and last.startswith("step 53, minute 11 of 11 | ")


def test_a_count_tells_its_total_and_the_time_left(monkeypatch, clock):
    monkeypatch.setattr(progress, "SECONDS_OF_SILENCE", 0.0)
    out = io.StringIO()
    with progress.Count("moves", 3000, 1000, Console(file=out, width=200)) as count:
        clock.now += 60
        count(2000)
        count(3000, "2048 oracle is done, 1 of 4")
    assert out.getvalue().splitlines() == [
        "2,000 of 3,000 moves, 1:00 so far, 1:00 left",
        "3,000 of 3,000 moves, 1:00 so far, 0:00 left, 2048 oracle is done, 1 of 4",
    ]


def test_a_count_is_not_silent_while_nothing_is_done(clock):
    out = io.StringIO()
    with progress.Count("rows", 40, console=Console(file=out, width=200)):
        for minute in (1, 2):
            clock.now += 60
            deadline = time.monotonic() + 30
            while len(out.getvalue().splitlines()) < minute and time.monotonic() < deadline:
                time.sleep(0.05)
    told = ["0 of 40 rows, 1:00 so far", "0 of 40 rows, 2:00 so far"]
    assert out.getvalue().splitlines() == told
    clock.now += 60
    time.sleep(1.2)
    assert out.getvalue().splitlines() == told  # it is silent when it is over


@pytest.mark.parametrize("width", [50, 80, 200])
def test_a_count_on_a_terminal_is_a_bar_with_what_was_said_last_under_it(width, clock):
    out = io.StringIO()
    with progress.Count("steps", 400, console=Console(file=out, width=width, force_terminal=True)) as count:
        clock.now += 10
        count(50, "loss 1.25, " + 30 * "and more ")
        count(100)
        count.bar.refresh()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n").split("\n")
    bars = [line for line in drawn if "100/400" in line]
    assert bars and all(line.rstrip().endswith("0:30 left") and len(line) <= width for line in bars)
    assert drawn[drawn.index(bars[0]) + 1].startswith("loss 1.25, and more")
    assert any(line.startswith("100 of 400 steps, 0:10 so far, 0:30 left, loss 1.25") for line in drawn)


def test_the_minutes_of_a_run_bound_the_time_left(tmp_path, clock):
    bar = Progress(small_config(tmp_path, steps=1000, minutes=1), Console(file=io.StringIO()))
    assert bar.seconds_left == 60
    bar.step(1, {"step_s": 10.0})
    assert bar.seconds_left == 50


def test_a_run_has_one_writer(tmp_path):
    first = RunFolder.open(small_config(tmp_path))
    first.log(1, {"reward": 1.0})
    with pytest.raises(ValueError, match=r"in use by process \d+ on .*\n.*another folder"):
        RunFolder.open(small_config(tmp_path), resume=True)
    assert first.num_steps == 1 and RunFolder(first.path).num_steps == 1  # who reads needs no lock
    first.close()
    RunFolder.open(small_config(tmp_path), resume=True).close()


@pytest.mark.parametrize(
    "options, told",
    [
        ({"rollout": {"group_size": 4}}, {"rollout.group_size": "8 -> 4"}),
        ({"steps": 12, "optimizer": {"lr": 0.5}}, {"steps": "400 -> 12", "optimizer.lr": "1e-06 -> 0.5"}),
        ({}, {}),
    ],
)
def test_a_run_that_goes_on_with_other_options_says_so(tmp_path, options, told):
    folder = RunFolder.open(small_config(tmp_path))
    folder.log(1, {"reward": 1.0})
    folder.close()
    again = RunFolder.open(small_config(tmp_path, **options), resume=True)
    assert again.changed == told
    assert [line["note"] for line in lines(again.path / "notes.jsonl")][2:] == [f"{k}: {v}" for k, v in told.items()]


def test_going_on_needs_a_run_and_starting_none(tmp_path):
    with pytest.raises(ValueError, match="no run to go on with.\n.*--resume"):
        RunFolder.open(small_config(tmp_path), resume=True)
    assert not (tmp_path / "small").exists()
    RunFolder.open(small_config(tmp_path)).close()  # was started, and never made a step
    again = RunFolder.open(small_config(tmp_path))
    again.discard()
    assert again.path.is_dir()
    fresh = RunFolder.open(small_config(tmp_path, name="fresh"))
    fresh.discard()
    assert not fresh.path.exists()


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nowhere"])
def test_a_place_that_cannot_be_written_is_told(tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="can't be written|is there and is not"):
        RunFolder.open(small_config(tmp_path / out))
