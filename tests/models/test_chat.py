"""Chat templates that open `<think>`, that show earlier turns otherwise than they were, or that are none."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers")


from envs import Codec, State, Task  # noqa: E402
from g1_ray.models.chat import Chat  # noqa: E402
from g1_ray.models.find import MODELS  # noqa: E402
from jobs.__main__ import main  # noqa: E402

BEGIN, TURN = "<|im_start|>assistant\n{% endif %}", "{% for part in message.content %}{{ show(part) }}{% endfor %}"
OPENS = (BEGIN, "<|im_start|>assistant\n<think>\n{% endif %}")
FORGETS = (TURN, "{% if message.role == 'assistant' %}{{ message.content[0].text.split('</think>')[-1] }}"
           "{% else %}" + TURN + "{% endif %}")  # fmt: skip
LAST_PICTURE = (TURN, "{% if loop.last or message.role == 'assistant' %}" + TURN + "{% else %}...{% endif %}")
TASK = Task.make("2048", reasoning={"size": 3}, perception={"tile_px": 28})


def with_template(folder: Path, *changes: tuple[str, str]) -> str:
    """The tiny model with parts of its chat template replaced."""
    shutil.copytree(MODELS / "tiny-base", folder, dirs_exist_ok=True)
    file = folder / "chat_template.jinja"
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    return str(folder)


def state() -> State:
    game = TASK.new_game()
    game.reset(0)
    return State.of(TASK, game)


@pytest.mark.parametrize("space", ["", "\n", "\n\n"])
def test_a_think_that_the_template_opens_is_read(tmp_path, space):
    chat = Chat(with_template(tmp_path, (BEGIN, f"<|im_start|>assistant\n<think>{space}{{% endif %}}")))
    assert chat.opened == f"<think>{space}"
    codec = Codec(TASK)
    read = codec.read(chat.decode(chat.ids("up is free\n</think>\n<answer>up</answer>")))
    assert (read.thinking or "").strip() == "up is free" and read.action == 0
    assert chat.decode(chat.ids("not done")) == f"<think>{space}not done"
    own = codec.write(state().game().perception(), "so", 0)  # as a cold start's answers are
    assert chat.decode(chat.ids(own)) == own and codec.read(own).well_formed
    begun, rest = own[: own.index("so")], own[own.index("so") :]
    assert chat.decode(chat.ids(rest), begun) == own


@pytest.mark.parametrize("tail", ["", "<think>\n\n</think>\n\n", "<thinking>"])
def test_nothing_is_put_before_where_none_is_open(tmp_path, tail):
    chat = Chat(with_template(tmp_path, (BEGIN, f"<|im_start|>assistant\n{tail}{{% endif %}}")))
    assert chat.opened == "" and chat.decode(chat.ids("a</think>")) == "a</think>"


def test_turns_that_are_shown_as_they_were_go_on_with_an_open_think(tmp_path):
    chat = Chat(with_template(tmp_path, OPENS))
    first, answer = chat.prompt([(state(), None)]).token_ids, chat.ids("so</think>\n<answer>up</answer>")
    both = chat.prompt([(state(), answer), (state(), None)]).token_ids
    assert both.tolist() == [*first, *answer, *chat.following(TASK)]
    assert chat.tokenizer.decode(both).endswith("<think>\n")


@pytest.mark.parametrize("changes", [(FORGETS,), (OPENS, FORGETS), (LAST_PICTURE,)])
def test_turns_that_are_shown_otherwise_are_refused_before_anything_starts(tmp_path, capsys, changes):
    folder = with_template(tmp_path / "model", *changes)
    several = ["rollout.turns=3", f"model.path={folder}", f"out={tmp_path}/runs"]
    assert main(["train", "jobs/configs/quickstart.toml", *several]) == 2
    said = capsys.readouterr().err
    assert folder in said and "Use rollout.turns=1" in said and len(said.splitlines()) <= 3
    assert not (tmp_path / "runs").exists()
    Chat(folder).head(TASK)  # it serves for single turns


def test_what_can_not_be_asked_is_told_before_anything_starts(tmp_path, capsys):
    broken = with_template(tmp_path / "broken", (BEGIN, "{% for"))
    bare = with_template(tmp_path / "bare")
    Path(bare, "tokenizer.json").unlink()
    for given, said in (
        ([f"model.path={broken}"], "broken: the chat template can't write"),
        ([f"model.path={bare}"], "bare: can't be loaded"),
        (["engine.max_model_len=31", "rollout.max_tokens=8"], "engine.max_model_len = 31: a prompt about shisen"),
    ):
        assert main(["train", "jobs/configs/quickstart.toml", f"out={tmp_path}/runs", *given]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) <= 3, error
    assert not (tmp_path / "runs").exists()
