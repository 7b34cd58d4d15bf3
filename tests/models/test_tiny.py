import asyncio
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors import safe_open  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer  # noqa: E402

from envs import PLAYERS, Codec, State, Task  # noqa: E402
from envs.styles import SHARES, Generalist  # noqa: E402
from envs.teacher import Oracle  # noqa: E402
from g1_ray.config import EngineConfig  # noqa: E402
from g1_ray.engines.make import make_engine  # noqa: E402
from g1_ray.evaluation.lab import AS_IS, Finding, experiment, lab_states  # noqa: E402
from g1_ray.evaluation.named import parse_game, parse_player  # noqa: E402
from g1_ray.models.chat import Chat  # noqa: E402
from g1_ray.models.find import MODELS, SHIPPED  # noqa: E402
from g1_ray.models.pixels import PixelValues  # noqa: E402
from g1_ray.models.tiny import TASKS, make_tiny  # noqa: E402
from g1_ray.types import Sampling  # noqa: E402
from jobs.tiny import config_of, main  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    make_tiny(out, TASKS, 0)
    return out


@pytest.fixture(scope="module")
def chat(folder: Path) -> Chat:
    return Chat(folder)


def start(task: Task, seed: int = 0) -> State:
    game = task.new_game()
    game.reset(seed)
    return State.of(task, game)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{task.new_game().rows}")
def test_prompts_and_answers_are_short_and_come_back(chat: Chat, task: Task) -> None:
    state, rng = start(task), np.random.default_rng(0)
    game = state.game()
    cells = game.rows * game.cols
    prompt = chat.prompt([(state, None)]).token_ids
    assert (prompt == chat.image_token_id).sum() == cells  # a visual token a cell
    assert len(prompt) - cells <= 16
    for teacher in (Oracle(task), Generalist(task, SHARES)):
        for seed in range(5):
            text = teacher.answer(start(task, seed).game(), rng).text
            ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
            assert chat.decode(np.array(ids)) == text
            assert len(ids) <= 3 * cells + 30  # a working is no longer than a few boards
            assert chat.tokenizer.unk_token_id not in ids


def test_a_board_costs_one_token_a_cell(chat: Chat) -> None:
    for task in TASKS:
        codec, board = Codec(task), start(task).game().perception()
        assert len(chat.tokenizer(codec.describe(board) + "\n")["input_ids"]) == board.size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n \n",
        "h\u00e9llo \u65e5\u672c \U0001f600",
        "<answer>up</answer>",
        "a|b||c\td\r\n\x00",
        "(7, 11) (0, 1)",
    ],
)
def test_any_text_comes_back(chat: Chat, text: str) -> None:
    assert chat.decode(np.array(chat.tokenizer(text)["input_ids"], int)) == text


def test_prompts_of_other_settings_come_back(chat: Chat) -> None:
    for task in (
        Task.make("2048", reasoning={"size": 8, "goal": 64}, perception={"tiles": "colors"}),
        Task.make("shisen", reasoning={"rows": 5, "cols": 8}),
        Task.make("swap", reasoning={"rows": 9, "cols": 7, "goal": 3}, perception={"tiles": "glyphs"}),
    ):
        text = Codec(task).prompt()
        assert chat.decode(np.array(chat.tokenizer(text)["input_ids"])) == text


def test_every_piece_is_one_token(chat: Chat) -> None:
    vocabulary = chat.tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    for piece, token in itertools.islice(vocabulary.items(), 0, None, 7):
        if not piece.startswith("<"):
            assert chat.tokenizer(piece)["input_ids"] == [token]


def test_template_is_that_of_qwen(chat: Chat) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]
    render = chat.processor.apply_chat_template
    assert render(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Hi<|im_end|>\n<|im_start|>assistant\n"
    )
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    told += [{"role": "assistant", "content": "Yo"}]
    assert render(told, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    )


