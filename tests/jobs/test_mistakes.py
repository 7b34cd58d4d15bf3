"""User mistakes, seeded: each answered at once, in at most three lines that have the value and what helps."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from g1_ray.config import load_config
from g1_ray.runs.run_folder import RunFolder
from jobs.__main__ import COMMANDS, main
from jobs.errors import EXTRAS, told

ROOT = Path(__file__).parents[2]
Q = str(ROOT / "jobs/configs/quickstart.toml")
COLD = str(ROOT / "jobs/configs/coldstart-tiny.toml")
MISTAKES = [
    ("1", f"train {Q} learner.rank=2", "learner.rank", "num_ranks"),
    ("1", f"train {Q} optimiser.lr=1e-4", "optimiser", "optimizer"),
    ("2", f"train {Q} steps=many", "steps = 'many'", "a whole number"),
    ("2", f"train {Q} rollout.group_size=8.5", "8.5", "a whole number"),
    ("3", f"train {Q.replace('quick', 'quik')}", "quikstart.toml", "quickstart.toml"),
    ("4", f"train {Q} games.0.game=2o48", "2o48", "'2048'"),
    ("4", "play shizen", "shizen", "'shisen'"),
    ("5", f"train {Q} games.0.preset=papr", "papr", "'paper'"),
    ("5", "tiny o --drill 5", "--drill 5", "--paper"),
    ("5", "play 2048 --preset papr", "papr", "'paper'"),
    ("6", "play 2048 --reasoning sise=5", "sise", "'size'"),
    ("6", "evaluate --games 2048?sise=3", "sise", "'size'"),
    ("6", "evaluate --games swap?reasoning=9", "reasoning = 9", "0 to 3"),
    ("7", "play 2048 --perception tiles=shape", "'shape'", "'shapes'"),
    ("8", f"train {Q} optimizer.lr=-1", "-1", "above 0"),
    ("8", "evaluate --runs -1", "--runs -1", "1 or more"),
    ("9", f"train {Q} steps", "'steps'", "key=value"),
    ("10", f"train {Q} --resume out={{tmp}}/runs", "{tmp}/runs/quickstart", "Leave out --resume"),
    ("11", f"train {Q} games.5.ratio=2", "games.5.ratio=2", "2 entries, counted from 0"),
    ("13", f"train {Q} games.1.game=2048 games.1.reasoning=0", "'2048'", "games.1.name="),
    ("14", f"train {Q} model.path=nowhere", "nowhere", "tiny-base"),
    ("14", f"train {Q} model.path={{tmp}}", "{tmp}", "config.json"),
    ("16", "evaluate --players gpt=htps://host/v1?model=a", "htps://host/v1", "https://"),
    ("17", "evaluate --players gpt=https://host/v1", "https://host/v1", "URL?model=NAME"),
    ("17", "evaluate --players gpt=https://host/v1?model=a&key_env=NOPE", "NOPE", "not set"),
    ("18", "evaluate --games swap --players x=http://127.0.0.1:9/v1?model=m", "127.0.0.1:9", "refused"),
    ("18", "evaluate --games swap --players x=http://127.0.0.1:9/v1?model=m --out {tmp}/e", "127.0.0.1:9", "refused"),
    ("19", "evaluate --games swap --players tiny-base?engine.gpus=1", "1 GPU", "engine.gpus"),
    ("20", "evaluate --players tiny-base?engine.kind=vlm", "'vlm'", "'vllm'"),
    ("20", "evaluate --players tiny-base?engine.gpu=1", "'gpu'", "'gpus'"),
    ("21", "evaluate --games swap --players uniform --address 127.0.0.1:9", "--address 127.0.0.1:9", "leave it out"),
    ("21", f"train {Q} out={{tmp}}/runs --address nowhere", "--address nowhere", "HOST:PORT"),
    ("22", f"train {Q} out={ROOT / 'LICENSE'} name=a", "LICENSE", "give another"),
    ("23", f"train {ROOT / 'LICENSE'}", "LICENSE", "no TOML"),
    ("23", "train {tmp}", "{tmp}", "that is a folder"),
    ("23", f"train {COLD}", "coldstart-tiny.toml", "g1-ray coldstart"),
    ("23", f"coldstart {Q}", "quickstart.toml", "g1-ray train"),
    ("24", f"train {Q} out={{tmp}}/runs engine.kv_cache_gb=500", "GB", "kv_cache_gb"),
    ("24", f"train {Q} engine.max_model_len=64", "64", "has to be larger"),
    ("25", f"train {Q} games.0.reasoning={{{{horizon=0}}}} eval.moves=0", "never ends", "give eval.moves or a horizon"),
    ("26", "play 2048 --perception tile_px=30", "tile_px = 30", "a multiple of 28"),
    ("27", "evaluate --players orakle", "orakle", "'oracle'"),
    ("27", "evaluate --players teacher --against teecher", "teecher", "'teacher'"),
    ("29", "report {tmp}/nope", "{tmp}/nope", "give the folder of a run"),
    ("29", "report {tmp}", "{tmp}", "give the folder of a run"),
    ("29", "export {tmp}", "--to", "export --help"),
    ("29", "export {tmp} --to wandb2", "wandb2", "inspect"),
    ("29", "export {tmp} --to datasets", "{tmp}", "give the folder of a training run"),
    ("30", "play mazen:maze", "mazen", "Python path"),
    ("32", "games swap --sheet /proc/x.png", "/proc/x.png", "give another place"),
    ("32", "export {tmp} --to datasets --out /proc/x", "/proc/x", "give another place"),
    ("32", "play 2048 --save x.avi", "x.avi", ".webp"),
    ("own 1", "evaluate --players human:{tmp}/binary", "{tmp}/binary", "give a file of moves"),
    ("own 2", "explain 2048 --answer-file {tmp}/binary", "{tmp}/binary", "this is no text"),
    ("own 3", "explain 2048 --answer-file {tmp}", "{tmp}", "give a file"),
    ("own 4", f"train {Q} --resum --stepps 3", "--stepps", "--resume"),
    ("own 5", "play 2048 --seed x", "'x'", "play --help"),
    ("own 6", "trian", "trian", "'train'"),
    *((f"own 8, {line}", f"{line} {{tmp}}", "{tmp}", "give the name of a file") for line in
      ("paper --page-only --out", "report {tmp} --out", "games 2048 --sheet", "bench envs --json")),
    *((f"own 9, {line}", f"{line} {{tmp}}/binary", "{tmp}/binary", "give the name of a folder") for line in
      ("games swap --docs", "export {tmp} --to datasets --out", "serve tiny-coldstart --folder")),
    ("own 7", "games 2048 --sheet {tmp}/binary/x.png", "{tmp}/binary", "give another place"),
]  # fmt: skip


def words(text, tmp):
    return [word.replace("{tmp}", str(tmp)).replace("{{", "{").replace("}}", "}") for word in text.split()]


@pytest.fixture(scope="module")
def imported():
    """What the first check of a model imports, 6 s of a busy machine, is not timed with whatever comes first."""
    import torch  # noqa: F401
    from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: F401


@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("number, line, value, fix", MISTAKES)
def test_mistakes_are_told_in_three_lines(number, line, value, fix, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"PAR1\0\xff")
    begun = time.process_time()  # other tests run beside this one
    assert main(words(line, tmp_path)) == 2
    seconds, said = time.process_time() - begun, capsys.readouterr()
    assert seconds < 10 and not said.out
    assert said.err.startswith("g1-ray") and len(said.err.strip().splitlines()) <= 3 and "Traceback" not in said.err
    assert all(part.replace("{tmp}", str(tmp_path)) in said.err for part in (value, fix))
    assert [path.name for path in tmp_path.iterdir()] == ["binary"]  # nothing was made, nothing written over
    assert (tmp_path / "binary").read_bytes() == b"PAR1\0\xff"


@pytest.fixture
def folders(tmp_path):
    """A run of two steps, another one in a process that is alive, an evaluation, a thesis."""
    made = RunFolder.open(load_config(Q, [f"out={tmp_path}", "name=made", "trackers=[]"]))
    for step in (1, 2):
        made.log(step, {"reward": 1.0})
    made.close()
    alive = RunFolder.open(load_config(Q, [f"out={tmp_path}", "name=alive", "trackers=[]"]))
    alive.log(1, {"reward": 1.0})
    assert main(words("evaluate --games swap --players uniform --runs 1 --moves 1 --out {tmp}/eval", tmp_path)) == 0
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    yield tmp_path
    alive.close()


@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("ray_cluster")
def test_what_is_there_is_not_written_over(folders, capsys):
    def files():
        mine = (path for path in folders.rglob("*") if path.name != ".lock" and path.suffix != ".log")
        return {path: path.read_bytes() for path in mine if path.is_file()}

    before = files()
    capsys.readouterr()
    for line, value, fix in (
        (f"train {Q} out={{tmp}} name=made", "{tmp}/made", "--resume"),  # 15
        (f"train {Q} out={{tmp}} name=thesis", "{tmp}/thesis", "another name"),
        (f"train {Q} out={{tmp}} name=made --resume seed=7", "seed (0 -> 7)", "another name"),  # 12
        (f"train {Q} out={{tmp}} name=made --resume model.path=tiny-base", "model.path", "another name"),
        (f"train {Q} out={{tmp}} name=alive --resume", "in use by process", "another folder"),
        ("evaluate --games swap --players uniform --runs 2 --out {tmp}/eval", "runs = 1", "--out"),  # 28
        ("evaluate --games swap --players uniform --out {tmp}/made", "{tmp}/made", "--out"),
        ("tiny {tmp}/made", "{tmp}/made", "another folder"),  # 33
        ("tiny {tmp}/thesis", "{tmp}/thesis", "another folder"),
    ):
        assert main(words(line, folders)) == 2, line
        said = capsys.readouterr().err
        assert said.startswith("g1-ray") and len(said.strip().splitlines()) <= 3 and "Traceback" not in said, said
        assert value.replace("{tmp}", str(folders)) in said and fix in said, said
    assert files() == before


def errors_of(*argv, **more):
    return subprocess.run([sys.executable, "-m", *argv], capture_output=True, text=True, cwd=ROOT, **more)


def test_a_module_says_what_its_command_says():
    for command in ("play", "games", "tiny"):
        one, other = errors_of(f"jobs.{command}", "--nope"), errors_of("jobs", command, "--nope")
        assert one.returncode == other.returncode == 2
        assert one.stderr == other.stderr and one.stderr.startswith(f"g1-ray {command}: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_module_can_be_run_itself(command):
    module = ROOT / "jobs" / command
    text = (module / "__main__.py" if module.is_dir() else module.with_suffix(".py")).read_text()
    assert f'raise SystemExit(run("{command}", main))' in text


def test_the_traceback_is_there_for_those_who_ask(monkeypatch):
    monkeypatch.setenv("G1_RAY_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown game"):
        main(["play", "shizen"])


def test_faults_of_our_own_keep_their_traceback():
    for error in (KeyError("x"), AssertionError(), RuntimeError("x"), ModuleNotFoundError("x", name="jobs.nope")):
        assert told(error) == ""


@pytest.mark.parametrize("module, extra", [("ray", "train"), ("torch.nn", "train"), ("vllm", "vllm"), ("av", "export")])
def test_what_is_not_installed_is_told_with_its_extra(module, extra):
    text = told(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert f"pip install -e '.[{extra}]'" in text and len(text.splitlines()) == 1


def test_every_package_of_an_extra_has_its_modules():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {"pyyaml": "yaml", "inspect-ai": "inspect_ai", "grpcio": "grpc"}
    for extra, modules in EXTRAS.items():
        packages = [text.split("[")[0].split("=")[0].split(">")[0].strip() for text in extras[extra]]
        assert {named.get(package, package) for package in packages} <= set(modules)


@pytest.mark.parametrize("unbuffered", ["", "1"])  # a broken pipe is noticed at the print, or at the end
@pytest.mark.parametrize("line", ["games", "--help", "games --help", f"train {Q} --dry-run", "runs {tmp}"])
def test_whoever_reads_may_have_seen_enough(line, unbuffered, tmp_path):
    RunFolder.open(load_config(Q, [f"out={tmp_path}", "name=made", "trackers=[]"])).close()
    read, write = os.pipe()
    os.close(read)
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open(write, "wb") as nobody:
        ended = subprocess.run(
            [sys.executable, "-m", "jobs", *words(line, tmp_path)], stdout=nobody, stderr=subprocess.PIPE, env=env
        )
    assert ended.returncode in (0, 141) and not ended.stderr


def test_a_full_disk_behind_stdout_is_told():
    with open("/dev/full", "wb") as full:
        ended = subprocess.run([sys.executable, "-m", "jobs", "games"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2 and "make room" in ended.stderr and len(ended.stderr.splitlines()) <= 3


ALONE = """
import sys
from jobs.errors import EXTRAS

