"""One file per run: read, overridden, checked, and every mistake answered in a few lines."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from g1_ray.cluster.placement import check_run, nodes_of_yaml
from g1_ray.config import RunConfig, check_software, load_config
from g1_ray.config_page import page
from g1_ray.engines.make import check_engine
from g1_ray.models.find import MODELS, check_model, model_path

ROOT = Path(__file__).parent.parent
PRESETS = sorted((ROOT / "jobs" / "configs").glob("*.toml"))
RUNS = [path for path in PRESETS if "coldstart" not in path.name]
GPU_NODE = {"CPU": 96.0, "GPU": 8.0, "memory": 8e11, "accelerator_type:A100-80G": 1.0}
LAPTOP = {"CPU": 2.0, "memory": 1.1e10}

TEXT = """
name = "small"
[model]
path = "tiny-base"
[[games]]
game = "2048"
reasoning = { size = 3 }
[[games]]
game = "swap"
ratio = 0.5
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    return path


def test_what_is_left_out_has_its_default_and_json_has_everything(file, tmp_path):
    config = load_config(file)
    assert config.rollout.group_size == 8 and [game.name for game in config.games] == ["2048", "swap"]
    (tmp_path / "config.json").write_text(config.to_json())
    assert load_config(tmp_path / "config.json") == config
    values = json.loads(config.to_json())
    assert values["engine"]["memory_utilization"] == 0.85 and values["games"][1]["states"]["random_walk"] == 1
    assert set(values) == set(RunConfig.model_fields)


@pytest.mark.parametrize(
    "override, read",
    [
        ("learner.num_ranks=2", lambda c: c.learner.num_ranks == 2),
        ("games.1.ratio=2", lambda c: c.games[1].ratio == 2.0 and c.games[0].ratio == 1.0),
        ("games.0.reasoning.size=5", lambda c: c.games[0].task().reasoning.size == 5),
        ("games.1.perception.tiles=glyphs", lambda c: c.games[1].perception == {"tiles": "glyphs"}),
        ("games.1.reasoning=2", lambda c: c.games[1].reasoning == 2),
        ("games.0.states={fresh=1, random_walk=0}", lambda c: c.games[0].states.fresh == 1),
        ("model.path=tiny-coldstart", lambda c: c.model.path == "tiny-coldstart"),
        ('model.path="tiny-coldstart"', lambda c: c.model.path == "tiny-coldstart"),
        ("optimizer.lr=1e-4", lambda c: c.optimizer.lr == 1e-4),
        ("model.gradient_checkpointing=false", lambda c: not c.model.gradient_checkpointing),
        ("optimizer.betas=[0.9, 0.95]", lambda c: c.optimizer.betas == (0.9, 0.95)),
        ("trackers=[]", lambda c: c.trackers == ()),
        ("name=2", lambda c: c.name == "2"),
        ("eval.baselines.base=tiny-base", lambda c: c.eval.baselines == {"base": "tiny-base"}),
        ('games=[{game="swap", name="other"}]', lambda c: [game.name for game in c.games] == ["other"]),
    ],
)
def test_overrides(file, override, read):
    assert not read(load_config(file)) and read(load_config(file, [override]))


