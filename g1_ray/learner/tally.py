"""What a step's metrics are made of: counted where a group is, put together where a batch is."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from g1_ray.rollout.judge import accuracies, differ
from g1_ray.rollout.patterns import patterns_of, thinking_of
from g1_ray.runs.curves import PATTERNS
from g1_ray.types import Group, Origin, Sample


@dataclass(frozen=True)
class Tally:
    """A group in figures: columns of G rollouts and of their T turns, one rollout after the other.

    Where groups are screened these are the first `screen_size` rollouts: the others are there because those differed,
    and groups that have more of them would count for more in all means.
    """

    game: str
    """Name of the entry in the config's `games`, e.g. "shisen"."""
    min_version: int
    """The oldest policy version that sampled a token, e.g. 3."""
    num_samples: int
    """That it is trained on with, e.g. 8; 0: it is left out."""
    num_tokens: int
    """Sampled ones that are trained on, e.g. 720."""
    totals: list[float]
    """[G] returns."""
    rewards: list[float]
    """[T] weighted sums."""
    parts: list[dict[str, float]]
    """[T] unweighted parts of the rewards."""
    gains: list[float]
    """[T]"""
    legal: list[bool]
    """[T]"""
    exact: list[bool]
    """[T] whether the board was described without an error."""
    unreadable: list[str | None]
    """[T] why there is no move, e.g. "malformed"; None where there is one."""
    lengths: list[int]
    """[T] tokens of the answers."""
    cut_off: list[bool]
    """[T] whether an answer was."""
    versions: list[tuple[int, int, int]]
    """[T] of the answers' tokens: the oldest policy version, the newest, the sum over tokens."""
    patterns: list[set[str]]
    """[T] what their thinking is like: `rollout.patterns`."""


def tally_of(group: Group, samples: Sequence[Sample], screen_size: int = 0) -> Tally:
    """Of a group without a fault, and what there is to train on in it."""
    min_version = group.min_version
    group = replace(group, rollouts=group.rollouts[: screen_size or len(group.rollouts)])
    turns, names = group.turns, group.start.task.renderer.names
    versions = [turn.completion.versions for turn in turns]
    return Tally(
        game=group.ticket.game,
        min_version=min_version,
        num_samples=len(samples),
        num_tokens=sum(int(np.count_nonzero(sample.loss_mask)) for sample in samples),
        totals=[rollout.total for rollout in group.rollouts],
        rewards=[turn.reward for turn in turns],
        parts=[turn.rewards for turn in turns],
        gains=[turn.gain for turn in turns],
        legal=[turn.legal for turn in turns],
        exact=[turn.perception_exact for turn in turns],
        unreadable=[turn.cause if turn.action is None else None for turn in turns],
        lengths=[len(turn.completion.token_ids) for turn in turns],
        cut_off=[turn.completion.finish_reason == "length" for turn in turns],
        versions=[(int(its.min()), int(its.max()), int(its.sum())) for its in versions],
        patterns=[patterns_of(thinking_of(turn.text), names) for turn in turns],
    )


def origin_of(
    tallies: Sequence[Tally], version: int, taken_at: float = 0.0, forgotten: Mapping[str, int] | None = None
) -> Origin:
    """What a batch for policy `version` was made of; `taken_at`: Unix time, s; `forgotten` groups, by game, are counted
    as flat ones. Metrics that no answer bears on are left out."""
    more = Counter(forgotten or {})
    flat = sum(not differ(tally.totals) for tally in tallies)
    metrics = {
        "groups": float(len(tallies) + more.total()),
        "flat_groups": float(flat + more.total()),
        "samples": float(sum(tally.num_samples for tally in tallies)),
        "tokens": float(sum(tally.num_tokens for tally in tallies)),
    }
    metrics |= _metrics_of_turns(tallies, "")
    metrics |= _metrics_of_staleness(tallies, version)
    by_game: dict[str, list[Tally]] = defaultdict(list)
    for tally in tallies:
        by_game[tally.game].append(tally)
    for game, its in sorted(by_game.items()):
        metrics[f"{game}/groups"] = float(len(its) + more[game])
        metrics[f"{game}/return"] = float(np.mean([total for tally in its for total in tally.totals]))
        metrics[f"{game}/flat_groups"] = float(sum(not differ(tally.totals) for tally in its) + more[game])
        metrics |= _metrics_of_turns(its, f"{game}/")
        found = [patterns for tally in its for patterns in tally.patterns]
        for name in PATTERNS:
            metrics[f"{game}/pattern_{name}"] = float(np.mean([name in patterns for patterns in found]))
    oldest = min((tally.min_version for tally in tallies if tally.num_samples), default=version)
    return Origin(metrics, oldest, taken_at)


def _metrics_of_turns(tallies: Sequence[Tally], scope: str) -> dict[str, float]:
    """Means and shares; R_acc only where a board was read without an error."""
    if not any(tally.rewards for tally in tallies):
        return {}
    gains = [gain for tally in tallies for gain in tally.gains]
    unreadable = [cause for tally in tallies for cause in tally.unreadable]
    parts = [part for tally in tallies for part in tally.parts]
    p_acc, r_acc = accuracies([exact for tally in tallies for exact in tally.exact], [gain > 0 for gain in gains])
    metrics = {
        "reward": float(np.mean([reward for tally in tallies for reward in tally.rewards])),
        "gain": float(np.mean(gains)),
        "legal": float(np.mean([legal for tally in tallies for legal in tally.legal])),
        "p_acc": p_acc,
        "answer_tokens": float(np.mean([length for tally in tallies for length in tally.lengths])),
        "cut_off": float(np.mean([cut for tally in tallies for cut in tally.cut_off])),
        "unreadable": float(np.mean([cause is not None for cause in unreadable])),
    }
    if p_acc:
        metrics["r_acc"] = r_acc
    for name in sorted({name for its in parts for name in its}):
        metrics[f"reward_{name}"] = float(np.mean([its.get(name, 0.0) for its in parts]))
    for cause, count in sorted(Counter(cause for cause in unreadable if cause is not None).items()):
        metrics[f"unreadable_{cause}"] = count / len(unreadable)
    return {scope + name: value for name, value in metrics.items()}


def _metrics_of_staleness(tallies: Sequence[Tally], version: int) -> dict[str, float]:
    """Over the sampled tokens, in optimizer steps; and the share of answers that more than one policy sampled."""
    its = [versions for tally in tallies for versions in tally.versions]
    if not its:
        return {}
    tokens = sum(length for tally in tallies for length in tally.lengths)
    return {
        "staleness_mean": (version * tokens - sum(total for _, _, total in its)) / tokens,
        "staleness_max": float(version - min(oldest for oldest, _, _ in its)),
        "several_versions": float(np.mean([oldest != newest for oldest, newest, _ in its])),
    }
