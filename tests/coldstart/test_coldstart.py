import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from endpoints import reply, serving  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from envs import Codec, State, Task, players  # noqa: E402
from envs.teacher import UNSURE  # noqa: E402
from g1_ray.coldstart import examples, sft  # noqa: E402
from g1_ray.coldstart.config import LessonConfig, SftConfig, TeacherConfig, load_coldstart  # noqa: E402
from g1_ray.coldstart.dataset import read_dataset, write_dataset  # noqa: E402
from g1_ray.coldstart.examples import Example, Maker, examples_of_moves, make_examples  # noqa: E402
from g1_ray.coldstart.sft import Trainer, fit, last_checkpoint, make_lot  # noqa: E402
from g1_ray.config_optimizer import OptimizerConfig  # noqa: E402
from g1_ray.evaluation.moves import write_moves  # noqa: E402
from g1_ray.evaluation.play import play  # noqa: E402
from g1_ray.models.tiny import TASKS, make_tiny  # noqa: E402
from g1_ray.runs import progress  # noqa: E402
from jobs.coldstart import main  # noqa: E402

G2048 = LessonConfig(game="2048", reasoning={"size": 3}, perception={"tile_px": 28, "tiles": "numbers"}, examples=40)
SHISEN = LessonConfig(game="shisen", reasoning={"rows": 3, "cols": 4}, perception={"tile_px": 28}, examples=40)
ORACLE = TeacherConfig()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    make_tiny(out, TASKS, 0, text={"num_hidden_layers": 2})
    return out


def examples_of(game: LessonConfig, num: int = 24, seed: int = 0) -> list[Example]:
    maker = Maker(game, ORACLE, seed)
    return [example for example in map(maker, range(num)) if isinstance(example, Example)]


def test_examples_do_not_depend_on_how_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = examples_of(SHISEN)
    side_by_side = list(make_examples(Maker(SHISEN, ORACLE, 0), 24, workers=2))
    assert side_by_side == alone
    monkeypatch.setattr(examples, "CHUNK", 5)
    assert list(make_examples(Maker(SHISEN, ORACLE, 0), 12, workers=1)) == alone[:12]
    assert examples_of(SHISEN, seed=1) != alone


def test_how_many_examples_are_made_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_OF_SILENCE", 0.0)
    assert len(list(make_examples(Maker(SHISEN, ORACLE, 0), 24, workers=1))) == 24
    said = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" left")]
    assert said and said[-1].startswith("24 of 24 examples of shisen, ")


def test_every_other_answer_is_the_longest_of_several() -> None:
    some = SHISEN.model_copy(update={"longest_of": 3})
    first, longest = examples_of(SHISEN), examples_of(some)
    assert longest[::2] == first[::2]
    lengths = [(len(a.answer), len(b.answer)) for a, b in zip(first[1::2], longest[1::2], strict=True)]
    assert all(a <= b for a, b in lengths) and sum(a < b for a, b in lengths) > 4


def test_data_set_comes_back_and_datasets_opens_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = examples_of(G2048) + examples_of(SHISEN)
    path = tmp_path / "data" / "mixed.parquet"
    assert write_dataset(path, made) == len(made) == 48
    assert read_dataset(path) == made
    assert [file.name for file in path.parent.iterdir()] == ["mixed.parquet"]
    opened = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    row, example = opened[30], made[30]
    assert np.array_equal(np.asarray(row["image"].convert("RGB")), example.state.draw())
    codec = Codec(example.state.task)
    assert row["prompt"] == codec.prompt()
    assert codec.read(row["answer"]).action == row["action"] == example.action
    assert State.from_bytes(row["state"]) == example.state
    assert {name: row[name] for name in ("game", "erred", "source")} == {
        "game": "shisen", "erred": example.erred, "source": example.source
    }  # fmt: skip


def test_a_file_of_something_else(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="other.parquet: no column 'action'"):
        read_dataset(tmp_path / "other.parquet")