@pytest.mark.parametrize(
    "override, message",
    [
        ("learner.num_rank=2", "'learner.num_rank=2': unknown option 'learner.num_rank'; did you mean 'num_ranks'?"),
        ("lerner.num_ranks=2", "unknown option 'lerner'; did you mean 'learner'?"),
        ("games.0.states.freshh=1", "unknown option 'games.0.states.freshh'; did you mean 'fresh'?"),
        ("learner.num_ranks=0", "learner.num_ranks = 0: expected a whole number, 1 or more|must be 1 or more"),
        ("learner.num_ranks=two", "learner.num_ranks = 'two': expected a whole number, 1 or more"),
        ("learner.num_ranks=1.5", "learner.num_ranks = 1.5: expected a whole number"),
        ("optimizer.lr=fast", "optimizer.lr = 'fast': expected a number, above 0"),
        ("optimizer.lr=inf", "optimizer.lr = inf: must be above 0"),
        ("rollout.top_p=1.5", "rollout.top_p = 1.5: must be above 0 and at most 1"),
        ("rollout.wrong_cells=2", "wrong_cells = 2: needs perception = 'given'"),
        ("rollout.perception=gven", "did you mean 'given'"),
        ("rollout.top_p=0.95", "top_p = 0.95: answers would come from a cut-off distribution"),
        ("model.dtype=bfloat", "model.dtype = 'bfloat' is not one of the choices; did you mean 'bfloat16'?"),
        ('trackers=["tensorbord"]', "did you mean 'tensorboard'?"),
        ("trackers=wandb", "trackers = 'wandb': expected a list"),
        ("learner=3", "learner = 3: expected a table"),
        ("games.0.reasoning=hard", "games.0.reasoning = 'hard': expected a table, options by name or a whole number"),
        ("games.0.reasoning.sizes=4", "games.0: 2048: unknown option 'sizes'; did you mean 'size'?"),
        ("games.0.reasoning=9", "games.0: 2048: reasoning = 9: levels are 0 to"),
        ("games.0.game=2084", "unknown game '2084'; did you mean '2048'?"),
        ("games.0.game=maze:maze", "there is no module 'maze'"),
        ("games.0.preset=papr", "unknown preset 'papr'; did you mean 'paper'?"),
        ("games.0.reward=terniary", "unknown reward 'terniary'; did you mean 'ternary'?"),
        ("games.1.name=2048", "two are called '2048'"),
        ("games.0.name=a/b", "use letters, digits"),
        ("games.2.ratio=1", "games has 2 entries"),
        ("games.0.ratio.x=1", "expected a number"),
        ("games.1.ratio.x=1", "games.1.ratio = 0.5 is not a table"),
        ("games.0.states.random_walk=0", "give one of them a weight"),
        ("games=[]", "games = []: give at least 1"),
        ("name=a b", "name = 'a b': use letters"),
        ("name", "'name': expected key=value"),
        ("optimizer.betas=[1,", "is not a TOML value"),
        ("engine.gpus=1.5", "a share of one GPU, or whole ones"),
        ("engine={kind='transformers', gpus=2}", "an engine of kind transformers uses one; give num_engines"),
        ("optimizer.final_lr=0.5", "without decay_steps the learning rate does not fall"),
        ("rollout.max_tokens=5000", "engine.max_model_len = 4096 has to be larger"),
        ("asynchrony.groups_per_tick=200", "at most 96"),
        ("model.path=tiny-bas", "model.path = 'tiny-bas': no such folder; did you mean 'tiny-base'?"),
        ("model.path=/no/such/folder", "no such folder"),
        ("eval={every=5, runs=0}", "every = 5 and runs = 0"),
        ("eval.baselines.base=tiny-bse", "baselines = 'tiny-bse': no such folder"),
    ],
)
def test_every_mistake_is_answered_in_at_most_three_lines(file, override, message):
    with pytest.raises(ValueError) as error:
        load_config(file, [override])
    text = str(error.value)
    assert any(part in text for part in message.split("|")), text
    assert len(text.splitlines()) <= 3


def test_mistakes_in_the_file_name_it_and_several_are_told_at_once(file):
    file.write_text(TEXT + "reward = 'score'\nspeed = 3\n[rollout]\nturns = 0\ntop_p = 2\nwindow = -1\n")
    with pytest.raises(ValueError) as error:
        load_config(file)
    lines = str(error.value).splitlines()
    assert (
        len(lines) == 3
        and lines[0] == f"{file}: unknown option 'games.1.speed'" + lines[0].partition("'games.1.speed'")[2]
    )
    assert "games.1.speed" in lines[0] and lines[2] == "and 2 more"
    file.write_text("name = ")
    with pytest.raises(ValueError, match=rf"{file}: no TOML: Invalid value \(at end"):
        load_config(file)
    with pytest.raises(ValueError, match="did you mean '.*small.toml'"):
        load_config(file.with_name("smal.toml"))
    file.write_text("steps = 3")
    with pytest.raises(ValueError, match="name is missing.*\n.*model is missing.*\n.*games is missing"):
        load_config(file)


def test_files_are_read_as_every_editor_saves_them(tmp_path):
    for data in (TEXT.encode(), TEXT.encode("utf-8-sig"), TEXT.replace("\n", "\r\n").encode("utf-8-sig")):
        (tmp_path / "made.toml").write_bytes(data)
        config = load_config(tmp_path / "made.toml")
        (tmp_path / "made.json").write_bytes(b"\xef\xbb\xbf" + config.to_json().replace("\n", "\r\n").encode())
        assert load_config(tmp_path / "made.json") == config


