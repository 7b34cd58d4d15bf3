"""Models at random of several sizes, and groups of answers to train them on: what the parts of a run are timed with."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from envs import Codec
from g1_ray.cluster.memory import KNOWN
from g1_ray.config import RunConfig
from g1_ray.models.tiny import make_tiny
from g1_ray.rollout.env_worker import EnvWorker, phrases
from g1_ray.types import Completion, Floats, Group, Ints, OpenGroup, Prompt, Ticket

_3B = KNOWN["models"]["Qwen/Qwen2.5-VL-3B-Instruct"]
SHAPES: dict[str, dict[str, Mapping[str, Any]]] = {
    "tiny": {},
    "20m": {
        "text": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 5, "num_attention_heads": 16,
                 "num_key_value_heads": 8},
    },
    "0.1b": {
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 10, "num_attention_heads": 12,
                 "num_key_value_heads": 4, "initializer_range": 0.02,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]}},
        "vision": {"hidden_size": 384, "intermediate_size": 1024, "depth": 6, "num_heads": 6},
    },
    "3b": {
        "text": {**_3B["text_config"], "initializer_range": 0.02,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
        "vision": {**_3B["vision_config"], "num_heads": 16, "fullatt_block_indexes": [7, 15, 23, 31],
                   "initializer_range": 0.02},
    },
}  # fmt: skip
"""By what --sizes calls them: what a tiny Qwen2.5-VL's shape is replaced with. The largest is Qwen2.5-VL-3B's own."""


def run_of(folder: Path, size: str, device: str, dtype: str, kind: str = "transformers") -> RunConfig:
    """A run on Shisen-Sho 6x6 with a model of this size, which is made where it is not there."""
    path = folder / size
    config = RunConfig.model_validate(
        {
            "name": "bench",
            "model": {"path": str(path), "dtype": dtype, "gradient_checkpointing": size == "3b"},
            "games": [{"game": "shisen", "perception": {"tile_px": 28}}],
            "rollout": {"group_size": 8, "groups_per_step": 16, "max_tokens": 160},
            "learner": {"gpus": float(device == "cuda"), "tokens_per_pack": 16384 if device == "cuda" else 4096},
            "engine": {"kind": kind, "gpus": float(device == "cuda"), "max_model_len": 512, "max_num_seqs": 256,
                       "memory_utilization": 0.3, "enforce_eager": True},
        }
    )  # fmt: skip
    if not path.exists():
        stored = "bfloat16" if device == "cuda" else "float32"
        make_tiny(path, [game.task() for game in config.games], seed=0, dtype=stored, device=device, **SHAPES[size])
    return config


def groups_of(config: RunConfig, num_groups: int) -> list[Group]:
    """Groups of answers that name the board and a move, some legal, some not; as if all tokens were as likely."""
    words = phrases(config, config.model.path)
    worker, rng = EnvWorker(config, words), np.random.default_rng(0)
    (game,) = config.games
    opened = worker.observe([Ticket(number, game.name, number, 0) for number in range(num_groups)])
    answers, size = [], config.rollout.group_size
    for group in opened:
        assert isinstance(group, OpenGroup)
        its, codec = group.start.game(), Codec(group.start.task)
        others = rng.integers(0, codec.actions.num, size).tolist()
        moves = [*its.legal_actions()[: size // 2], *others][:size]
        texts = [codec.write(its.perception(), "two like tiles that a path joins", move) for move in moves]
        ids = [np.array([*words.ids(text), words.eos_token_id], np.int32) for text in texts]
        answers.append([[completion(tokens, np.full(len(tokens), -1.0, np.float32)) for tokens in ids]])
    made = worker.finish(worker.score(opened, answers))
    return [group for group in made if isinstance(group, Group)]


def completion(token_ids: Ints, logprobs: Floats) -> Completion:
    """An answer of the first policy."""
    return Completion(token_ids, logprobs, np.zeros(len(token_ids), np.int32), "stop")


def sequences_of(groups: list[Group]) -> list[tuple[Prompt, Ints]]:
    """What a learner or an engine scores."""
    return [(turn.prompt, turn.completion.token_ids) for group in groups for turn in group.turns]


def with_logprobs(groups: list[Group], logprobs: list[Floats]) -> list[Group]:
    """The groups as if they had been sampled with these."""
    scored = iter(logprobs)
    made = []
    for group in groups:
        rollouts = []
        for rollout in group.rollouts:
            turns = [replace(t, completion=replace(t.completion, logprobs=next(scored))) for t in rollout.turns]
            rollouts.append(replace(rollout, turns=tuple(turns)))
        made.append(replace(group, rollouts=tuple(rollouts)))
    return made
