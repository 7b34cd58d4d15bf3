"""The parts as Ray actors: thin shells around the plain classes, and where they are placed."""

import asyncio
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from g1_ray.cluster.join import PROCESS_ENV
from g1_ray.cluster.reserve import memory_is_booked, reserve, teams
from g1_ray.cluster.storage import check_storage
from g1_ray.config import RunConfig
from g1_ray.engines.make import engine_of_run, published_adapter
from g1_ray.engines.weight_sync import SyncReport, pack_weights
from g1_ray.logs import start_logging
from g1_ray.models.words import Phrases
from g1_ray.pipeline.graph import Actors
from g1_ray.pipeline.parcels import Parcel, SealedBatch, opened, parcel_of, sealed_batch
from g1_ray.pipeline.parts import Part, Where, waits, watched, where
from g1_ray.pipeline.replay_buffer import ReplayBuffer
from g1_ray.rollout.env_worker import EnvWorker, unspoiled
from g1_ray.runs.run_folder import RunFolder
from g1_ray.types import (
    Completion,
    Fate,
    Floats,
    Ints,
    OpenGroup,
    Origin,
    Prompt,
    Request,
    Sampling,
    Spoiled,
    StepReport,
    Ticket,
)

log = logging.getLogger(__name__)
START_TIMEOUT_S = 600.0
"""Longest wait for an actor to be there: an engine compiles and loads before it is."""


@dataclass(frozen=True)
class Receipt:
    """What the buffer says of the groups of a tick."""

    groups: list[tuple[int, int]]
    """The number and the oldest version of every group that came, e.g. [(4711, 3)]."""
    flat_in_a_row: int
    """Groups since the last one that was not flat, these included, e.g. 0."""
    spoiled: str = ""
    """What is wrong with most of the groups that came lately; '' where that is so of fewer."""


@dataclass(frozen=True)
class StepSummary:
    """All there is to say about one optimizer step."""

    report: StepReport
    """With the metrics of the batch, the step and the weight sync together."""
    books: dict[str, int]
    """Of the buffer, after it, e.g. {"issued": 120, "trained": 96, "in_flight": 24}."""


def be_exact(config: RunConfig) -> None:
    """Where a run is deterministic, PyTorch has to be in this process: it refuses what it can't do so."""
    if config.deterministic:
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what PyTorch asks for, before CUDA is there
        torch.use_deterministic_algorithms(True)


