"""A finished group on its way: made ready where it is played, opened where it is trained on.

    EnvWorker.finish -> Parcel -> ReplayBuffer.put, take -> SealedBatch -> Learner.step

All that takes time is done by env workers, of which there can be more: samples, rows for the disk, what metrics and
curriculum need. The buffer decides by a few figures, and hands on bytes. Bytes, and not references: what an object
store holds goes with its node, and a group that the buffer has taken in is not lost with the worker that made it.

They are pickles, as all that goes from actor to actor is; nothing is read from disk this way.
"""

import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from g1_ray.config import RunConfig
from g1_ray.learner.samples import fault_of_group, is_flat, trained_on
from g1_ray.learner.tally import Tally, origin_of, tally_of
from g1_ray.pipeline.curriculum import Lesson, lesson_of
from g1_ray.runs.trajectories import packed_rows
from g1_ray.types import Batch, Group, Origin, Sample, Ticket

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parcel:
    """A finished group as the buffer has it."""

    ticket: Ticket
    min_version: int
    """The oldest policy version that sampled a token of it, e.g. 3."""
    fault: str = ""
    """What is wrong with it, e.g. "rollout 0: no turns"; '' for nothing."""
    flat: bool = False
    """Whether all its rollouts earn the same."""
    samples: bytes = b""
    """What is trained on, a pickle of `Sample`s; b'' of a group that is not."""
    rows: bytes = b""
    """Its rows among the trajectories (`packed_rows`); b'' where there are none."""
    tally: Tally | None = None
    """None where it has a fault."""
    lesson: Lesson | None = None
    """None where it has a fault."""


@dataclass(frozen=True)
class SealedBatch:
    """A `Batch` on its way to the learner."""

    version: int
    """The policy version it is to be trained from, e.g. 3."""
    samples: tuple[bytes, ...]
    """Of each group."""
    origin: Origin


def parcel_of(group: Group, config: RunConfig) -> Parcel:
    """Makes a group ready; one with a fault has nothing to train on, and can perhaps be looked at."""
    try:
        rows = packed_rows(group)
    except Exception:  # a group that can't be stored must not keep others from being booked
        log.exception("group %d is not among the trajectories", group.ticket.group)
        rows = b""
    if fault := fault_of_group(group):
        return Parcel(group.ticket, group.min_version, fault, rows=rows)
    samples = trained_on(group, config.algorithm)
    game = next(game for game in config.games if game.name == group.ticket.game)
    return Parcel(
        group.ticket,
        group.min_version,
        flat=is_flat(group),
        samples=pickle.dumps(samples, protocol=5) if samples else b"",
        rows=rows,
        tally=tally_of(group, samples, config.rollout.screen_size),
        lesson=lesson_of(group, game),
    )


def sealed_batch(
    parcels: Sequence[Parcel], version: int, taken_at: float = 0.0, forgotten: Mapping[str, int] | None = None
) -> SealedBatch:
    """What `batch_of` makes of the groups themselves, unopened."""
    tallies = [parcel.tally for parcel in parcels if parcel.tally is not None]
    samples = tuple(parcel.samples for parcel in parcels if parcel.samples)
    return SealedBatch(version, samples, origin_of(tallies, version, taken_at, forgotten))


def opened(batch: SealedBatch) -> Batch:
    """The batch with its samples."""
    samples: list[Sample] = []
    for its in batch.samples:
        samples += pickle.loads(its)
    return Batch(batch.version, tuple(samples), batch.origin)