def test_loads_by_the_auto_classes_and_sees_the_picture(folder: Path, chat: Chat) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert 0.4e6 < sum(weight.numel() for weight in model.parameters()) < 1e6
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    task = TASKS[0]
    states = [start(task, seed) for seed in range(2)]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": Codec(task).prompt()}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    logits = []
    for state in states:
        inputs = processor(text=[text], images=[state.draw()], return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == chat.prompt([(state, None)]).token_ids.tolist()
        assert np.array_equal(inputs["pixel_values"].numpy(), chat.pixel_values([state])[0])
        with torch.no_grad():
            logits.append(model(**inputs).logits[0, -1])
    assert not torch.allclose(*logits)


def test_no_frame_is_resized(chat: Chat) -> None:
    for task in (*TASKS, Task.make("2048", reasoning={"size": 2}, perception={"tile_px": 28}), Task.make("swap")):
        PixelValues(chat.image_processor, task.renderer)  # raises where it would be


def test_the_seed_decides_the_weights(folder: Path, tmp_path: Path) -> None:
    def weights(path: Path) -> bytes:
        with safe_open(path / "model.safetensors", "np") as file:
            return b"".join(file.get_tensor(name).tobytes() for name in sorted(file.keys()))

    before = torch.random.get_rng_state()
    make_tiny(tmp_path / "same", TASKS, 0)
    make_tiny(tmp_path / "other", TASKS, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert weights(folder) == weights(tmp_path / "same") != weights(tmp_path / "other")


def test_shipped_models_fit_and_load() -> None:
    files = [file for name in SHIPPED for file in (MODELS / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 5_000_000
    for name in SHIPPED:
        model = AutoModelForImageTextToText.from_pretrained(MODELS / name)
        assert model.dtype == torch.float32
        assert len(AutoTokenizer.from_pretrained(MODELS / name)) == model.config.text_config.vocab_size


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_shipped_models_made_anew_are_as_good(tmp_path: Path) -> None:
    """The very command that made them; two hours on two cores."""
    told = json.loads((MODELS / "tiny-coldstart" / "made.json").read_text())
    command = told["command"].replace("OUT", str(tmp_path)).split()
    assert command[:2] == ["g1-ray", "tiny"]
    assert main(command[2:]) == 0
    for game in config_of("tiny-coldstart").games:
        states = lab_states(game.task(), 300)
        for model in SHIPPED:
            for temperature in (1.0, 0.0):
                shipped, anew = (asyncio.run(found(path / model, states, temperature)) for path in (MODELS, tmp_path))
                assert anew.p_acc > shipped.p_acc - 0.04
                assert anew.reward_rate > shipped.reward_rate - 0.1
                assert anew.unreadable < shipped.unreadable + 0.02


async def found(path: Path, states: list[State], temperature: float) -> Finding:
    """What the lab finds of a model, as is."""
    size = EngineConfig(kind="transformers", gpus=0, max_model_len=512, max_num_seqs=256)
    engine = make_engine(str(path), size, "float32", Sampling())
    await engine.start()
    sampling = Sampling(temperature, 1.0, 200)
    lab = await experiment("tiny", "", states, Chat(path), engine.generate, sampling, (AS_IS,))
    await engine.stop()
    return lab.interventions[AS_IS]


def test_command_makes_an_untrained_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "model"), "--seed", "3"]) == 0
    assert f"wrote {tmp_path / 'model'}" in capsys.readouterr().out
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "model").num_parameters() > 1e5
    with pytest.raises(ValueError, match="--seed -1"):
        main([str(tmp_path), "--seed", "-1"])
    with pytest.raises(ValueError, match="--scale 0"):
        main([str(tmp_path), "--scale", "0"])


def test_command_trains_and_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([str(tmp_path), "--train", "--games", "2048-3x3", "--scale", "0.002"]) == 0
    for name in SHIPPED:
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}
        assert AutoModelForImageTextToText.from_pretrained(tmp_path / name).dtype == torch.float32
        stages = json.loads((tmp_path / name / "made.json").read_text())["stages"]
        assert [stage["teacher"]["kind"] for stage in stages] in (["generalist"] * 3, ["oracle"])
        assert "A model from scratch" in (tmp_path / name / "README.md").read_text()
    shown: list[list[str]] = []
    monkeypatch.setattr("jobs.evaluate.main", shown.append)
    assert main([str(tmp_path), "--measure", "4", "--games", "2048-3x3"]) == 0
    (args,) = shown
    assert parse_game(args[1]).task() == config_of("tiny-base").games[0].task()
    assert [parse_player(text).name for text in args[3:12]] == [
        "tiny-base, T 1",
        "tiny-base, greedy",
        "tiny-coldstart, T 1",
        "tiny-coldstart, greedy",
        "teacher",
        *PLAYERS,
    ]
    assert args[12:] == ["--runs", "10", "--moves", "20", "--lab", "4"]


def test_peft_takes_it(folder: Path, chat: Chat) -> None:
    peft = pytest.importorskip("peft")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    state = start(TASKS[0])
    ids = torch.from_numpy(chat.prompt([(state, None)]).token_ids.astype(np.int64))[None]
    pixels, grid = (torch.from_numpy(array) for array in chat.pixel_values([state]))
    kinds = (ids == chat.image_token_id).long()
    logits = model(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=kinds).logits
    logits.sum().backward()
    trained = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert trained and all("lora_" in name for name in trained)


@pytest.mark.slow
def test_vllm_serves_it_as_transformers_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same prompt ids from the unexpanded prompt and the picture, and the same greedy answers."""
    vllm = pytest.importorskip("vllm")
    from PIL import Image

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    path = MODELS / "tiny-coldstart"
    chat = Chat(path)
    states = [start(task, seed) for task in TASKS for seed in range(2) if task.new_game().rows <= 5]
    prompts = [chat.prompt([(state, None)]).token_ids for state in states]
    requests = []
    for state, ids in zip(states, prompts, strict=True):
        pads = ids == chat.image_token_id
        one = ids[~(pads & np.roll(pads, 1))].tolist()
        requests.append({"prompt_token_ids": one, "multi_modal_data": {"image": Image.fromarray(state.draw())}})
    engine = vllm.LLM(str(path), dtype="float32", enforce_eager=True, max_model_len=512)
    outputs = engine.generate(requests, vllm.SamplingParams(temperature=0, max_tokens=80))
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    for state, ids, output in zip(states, prompts, outputs, strict=True):
        assert output.prompt_token_ids == ids.tolist()
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        pixels, grid = (torch.from_numpy(array) for array in chat.pixel_values([state]))
        answer = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            mm_token_type_ids=(tokens == chat.image_token_id).long(),
            pixel_values=pixels,
            image_grid_thw=grid,
            max_new_tokens=80,
            do_sample=False,
        )
        assert answer[0, len(ids) :].tolist() == list(output.outputs[0].token_ids)