@pytest.mark.parametrize(
    "ending, data, message",
    [
        (".toml", f"# für mich\n{TEXT}".encode("latin-1"), "byte 0xfc in line 1 is not: latin-1 perhaps"),
        (".toml", f"{TEXT}\n# 10 €".encode("cp1252"), "byte 0x80 in line"),
        (".json", "{}".encode("utf-16"), "UTF-16"),
        (".toml", TEXT.encode("utf-32"), "UTF-32"),
        (".toml", b"PAR1\0\xff\xff", "this is no text"),
        (".json", b"{", "no JSON (Expecting property name"),
        (".json", b"\n", "an empty file, no JSON"),
        (".json", b"[1]", "expected a table of options"),
    ],
)
def test_what_can_not_be_read_is_named_with_its_encoding(tmp_path, ending, data, message):
    path = tmp_path / f"made{ending}"
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        load_config(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and message in text and len(text.splitlines()) <= 2


def test_a_config_for_another_command_is_told(tmp_path):
    from g1_ray.coldstart.config import load_coldstart

    configs = ROOT / "jobs" / "configs"
    with pytest.raises(ValueError, match="g1-ray train .*swap.toml$"):
        load_coldstart(configs / "swap.toml")
    with pytest.raises(ValueError, match="g1-ray coldstart .*coldstart-tiny.toml$"):
        load_config(configs / "coldstart-tiny.toml")
    with pytest.raises(ValueError, match="that is a folder, give a file"):
        load_config(configs)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{tmp_path}: that is a folder; .*config.json"):
        load_config(tmp_path)


def test_models_are_folders_shipped_ones_or_names(tmp_path):
    assert model_path("tiny-base") == str(MODELS / "tiny-base")
    assert model_path("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
    with pytest.raises(ValueError, match="no config.json"):
        model_path(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert model_path(str(tmp_path)) == str(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="no checkpoint yet"):
        model_path(str(tmp_path))
    for name in ("step-9", "step-10", "step-11.partial"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "config.json").write_text("{}")
    assert model_path(str(tmp_path)) == str(tmp_path / "checkpoints" / "step-10")


def test_a_model_that_can_not_be_had_is_told_before_anything_starts(tmp_path):
    code = "from g1_ray.models.find import check_model; check_model('Qwen/Qwen2.5-VL-3B-Instruct')"
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode and "not in the cache" in done.stderr and "hf download Qwen" in done.stderr
    check_model("tiny-base")


def test_missing_software_is_named(file, monkeypatch):
    config = load_config(file)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="engine.kind = 'vllm', and vllm is not installed") as error:
        check_engine(config.engine.kind)
    assert len(str(error.value).splitlines()) <= 3
    check_engine("transformers")
    with pytest.raises(ValueError, match="peft"):
        check_software(load_config(file, ["trackers=[]", "model.lora.rank=4"]))
    check_software(load_config(file, ["trackers=[]"]))


def test_importing_the_config_is_light():
    code = "import sys, g1_ray.config; print(*{name.partition('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    heavy = {"torch", "ray", "transformers", "vllm", "pyarrow", "pandas", "matplotlib", "huggingface_hub", "datasets"}
    assert "pydantic" in out.split() and not heavy & set(out.split())


def test_the_page_of_options_is_what_the_schema_says():
    text = (ROOT / "docs" / "configs.md").read_text()
    assert text == page(), "run: python -m g1_ray.config_page > docs/configs.md"
    assert not re.search(r"\| +\|$", text, re.M), "an option without a description"


@pytest.mark.parametrize(
    "path", [path for path in RUNS if not path.stem.startswith("one-")], ids=lambda path: path.stem
)
def test_every_preset_fits_the_cluster_it_is_for(path):
    # Two presets start from what another command makes.
    config = load_config(path, ["model.path=tiny-base"] if 'path = "runs/' in path.read_text() else [])
    assert config.name == path.stem
    if "cluster" in path.stem:
        nodes = nodes_of_yaml(ROOT / "cluster.yaml")
    else:
        nodes = [GPU_NODE if path.stem.startswith("paper") else LAPTOP]
    assert "placement" in check_run(config, nodes)
    if path.stem.startswith("paper"):
        assert config.rollout.group_size == 5 and config.rollout.groups_per_step == 128 * len(config.games)
        assert config.optimizer.lr == 1e-6 and config.algorithm.kl_coef == 0.01
        assert config.algorithm.clip_low == config.algorithm.clip_high == 0.2
    else:
        assert config.model.path.startswith("tiny-") and config.learner.gpus == config.engine.gpus == 0


def test_there_is_a_preset_for_everything_promised():
    names = {path.stem for path in RUNS}
    assert {
        "quickstart",
        "2048",
        "shisen",
        "shisen-photos",
        "swap",
        "paper-3b",
        "paper-7b",
        "paper-7b-cluster",
    } <= names
    assert len(load_config(ROOT / "jobs/configs/quickstart.toml").games) == 2


@pytest.mark.parametrize("sections, said", [
    ({"rollout": {"group_size": 512}}, "rollout.group_size = 512: .* engine.max_num_seqs = 256"),
    ({"asynchrony": {"lanes": 2}, "engine": {"num_engines": 3}}, "asynchrony.lanes = 2 for engine.num_engines = 3"),
    ({"learner": {"num_ranks": 2, "gpus": 0.5}}, "learner.num_ranks = 2 and learner.gpus = 0.5: ranks can't share"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_refused_before_anything_starts(sections, said):
    with pytest.raises(ValueError, match=said):
        RunConfig(name="t", model={"path": "m"}, games=[{"game": "2048"}], **sections)