def was_started_anew() -> bool:
    """Whether Ray has started this actor again, as it had died."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own code uses what Ray deprecates
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)


class BufferActor:
    """The replay buffer, where the ledger and the rollouts are written."""

    def __init__(self, config: RunConfig, folder: str) -> None:
        self.config = config
        self.folder = RunFolder(folder)
        start_logging("buffer", self.folder.path)
        self.stacks = watched(self.folder.path, "buffer")
        self.buffer = self._made()
        self.recovered = was_started_anew()
        """Since its books came off the ledger, in which what the curriculum had learned since a checkpoint is not."""
        if self.recovered:
            self.buffer.recover(self.folder.ledger_lines(), self.folder.learned())
            log.info("recovered: %s", self.buffer.books())

    def _made(self) -> ReplayBuffer:
        return ReplayBuffer(self.config, self._keep, self.folder.log_books)

    def _keep(self, fate: Fate, group: Parcel | None) -> None:
        self.folder.log_fate(fate)
        if group is not None and group.rows:
            try:
                self.folder.keep_rows(group.rows)
            except Exception:  # a group that can't be stored must not keep others from being booked
                log.exception("group %d is not among the trajectories", fate.group)

    async def alive(self) -> Where:
        return where(self.stacks)

    async def waits(self) -> str:
        return waits()

    async def admit(self, num_groups: int) -> list[Ticket]:
        return await self.buffer.admit(num_groups)

    async def put(self, groups: Sequence[Parcel | Spoiled]) -> Receipt:
        await self.buffer.put(groups)
        numbers = [(group.ticket.group, group.min_version) for group in groups if isinstance(group, Parcel)]
        return Receipt(numbers, self.buffer.flat_in_a_row, self.buffer.spoiled)

    async def fail(self, tickets: Sequence[Ticket], reason: str, blame: bool) -> None:
        await self.buffer.fail(tickets, reason, blame)

    async def take(self, version: int) -> SealedBatch | None:
        groups, flat, forgotten = await self.buffer.take(version)
        if not groups:
            return None  # closed
        return sealed_batch([*groups, *flat], version, time.time(), forgotten)

    async def release(self, report: StepReport, *loaded: SyncReport | None) -> StepSummary:
        """Ends the step: its groups are booked, and their slots are free again."""
        await self.buffer.release(report.version, report.skipped)
        metrics = {**report.origin.metrics, **self.buffer.curriculum.metrics(), **report.metrics}
        syncs = [sync for sync in loaded if sync is not None]
        if syncs:
            metrics["sync/pause_s"] = max(sync.pause_s for sync in syncs)
            metrics["sync/load_s"] = max(sync.load_s for sync in syncs)
            metrics["sync/bytes"] = float(max(sync.num_bytes for sync in syncs))
        return StepSummary(replace(report, metrics=metrics), self.buffer.books())

    async def snapshot(self, step: int, exact: bool) -> dict[str, Any] | None:
        """The books for the checkpoint of a step, which is marked in the ledger; None where they are to be `exact`, and
        are not, as the buffer has died."""
        if exact and self.recovered:
            return None
        state = self.buffer.state_dict()
        self.folder.mark(step, state["books"]["issued"])
        return state

    async def saved(self, step: int) -> None:
        self.folder.saved(step)

    async def load_state_dict(self, state: dict[str, Any]) -> None:
        self.buffer.load_state_dict(state)

    async def pause(self) -> None:
        """Lets go whoever waits, and closes its files: somebody else is going to write to them."""
        await self.buffer.close()
        self.folder.close()

    async def reopen(self, state: dict[str, Any] | None) -> None:
        """Begins again with the books of a checkpoint, or with none; what is told of older tickets is refused."""
        self.folder = RunFolder(self.folder.path)
        self.buffer, self.recovered = self._made(), False
        if state:
            self.buffer.load_state_dict(state)

    async def close(self) -> dict[str, int]:
        """Lets go whoever waits, and writes out what is kept. The final books."""
        books = await self.buffer.close()
        self.folder.close()
        return books


class EnvActor(EnvWorker):
    """An env worker with a process of its own."""

    def __init__(self, config: RunConfig, words: bytes, index: int) -> None:
        """`words`: a pickled reference to `Phrases`. Of one that is not pickled Ray warns at every start: it might be
        gone when this is started anew. One that is pickled is kept until the driver ends."""
        start_logging(f"env-{index}", config.folder)
        self.stacks = watched(config.folder, f"env-{index}")
        super().__init__(config, ray.get(ray.cloudpickle.loads(words)))
        self.whole_config = config

    def finish(self, groups: Sequence[OpenGroup | Spoiled]) -> list[Parcel | Spoiled]:  # type: ignore[override]
        """The finished groups, made ready for the buffer."""
        return [
            group if isinstance(group, Spoiled) else unspoiled(group.ticket, parcel_of, group, self.whole_config)
            for group in super().finish(groups)
        ]

    def alive(self) -> Where:
        return where(self.stacks)


class LearnerActor:
    """One rank of the learner, and what it gives to the engines."""

    def __init__(self, config: RunConfig, rank: int) -> None:
        from g1_ray.learner.learner import Learner

        start_logging(f"learner-{rank}", config.folder)
        self.stacks = watched(config.folder, f"learner-{rank}")
        be_exact(config)
        self.learner = Learner(config, rank, config.learner.num_ranks)
        self.adapter_alone = published_adapter(config) is not None

    @ray.method(concurrency_group="watch")
    def alive(self) -> Where:
        return where(self.stacks)

    def address(self) -> str:
        """Where the ranks meet: a free port of this one's node."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def setup(self, address: str) -> int:
        return self.learner.setup(address)

    def load(self, checkpoint: str) -> tuple[int, dict[str, Any]]:
        """Goes on from a checkpoint that the driver has looked at; returns its version and the buffer's books."""
        books = self.learner.load(checkpoint, checked=True)["buffer"]
        return self.learner.version, books

    def step(self, batch: SealedBatch) -> StepReport:
        return self.learner.step(opened(batch))

    def weights(self, report: StepReport | None) -> NDArray[np.uint8] | None:
        """The policy as bytes for the engines, on the first rank. `report` is only waited for."""
        parameters = self.learner.adapter() if self.adapter_alone else self.learner.weights(frozen_tower=False)
        return pack_weights(parameters.items(), self.learner.dtype) if self.learner.rank == 0 else None

    def policy(
        self, sequences: Sequence[tuple[Prompt, Ints]]
    ) -> tuple[StepReport, NDArray[np.uint8] | None, list[Floats]]:
        """For an engine that starts in the middle of a run: the policy as it is now, and what it makes of sequences."""
        report = StepReport(self.learner.version, {}, Origin())
        return report, self.weights(None), self.learner.logprobs(sequences)

    def logprobs(self, sequences: Sequence[tuple[Prompt, Ints]]) -> list[Floats]:
        return self.learner.logprobs(sequences)

    def save(self, folder: str, books: dict[str, Any]) -> None:
        """Writes the checkpoint, with the buffer's books in it."""
        self.learner.save(folder, {"buffer": books})