def trainer_of(tiny: Path, steps: int = 60, **options: object) -> Trainer:
    values = {"batch_size": 16, "micro_batch": 16, "optimizer": OptimizerConfig(lr=3e-3, warmup_steps=5), **options}
    return Trainer(tiny, SftConfig.model_validate(values), steps, 0)


def test_loss_is_that_of_the_answer_tokens(tiny: Path) -> None:
    """Against the model's own forward pass, one example at a time, with the processor's own inputs."""
    trainer = trainer_of(tiny)
    chat, model = trainer.chat, trainer.model.eval()
    lot = make_lot(chat, examples_of(SHISEN, 5), 1.0)
    lengths = [len(answer) for answer in lot.answers]
    assert len(set(lengths)) > 1  # answers of several lengths, so that filling up matters
    with torch.no_grad():
        total, hits = trainer.loss(lot, range(5))
        expected, right = 0.0, 0
        for answer, state in zip(lot.answers, lot.states, strict=True):
            ids = torch.tensor([[*lot.prompt.tolist(), *answer.tolist()]])
            pixels, grid = chat.pixel_values([state])
            logits = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == chat.image_token_id).long(),
                pixel_values=torch.from_numpy(pixels),
                image_grid_thw=torch.from_numpy(grid),
            ).logits[0, len(lot.prompt) - 1 : -1]
            target = ids[0, len(lot.prompt) :]
            assert len(target) == len(answer) and target[-1] == chat.eos_token_id
            expected += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
            right += int((logits.argmax(-1) == target).sum())
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert hits == right


def test_micro_batches_make_the_same_update(tiny: Path) -> None:
    updated = []
    for micro in (16, 3):
        trainer = trainer_of(tiny, micro_batch=micro)
        lots = [make_lot(trainer.chat, examples_of(game), 0.5) for game in (G2048, SHISEN)]
        metrics = [trainer.update(lots) for _ in range(2)]
        updated.append((metrics[-1]["loss"], trainer.weights["model.language_model.norm.weight"].detach().clone()))
    assert updated[0][0] == pytest.approx(updated[1][0], rel=1e-4)
    assert torch.allclose(updated[0][1], updated[1][1], atol=1e-5)


def test_learns_goes_on_after_a_stop_and_leaves_a_model(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trainer_of(tiny, 12, checkpoint_every=5)
    lots = [make_lot(whole.chat, examples_of(game), 0.5) for game in (G2048, SHISEN)]
    fit(whole, lots, tmp_path / "whole")
    said = [line.split(", ") for line in capsys.readouterr().out.splitlines() if "tokens right" in line]
    assert [parts[0] for parts in said] == ["10 of 12 steps", "12 of 12 steps"]
    assert all(parts[2].endswith(" left") and parts[3].startswith("loss ") for parts in said)
    metrics = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, 13))
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]

    first = trainer_of(tiny, 12, checkpoint_every=5)
    first.steps, kept = 7, first.steps  # stopped at step 7: what came after the last checkpoint is done again
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first, "lr", lambda step: whole.lr(step))
        while first.step < 7:
            first.update(lots)
            if first.step == 5:
                first.steps = kept
                first.save(tmp_path / "parts" / "checkpoints" / "step-5")
    (tmp_path / "parts" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics[:7]))
    checkpoint = last_checkpoint(tmp_path / "parts")
    assert checkpoint == tmp_path / "parts" / "checkpoints" / "step-5"
    second = trainer_of(checkpoint, 12, checkpoint_every=5)
    second.resume(checkpoint)
    fit(second, lots, tmp_path / "parts")
    again = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in again] == list(range(1, 13))
    assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in metrics], rel=1e-4)
    ends = [load_file(tmp_path / run / "checkpoints" / "step-12" / "model.safetensors") for run in ("whole", "parts")]
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-5) for name in ends[0])
    with pytest.raises(ValueError, match="seed 0, not 1"):
        Trainer(checkpoint, second.config, 12, 1).resume(checkpoint)


