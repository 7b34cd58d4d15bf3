"""What an optimizer step takes, in tokens and bytes, and how fast engines and ranks have to be for it.

What follows from the config is counted. How long answers are and how many tokens a second a GPU makes is not known
before somebody has measured it (`g1-ray bench`, or a run's own metrics): these are given. The page of the paper's sizes
is written by `python -m g1_ray.cluster.work > docs/plan.md`.
"""

from dataclasses import dataclass
from pathlib import Path

from g1_ray.cluster.memory import BYTES, ModelShape, gb, memory_table, needs_of, shape_of
from g1_ray.cluster.placement import Node, check_placement, nodes_assumed, nodes_of_yaml, placement_table
from g1_ray.config import RunConfig, load_config
from g1_ray.engines.make import published_adapter


@dataclass(frozen=True)
class Work:
    """Of one optimizer step. With `skip_flat_groups`, what is generated is more, by the share of groups that are."""

    groups: int
    answers: int
    """Of all groups, over all turns."""
    generated: float
    """Tokens that engines sample."""
    trained: float
    """Tokens that ranks compute: a group's prompt once a turn, at its longest, and all of its answers."""
    synced: float
    """Bytes that come to each node with engines: what is trained, in model.dtype, or with LoRA the adapter."""


def work_of(config: RunConfig, shape: ModelShape, answer_tokens: float = 0) -> Work:
    """A step of a run whose answers have so many tokens in the mean; 0: as many as they may have."""
    rollout, model = config.rollout, config.model
    mean = answer_tokens or float(rollout.max_tokens)
    if not 0 < mean <= rollout.max_tokens:
        raise ValueError(
            f"--answer-tokens {mean:g}: more than 0, and at most rollout.max_tokens = {rollout.max_tokens}"
        )
    prompts = rollout.groups_per_step * rollout.turns
    answers = prompts * rollout.group_size
    longest_prompt = max(1, config.engine.max_model_len - rollout.max_tokens)
    frozen = shape.vision_params if model.vision_is_frozen else 0
    sent = shape.lora_params(model) if published_adapter(config) else shape.params - frozen
    return Work(
        groups=rollout.groups_per_step,
        answers=answers,
        generated=answers * mean,
        trained=prompts * longest_prompt + answers * mean,
        synced=float(BYTES[model.dtype] * sent),
    )


def step_seconds(config: RunConfig, work: Work, engine_rate: float, rank_rate: float) -> float:
    """Seconds of a step at so many tokens a second of an engine and of a rank; syncs and evaluation are left out.

    Engines and learner work at the same time where rollouts may be stale, else one after the other.
    """
    engines = work.generated / (config.engine.num_engines * engine_rate)
    ranks = work.trained / (config.learner.num_ranks * rank_rate)
    return max(engines, ranks) if config.asynchrony.max_staleness else engines + ranks


def work_table(config: RunConfig, shape: ModelShape, answer_tokens: float = 0, rates: tuple[float, ...] = ()) -> str:
    """The work of a step in words, and what a step a minute asks for, or at the `rates` of engine and rank how long."""
    work = work_of(config, shape, answer_tokens)
    mean = work.generated / work.answers
    how = "as answers are given to have" if answer_tokens else "the longest that answers may be"
    least = " at least" if config.algorithm.skip_flat_groups else ""
    ranks, engines = config.learner.num_ranks, config.engine.num_engines
    lines = [
        f"work of a step, {mean:,.0f} tokens an answer: {how}",
        f"  {work.groups:,} groups, {work.answers:,} answers: {work.generated:,.0f} tokens generated{least}, "
        f"{work.trained:,.0f} trained, {gb(work.synced)} to each node with engines",
        f"  a step a minute asks for {work.generated / engines / 60:,.0f} tokens/s of each of {engines} engines, "
        f"{work.trained / ranks / 60:,.0f} of each of {ranks} ranks",
    ]
    if rates:
        seconds = step_seconds(config, work, *rates)
        lines.append(
            f"  at {rates[0]:,.0f} tokens/s an engine and {rates[1]:,.0f} a rank: {seconds:,.1f} s a step, "
            f"{seconds * config.steps / 3600:,.1f} hours for {config.steps:,} steps"
        )
    return "\n".join(lines)


