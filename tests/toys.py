"""What the tests of the learner share: a tiny random model, and groups of answers made up at random."""

import atexit
import functools
import socket
import tempfile
from dataclasses import replace

import numpy as np

from envs import State, Task
from g1_ray.config import AlgorithmConfig, GameConfig, LearnerConfig, LoraConfig, ModelConfig, RolloutConfig, RunConfig
from g1_ray.models.chat import Chat
from g1_ray.models.tiny import make_tiny
from g1_ray.types import Completion, Group, Prompt, Rollout, Ticket, Turn

LOOK = {"tile_px": 28}


@functools.cache
def task() -> Task:
    return Task.make("2048", perception=LOOK)


@functools.cache
def tiny_model() -> str:
    """The folder of an untrained Qwen2.5-VL: two layers, two heads that share keys and values.

    Some widths are odd, so that two ranks get shards of different sizes.
    """
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    text = {"hidden_size": 64, "intermediate_size": 95, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    vision = {"hidden_size": 32, "intermediate_size": 47, "num_heads": 2}
    make_tiny(folder.name, [task()], seed=0, text=text | heads, vision=vision)
    return folder.name


@functools.cache
def chat() -> Chat:
    return Chat(tiny_model())


def state(seed: int) -> State:
    game = task().new_game()
    game.reset(seed)
    return State.of(task(), game)


def completion(rng: np.random.Generator, length: int, version: int = 0) -> Completion:
    words = rng.integers(20, 100, length).astype(np.int32)
    logprobs = np.log(rng.uniform(0.002, 0.02, length)).astype(np.float32)
    return Completion(words, logprobs, np.full(length, version, np.int32), "stop")


def turn(prompt: Prompt, answer: Completion, reward: float, **changes: object) -> Turn:
    values = dict(
        prompt=prompt,
        completion=answer,
        text="",
        action=0,
        cause="",
        legal=True,
        gain=reward,
        rewards={"game": reward},
        reward=reward,
        perception_exact=True,
        next_state=prompt.states[-1],
    )
    return Turn(**(values | changes))  # type: ignore[arg-type]


def group(number: int, size: int = 4, version: int = 0, rewards: tuple[float, ...] = ()) -> Group:
    """Answers of 5 to 12 tokens, to one board; rewards at random where none are given."""
    rng = np.random.default_rng(number)
    start = state(number)
    prompt = chat().prompt([(start, None)])
    rollouts = []
    for i in range(size):
        reward = rewards[i] if rewards else float(rng.random())
        answer = completion(rng, int(rng.integers(5, 13)), version)
        rollouts.append(Rollout((turn(prompt, answer, reward),)))
    return Group(Ticket(number, "2048", number, version), start, tuple(rollouts))


def text_group(number: int) -> Group:
    """Answers to a question without a picture."""
    made = group(number)
    question = Prompt(np.arange(30, 50, dtype=np.int32), ())
    asked = [replace(rollout.turns[0], prompt=question) for rollout in made.rollouts]
    return replace(made, rollouts=tuple(Rollout((each,)) for each in asked))


def chain_group(number: int, size: int = 2, window: int = 2, turns: int = 3) -> Group:
    """Rollouts of several turns on different boards, of which the last `window` stay in the prompt."""
    rng = np.random.default_rng(number)
    rollouts = []
    for i in range(size):
        history = [(state(number), None)]
        made = []
        for t in range(turns):
            prompt = chat().prompt(history[-window:])
            answer = completion(rng, int(rng.integers(3, 9)))
            made.append(turn(prompt, answer, float(rng.random())))
            history = [*history[:-1], (history[-1][0], answer.token_ids), (state(100 * number + 10 * i + t), None)]
        rollouts.append(Rollout(tuple(made)))
    return Group(Ticket(number, "2048", number, 0), state(number), tuple(rollouts))


def config(
    *,
    num_ranks: int = 1,
    tokens_per_pack: int = 4096,
    lora: int = 0,
    algorithm: dict[str, object] | None = None,
    rollout: dict[str, object] | None = None,
    optimizer: dict[str, object] | None = None,
    **model: object,
) -> RunConfig:
    return RunConfig(
        name="toy",
        model=ModelConfig(
            **({"path": tiny_model(), "dtype": "float32", "gradient_checkpointing": False} | model),
            lora=LoraConfig(rank=lora),
        ),
        games=(GameConfig(game="2048", perception=LOOK),),
        algorithm=AlgorithmConfig(**(algorithm or {})),
        rollout=RolloutConfig(**(rollout or {})),
        optimizer={"lr": 1e-4} | (optimizer or {}),
        learner=LearnerConfig(num_ranks=num_ranks, gpus=0, tokens_per_pack=tokens_per_pack),
    )


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