@pytest.mark.parametrize("freeze_vision", [True, False])
@pytest.mark.parametrize("how", ["blank boards", "zero pixels", "one picture"])
def test_a_cold_start_that_can_not_see_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, freeze_vision: bool
) -> None:
    trainer = trainer_of(tiny, 2, freeze_vision=freeze_vision)
    blank = {"tile_px": 28, "blank": 1 if how == "blank boards" else 0}
    lots = [make_lot(trainer.chat, examples_of(SHISEN.model_copy(update={"perception": blank}), 4), 1.0)]
    plain = trainer.chat.pixel_values
    if how != "blank boards":
        other = {"zero pixels": lambda states: (0 * plain(states)[0], plain(states)[1])}
        shown = other.get(how, lambda states: plain([lots[0].states[0]] * len(states)))
        monkeypatch.setattr(trainer.chat, "pixel_values", shown)
    with pytest.raises(ValueError, match="shisen: answers are as likely with a blank picture"):
        fit(trainer, lots, tmp_path)


def test_answers_learned_without_looking_are_told(tiny: Path, tmp_path: Path) -> None:
    """Here all answers stand beside one picture, so there is nothing to be had from looking."""
    trainer, shown = trainer_of(tiny, 2), []
    lot = make_lot(trainer.chat, examples_of(SHISEN, 8), 1.0)
    lot.states[:] = lot.states[:1] * len(lot.states)
    metrics = fit(trainer, [lot], tmp_path, shown.append)
    assert any(text.startswith("WARNING: shisen was learned without looking") for text in shown)
    assert metrics["sight"] < sft.LOOKED


def test_every_example_is_seen_once_a_round(tiny: Path) -> None:
    trainer = trainer_of(tiny)
    lot = make_lot(trainer.chat, examples_of(G2048, 40), 0.5)
    seen = []
    for trainer.step in range(10):
        seen += trainer._indices(lot)
    assert sorted(seen[:40]) == sorted(seen[40:]) == list(range(40))
    assert seen[:40] != seen[40:]
    few = make_lot(trainer.chat, examples_of(G2048, 3), 1.0)
    trainer.step = 0
    seen = trainer._indices(few)  # 16 of 3: every round is whole before the next begins
    assert len(seen) == 16 and all(sorted(seen[at : at + 3]) == [0, 1, 2] for at in range(0, 15, 3))


def test_examples_of_several_tasks_under_one_name(tiny: Path) -> None:
    with pytest.raises(ValueError, match="2048: examples of several tasks"):
        make_lot(trainer_of(tiny).chat, examples_of(G2048, 2) + examples_of(SHISEN, 2), 1.0)


def write_config(tmp_path: Path, tiny: Path, extra: str = "") -> Path:
    path = tmp_path / "run.toml"
    path.write_text(f"""
name = "run"
out = "{tmp_path}"
model = "{tiny}"
workers = 1
{extra}
[[games]]
game = "2048"
reasoning = {{ size = 3 }}
perception = {{ tiles = "numbers", tile_px = 28 }}
examples = 20
[sft]
batch_size = 8
optimizer = {{ lr = 1e-3 }}
""")
    return path