ROOT = Path(__file__).parents[2]
PRESETS = {"paper-3b": "8x80GB", "paper-7b": "8x80GB", "paper-7b-cluster": ""}
"""Of the paper's sizes, and the machine of each; '': cluster.yaml."""
LENGTHS = (256, 1024, 8192)
"""Tokens of an answer in the mean: two that are assumed, and the most that the paper's settings allow."""
RATES = ((1000, 2000), (2000, 4000), (4000, 8000))
"""Tokens a second of an engine and of a rank, assumed."""


def page() -> str:
    """The plan of the paper's sizes: docs/plan.md."""
    parts = [
        """<!-- Written by `python -m g1_ray.cluster.work > docs/plan.md`; edit the code instead. -->
# What the paper's sizes take

No run of these sizes has been made by this project. Where each number comes from:

| number | how it was had |
|---|---|
| memory | counted by the planner (`g1_ray/cluster/memory.py`) from the published sizes of the models; checked against measured peaks of models of 4 to 63 M parameters on CPUs only (`pytest -m slow -s tests/cluster/test_measured.py`) |
| placement | by the planner, on one node with eight GPUs of 80 GB, or the nodes of cluster.yaml at its largest |
| groups, answers, bytes of a sync | counted from the config; that what crosses nodes is one copy of them to each node is measured (`pytest -m slow tests/cluster/test_nodes.py -k copy`) |
| tokens of an answer | assumed: 256 and 1,024; 8,192 is the most that the config allows |
| tokens of a prompt | the most that the config allows (`engine.max_model_len` less `rollout.max_tokens`) |
| tokens a second | assumed, as nobody has measured them; hours hold for these alone. Syncs, checkpoints and evaluation are left out |

With what you have measured (`make gpu`, or `tokens_per_s` of a run), the same for your own config:

    g1-ray train CONFIG --dry-run --answer-tokens 1024 --engine-rate 2000 --rank-rate 4000
"""  # noqa: E501
    ]
    for name, machine in PRESETS.items():
        config = load_config(ROOT / "jobs" / "configs" / f"{name}.toml")
        nodes = nodes_assumed(machine) if machine else nodes_of_yaml(ROOT / "cluster.yaml")
        parts.append(_preset(config, nodes))
    return "\n".join(parts)


def _preset(config: RunConfig, nodes: list[Node]) -> str:
    shape = shape_of(config.model.path)
    assert shape is not None, "its sizes are published"
    needs = needs_of(config, shape)
    tables = "\n".join([memory_table(needs, shape), placement_table(check_placement(needs, nodes), nodes)])
    ranks, engines = config.learner.num_ranks, config.engine.num_engines
    rates = " | ".join(f"{engine:,} and {rank:,}" for engine, rank in RATES)
    rows = []
    for length in LENGTHS:
        work = work_of(config, shape, length)
        hours = [step_seconds(config, work, *pair) * config.steps / 3600 for pair in RATES]
        asked = f"{work.generated / engines / 60:,.0f} | {work.trained / ranks / 60:,.0f}"  # a step a minute
        told = " | ".join(f"{each:,.1f}" for each in hours)
        rows.append(f"| {length:,} | {work.generated:,.0f} | {work.trained:,.0f} | {asked} | {told} |")
    return "\n".join(
        [
            f"## {config.name}\n",
            *(f"    {line}" for line in tables.split("\n")),
            f"\nA step has {work.groups:,} groups and {work.answers:,} answers, and sends {gb(work.synced)} to each "
            f"node with engines. A step a minute asks for so many tokens a second of each of {engines} engines and "
            f"{ranks} ranks; {config.steps} steps take so many hours, at the tokens a second above them:\n",
            f"| an answer | generated a step | trained a step | engine, a step a minute | rank | {rates} |",
            "|" + "---:|" * (5 + len(RATES)),
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    print(page(), end="")