class EngineActor:
    """An inference engine that answers whole groups."""

    def __init__(self, config: RunConfig, model_path: str, index: int) -> None:
        start_logging(f"engine-{index}", config.folder)
        self.stacks = watched(config.folder, f"engine-{index}")
        self.up = False
        be_exact(config)
        self.alone = asyncio.Lock() if config.deterministic else None
        self.engine = engine_of_run(config, model_path)

    async def start(self) -> None:
        await self.engine.start()
        self.up = True

    async def alive(self) -> Where:
        """Raises what ended the engine, if anything did."""
        if self.up:
            await self.engine.alive()
        return where(self.stacks)

    async def waits(self) -> str:
        return waits()

    async def generate(self, groups: Sequence[OpenGroup | Spoiled]) -> list[list[tuple[Completion, ...]]]:
        """The answers to every group's requests; all of them are in flight at once.

        In a deterministic run one group's alone, as how sums are rounded depends on what is decoded together.
        """
        if self.alone is None:
            return await self._answers(groups)
        async with self.alone:
            return [answers for group in groups for answers in await self._answers([group])]

    async def _answers(self, groups: Sequence[OpenGroup | Spoiled]) -> list[list[tuple[Completion, ...]]]:
        requests = [request for group in groups for request in group.requests]
        answers = iter(await self.engine.generate(requests) if requests else [])
        return [[next(answers) for _ in group.requests] for group in groups]

    async def ask(self, requests: Sequence[Request], sampling: Sampling) -> list[tuple[Completion, ...]]:
        """Answers outside of training: for evaluation."""
        return await self.engine.generate(requests, sampling)

    async def logprobs(self, sequences: Sequence[tuple[Prompt, Ints]]) -> list[Floats]:
        return await self.engine.logprobs(sequences)

    async def load_policy(
        self, weights: NDArray[np.uint8], report: StepReport, back: bool = False
    ) -> SyncReport | None:
        """Loads what a step made; nothing where the step was skipped."""
        return None if report.skipped else await self.engine.load_policy(weights, report.version, back)

    async def stop(self) -> None:
        await self.engine.stop()


@dataclass(frozen=True)
class Crew:
    """The actors of a run, and the groups of resources they stand on."""

    actors: Actors
    groups: tuple[PlacementGroup, ...]

    def parts(self) -> list[Part]:
        """The actors, for who watches them."""
        its = {"env worker": self.actors.env_workers, "engine": self.actors.engines, "learner": self.actors.learners}
        return [Part("buffer", 0, self.actors.buffer)] + [
            Part(role, index, actor) for role, actors in its.items() for index, actor in enumerate(actors)
        ]

    def dismiss(self) -> None:
        """Ends every actor and gives the resources back."""
        actors = self.actors
        for actor in (*actors.env_workers, *actors.engines, *actors.learners, actors.buffer):
            ray.kill(actor)
        for group in self.groups:
            remove_placement_group(group)


def unmade(config: RunConfig) -> tuple[Actors, dict[int, str]]:
    """The actors of a run as nodes that stand for them, and their names by `id`: to look at graphs, not to run them."""
    nodes: dict[str, list[Any]] = {}
    for role, actor_class in (("env", EnvActor), ("engine", EngineActor), ("learner", LearnerActor)):
        nodes[role] = [ray.remote(actor_class).bind() for _ in range(teams(config)[role].count)]
    buffer = ray.remote(BufferActor).bind()
    names = {id(buffer): "ReplayBuffer"}
    for role, name in (("env", "EnvWorker"), ("engine", "InferenceEngine"), ("learner", "Learner")):
        names |= {id(node): f"{name}[{i}]" for i, node in enumerate(nodes[role])}
    return Actors(buffer, nodes["env"], nodes["engine"], nodes["learner"]), names


def hire(
    config: RunConfig, model_path: str, words: Phrases, folder: str, tell: Callable[[str], None] = lambda text: None
) -> Crew:
    """Starts the actors of a run, each role in a placement group of its own, once there is room for all of them.

    `tell` hears what is waited for. Raises `RuntimeError` that names what the cluster does not have, and `ValueError`
    where a node does not see the run's folder.
    """
    wanted = teams(config, memory_is_booked())
    placed = reserve(wanted, tell)
    try:
        check_storage(placed, folder, model_path)
    except BaseException:
        for group in placed.values():
            remove_placement_group(group)
        raise

    def team(role: str, remote: Any, *arguments: Any, **more: Any) -> list[Any]:
        made = []
        for index in range(wanted[role].count):
            options = {
                "num_cpus": wanted[role].each.get("CPU", 0),
                "num_gpus": wanted[role].each.get("GPU", 0),
                "memory": wanted[role].each.get("memory"),
                "scheduling_strategy": PlacementGroupSchedulingStrategy(
                    placed[role], placement_group_bundle_index=index
                ),
                "max_restarts": -1,  # how often somebody may live again is the driver's to say
                "max_task_retries": 0,
                "runtime_env": {"env_vars": PROCESS_ENV},
                **more,
            }
            made.append(remote.options(**options).remote(*arguments, index))
        return made

    kept = ray.cloudpickle.dumps(ray.put(words))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actors = Actors(
        ray.remote(BufferActor)
        .options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, runtime_env={"env_vars": PROCESS_ENV})
        .remote(config, folder),
        team("env", ray.remote(EnvActor), config, kept, allow_out_of_order_execution=True),
        team("engine", ray.remote(EngineActor), config, model_path, max_concurrency=1000),
        team("learner", ray.remote(concurrency_groups={"watch": 1})(LearnerActor), config),
    )
    return Crew(actors, tuple(placed.values()))