def test_command(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_config(tmp_path, tiny))
    assert main([config, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["sft"]["batch_size"] == 8
    assert not (tmp_path / "run").exists()
    assert main([config, "--data-only"]) == 0
    data = tmp_path / "run" / "data" / "2048.parquet"
    assert f"{data}: 20 examples" in capsys.readouterr().out
    made = data.stat().st_mtime_ns
    with pytest.raises(ValueError, match="there is a run already; give --resume"):
        main([config])
    assert main([config, "--resume"]) == 0
    assert data.stat().st_mtime_ns == made
    checkpoint = tmp_path / "run" / "checkpoints" / "step-2"  # one epoch of 20 examples in batches of 8
    assert f"wrote {checkpoint}" in capsys.readouterr().out
    assert (checkpoint / "model.safetensors").exists() and (checkpoint / "tokenizer.json").exists()
    assert "step 2 of 2" in (checkpoint / "README.md").read_text()
    assert main([config, "--resume", "sft.steps=3"]) == 0
    assert f"goes on from {checkpoint}" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "step-3").exists()
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000
    assert (tmp_path / "run" / "curves.csv").read_text().startswith("step,loss,token_acc\n1,")


@pytest.mark.parametrize(("game", "options"), [("2048", {"size": 3}), ("shisen", {"rows": 4, "cols": 4}), ("swap", {})])
def test_games_of_people_are_learned_from(
    game: str, options: dict[str, int], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, file = Task.make(game, reasoning=options, perception={"tile_px": 28}), tmp_path / "ann.parquet"
    runs = [play(task, "Ann", players.random_legal, seed, 12) for seed in (1, 2)]
    write_moves(file, game, "Ann", runs)
    told = [move for run in runs for move in run.moves if move.legal]
    lesson = LessonConfig(game=game, reasoning=options, perception={"tile_px": 28}, moves=str(file))
    examples = list(examples_of_moves(lesson, 0))
    assert [(example.state, example.action) for example in examples] == [(move.state, move.action) for move in told]
    codec, workings = Codec(task), 0
    for example, move in zip(examples, told, strict=True):
        read = codec.read(example.answer)
        assert read.action == move.action and example.erred == (move.regret > 0)
        assert codec.score_perception(read.perception, move.state.game().perception()).exact
        workings += UNSURE not in example.answer
    assert 0 < workings
    assert len(list(examples_of_moves(lesson.model_copy(update={"examples": 3}), 0))) == 3
    with pytest.raises(ValueError, match="not of"):
        list(examples_of_moves(lesson.model_copy(update={"perception": {}}), 0))
    config = tmp_path / "people.toml"
    config.write_text(f"""
name = "people"
out = "{tmp_path}"
model = "{tiny}"
[[games]]
game = "{game}"
reasoning = {{ {", ".join(f"{name} = {value}" for name, value in options.items())} }}
perception = {{ tile_px = 28 }}
moves = "{file}"
[sft]
batch_size = 8
""")
    assert main([str(config)]) == 0
    assert f"{game}.parquet: {len(told)} examples" in capsys.readouterr().out
    assert main([str(config), "--resume", "sft.steps=4"]) == 0
    assert last_checkpoint(tmp_path / "people") == tmp_path / "people" / "checkpoints" / "step-4"
    file.unlink()
    with pytest.raises(OSError, match="ann.parquet"):
        main([str(config), "name=gone"])


class Answering(http.server.BaseHTTPRequestHandler):
    """An endpoint that plays (0, 0) (0, 1), misreads every board, and every third time gives no move."""

    requests: list[dict[str, object]] = []
    keys: set[str] = set()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(asked)
        self.keys.add(self.headers["Authorization"])
        text = "<perception>\nfog\n</perception>\n<think>\nHm.\n</think>\n<answer>up</answer>"
        if len(self.requests) % 3 == 0:
            text = "I can't tell."
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, "index": 0}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    Answering.requests, Answering.keys = [], set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_endpoint_teacher(
    endpoint: str, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("SOME_KEY", "s3cret")
    teacher = f'teacher = {{kind="endpoint", url="{endpoint}", model="m", key_env="SOME_KEY", concurrency=1}}'
    assert main([str(write_config(tmp_path, tiny, teacher)), "--data-only"]) == 0
    assert "20 examples; unusable answers: {'no answer': 9}" in capsys.readouterr().out
    assert Answering.keys == {"Bearer s3cret"}
    parts = Answering.requests[0]["messages"][0]["content"]  # type: ignore[index]
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")
    task = G2048.task()
    assert parts[1]["text"] == Codec(task).prompt()
    for example in read_dataset(tmp_path / "run" / "data" / "2048.parquet"):
        answer = Codec(task).read(example.answer)
        assert answer.action == example.action == 0 and (answer.thinking or "").strip() == "Hm."
        assert Codec(task).score_perception(answer.perception, example.state.game().perception()).exact
    written = b"".join(file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file())
    assert b"s3cret" not in written


def test_an_endpoint_that_gives_up_loses_no_answer(tmp_path: Path, tiny: Path) -> None:
    """It has no money left after nine replies; --resume asks for what was no answer (a filtered board) too."""
    pytest.importorskip("openai")
    seeds: list[int] = []
    text = "<perception>\nfog\n</perception>\n<think>\nHm.\n</think>\n<answer>up</answer>"

    def respond(asked: dict[str, Any], headers: Any) -> Any:
        if len(seeds) == 9 and not paid:
            return 402, {}, {"error": {"message": "no money left"}}
        seeds.append(asked["seed"])
        return reply(None, "content_filter") if len(seeds) in (3, 4, 5) else reply(text)

    paid = False
    with serving(respond) as url:
        teacher = f'teacher = {{kind="endpoint", url="{url}", model="m", concurrency=1}}'
        command = [str(write_config(tmp_path, tiny, teacher)), "--data-only"]
        with pytest.raises(ValueError, match="teacher: .*402: no money left\n.*--resume"):
            main(command)
        paid = True
        assert main([*command, "--resume"]) == 0
    assert [seed for seed in set(seeds) if seeds.count(seed) > 1] == [seeds[2]] and seeds.count(seeds[2]) == 2
    assert len(read_dataset(tmp_path / "run" / "data" / "2048.parquet")) == 20


def test_endpoint_without_its_key(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.delenv("NO_KEY", raising=False)
    teacher = 'teacher = {kind="endpoint", url="http://127.0.0.1:1/v1", model="m", key_env="NO_KEY"}'
    with pytest.raises(ValueError, match="key_env = 'NO_KEY': that environment variable is not set"):
        main([str(write_config(tmp_path, tiny, teacher)), "--data-only"])


def test_teacher_of_no_use_is_given_up() -> None:
    maker = Maker(G2048, ORACLE, 0)
    object.__setattr__(maker, "parts", (Task.make("2048"), *maker.parts[1:]))
    hopeless = type("Hopeless", (), {"answer": lambda self, game, rng: raise_unusable()})()
    object.__setattr__(maker, "parts", (*maker.parts[:2], hopeless))
    object.__setattr__(maker, "teacher", TeacherConfig(kind="endpoint", url="http://h/v1", model="m"))
    with pytest.raises(ValueError, match="2048: 32 unusable answers in a row, the last: nothing said"):
        list(make_examples(maker, 5))


def raise_unusable() -> None:
    from g1_ray.coldstart.examples import Unusable

    raise Unusable("nothing said")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.kind=endpoint", "kind = 'endpoint' needs url and model"),
        ("teacher.follow=0.5", "kind = 'oracle': styles and follow are a generalist's"),
        ("teacher={kind='generalist', styles={poem=1}}", "no style 'poem'; there are none, places"),
        ("teacher={kind='generalist', styles={none=0}}", "one must be above"),
        ("teacher={kind='generalist', styles={none=inf}}", "must be finite"),
        ("sft.stps=3", "did you mean 'steps'"),
        ("games.0.err=2", "at most 1"),
        ("model=tiny-bse", "did you mean 'tiny-base'"),
    ],
)
def test_bad_configs(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_coldstart("jobs/configs/coldstart-tiny.toml", [override])


def test_shipped_configs() -> None:
    for name in ("coldstart", "coldstart-tiny", "coldstart-shisen-photos", "coldstart-swap"):
        path = f"jobs/configs/{name}.toml"
        assert load_coldstart(path, ["model=tiny-base"]).games


def test_last_checkpoint_of_none(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    assert sft.last_checkpoint(tmp_path) is None
