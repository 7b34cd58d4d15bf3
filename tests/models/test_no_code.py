"""Nothing that lies in the folder of a model, or of an adapter, is run, whatever asks for it."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

from g1_ray.evaluation.named import parse_player
from g1_ray.models.adapters import CONFIG
from g1_ray.models.chat import Chat
from g1_ray.models.find import check_model, merge_adapter, model_path
from g1_ray.models.weights import load_model

CODE = """
from pathlib import Path
Path({mark!r}).touch()
class Evil:
    @classmethod
    def from_pretrained(cls, *args, **options):
        return cls()
def generate(*args, **options):
    Path({mark!r}).touch()
"""
JINJA = "{{% set _ = {} %}}{{{{ messages }}}}"


class Touching:
    """A pickle that makes a file as it is opened."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


def pickled(name: str, alone: bool = False):
    def spoil(folder: Path, mark: str) -> None:
        if alone:
            (folder / "model.safetensors").unlink()
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(Touching(mark)))

    return spoil


def mapped(file: str, key: str, *parts: str, **more):
    """A file that maps what is to be loaded to code beside it."""

    def spoil(folder: Path, mark: str) -> None:
        name = parts[0].partition(".")[0]
        (folder / f"{name}.py").write_text(CODE.format(mark=mark))
        values = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        values |= {"auto_map": {key: parts[0] if len(parts) == 1 else list(parts)}} | more
        (folder / file).write_text(json.dumps(values))

    return spoil


def beside(*names: str):
    def spoil(folder: Path, mark: str) -> None:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(CODE.format(mark=mark))

    return spoil


def template(escape: str):
    def spoil(folder: Path, mark: str) -> None:
        (folder / "chat_template.jinja").write_text(JINJA.format(escape.replace("MARK", mark)))

    return spoil


def valued(file: str, **values):
    def spoil(folder: Path, mark: str) -> None:
        (folder / "evil.py").write_text(CODE.format(mark=mark))
        known = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        (folder / file).write_text(json.dumps(known | values))

    return spoil


MODEL = "AutoModelForImageTextToText"
KINDS = {
    "model mapped": mapped("config.json", MODEL, "modeling_evil.Evil"),
    "config mapped": mapped("config.json", "AutoConfig", "configuration_evil.Evil"),
    "config mapped, of a type nobody knows": mapped("config.json", "AutoConfig", "evil.Evil", model_type="evil"),
    "model mapped, of a type nobody knows": mapped("config.json", MODEL, "evil.Evil", model_type="evil"),
    "trust in the config": mapped("config.json", MODEL, "evil.Evil", trust_remote_code=True),
    "another repository": valued(
        "config.json", auto_map={"AutoConfig": "evil/evil--evil.Evil", MODEL: "evil/evil--evil.Evil"}
    ),
    "tokenizer mapped": mapped("tokenizer_config.json", "AutoTokenizer", "tokenization_evil.Evil", "evil.Evil"),
    "tokenizer of a class of its own": mapped(
        "tokenizer_config.json", "AutoTokenizer", "evil.Evil", tokenizer_class="Evil", trust_remote_code=True
    ),
    "processor mapped": mapped("processor_config.json", "AutoProcessor", "processing_evil.Evil"),
    "processor of a class of its own": mapped(
        "processor_config.json", "AutoProcessor", "evil.Evil", processor_class="Evil", trust_remote_code=True
    ),
    "pictures mapped": mapped("preprocessor_config.json", "AutoImageProcessor", "image_processing_evil.Evil"),
    "pictures of a class of its own": mapped(
        "preprocessor_config.json", "AutoImageProcessor", "evil.Evil", image_processor_type="Evil"
    ),
    "modules beside": beside("modeling_evil.py", "tokenization_evil.py", "processing_evil.py", "conftest.py"),
    "a package beside": beside("__init__.py", "transformers/__init__.py", "torch.py", "safetensors.py"),
    "startup files": beside("sitecustomize.py", "usercustomize.py", "setup.py"),
    "generate of its own": beside("custom_generate/generate.py", "custom_generate/requirements.txt"),
    "generation config": valued("generation_config.json", custom_generate="evil", trust_remote_code=True),
    "attention of its own": valued("config.json", attn_implementation="evil/evil:attention"),
    "quantisation of its own": valued("config.json", quantization_config={"quant_method": "evil", "modules": "evil"}),
    "pickled weights": pickled("pytorch_model.bin", alone=True),
    "pickled weights beside others": pickled("pytorch_model.bin"),
    "pickled, called safetensors": pickled("model.safetensors"),
    "pickled with torch's ending": pickled("model.pt", alone=True),
    "arguments": pickled("training_args.bin"),
    "optimizer": pickled("optimizer.pt"),
    "schedule": pickled("scheduler.pt"),
    "random state": pickled("rng_state.pth"),
    "state of the learner": pickled("learner/optimizer.pt"),
    "vocabulary": pickled("vocab.pkl"),
    "numbers": pickled("weights.npy"),
    "template: classes": template("''.__class__.__mro__[1].__subclasses__()"),
    "template: globals": template("lipsum.__globals__['os'].system('touch MARK')"),
    "template: cycler": template("cycler.__init__.__globals__.os.system('touch MARK')"),
    "template: format": template("'{0.__init__.__globals__}'.format(raise_exception)"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_code_of_a_model_runs(tmp_path, kind):
    folder, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(model_path("tiny-base"), folder)
    KINDS[kind](folder, str(mark))

    for use in (check_model, load_model, lambda path: Chat(path).opened, lambda path: parse_player(path).check()):
        try:
            use(str(folder))
        except ValueError as error:
            assert len(str(error).splitlines()) <= 3
        assert not mark.exists()


def test_code_that_does_run_is_seen(tmp_path):
    pickled("a.bin")(tmp_path, str(tmp_path / "ran"))
    pickle.loads((tmp_path / "a.bin").read_bytes())
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors", "optimizer.pt", "adapter.py"])
def test_no_code_of_an_adapter_runs(tmp_path, name):
    folder, mark = tmp_path / "adapter", tmp_path / "ran"
    folder.mkdir()
    (folder / CONFIG).write_text(
        json.dumps(
            {
                "base_model_name_or_path": model_path("tiny-base"),
                "peft_type": "LORA",
                "r": 4,
                "target_modules": ["q_proj"],
                "auto_mapping": {"parent_library": "adapter", "base_model_class": "Evil"},
            }
        )
    )
    pickled(name)(folder, str(mark)) if not name.endswith(".py") else beside(name)(folder, str(mark))
    for use in (check_model, lambda path: merge_adapter(path, str(tmp_path / "merged"))):
        with pytest.raises(ValueError):
            use(str(folder))
        assert not mark.exists()