class Base:
    packages = {module for modules in EXTRAS.values() for module in modules}
    finders = [*sys.meta_path]

    def find_spec(self, name, *where):
        there = (finder.find_spec(name, *where) for finder in self.finders)
        return None if name.partition(".")[0] in self.packages else next(filter(None, there), None)

sys.meta_path[:] = [Base()]
from jobs.__main__ import COMMANDS, main
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
for line in sys.stdin.read().splitlines():
    with redirect_stdout(StringIO()) as out, redirect_stderr(out):
        try:
            status = main(line.split())
        except SystemExit as ended:
            status = ended.code
    print(line, status, len(out.getvalue().splitlines()), "pip install -e '.[train]'" in out.getvalue(), sep="\\t")
"""


def test_without_extras_a_command_works_or_names_the_extra(tmp_path):  # 31
    work = [
        "games",
        "games swap",
        "play 2048 --player greedy --seed 0",
        "--version",
        "--help",
        "bench --help",
        "paper --help",
    ]
    need = {
        "evaluate": "--games swap --players uniform", "explain": "2048", "graph": Q, "report": str(tmp_path),
        "export": f"{tmp_path} --to datasets", "coldstart": COLD, "tiny": f"{tmp_path}/tiny", "runs": str(tmp_path),
            "status": str(tmp_path),
        "completion": "bash", "train": Q, "serve": "tiny-coldstart",
    }  # fmt: skip
    lines = [*work, *(f"{command} {argv}" for command, argv in need.items()), f"train {Q} --dry-run", "doctor"]
    assert {line.split()[0] for line in lines} >= set(COMMANDS)
    ended = subprocess.run(
        [sys.executable, "-c", ALONE], input="\n".join(lines), capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    told = {line: tuple(map(eval, rest)) for line, *rest in (row.split("\t") for row in ended.stdout.splitlines())}
    assert [*told] == lines, ended.stderr
    for line, (status, num_lines, named) in told.items():
        if line in work:
            assert status == 0, line
        elif line == "doctor":
            assert status == 1 and named
        else:
            assert status == 2 and num_lines <= 3 and named, line
    assert not any(tmp_path.iterdir())
