"""The two graphs of a run, and the executor that runs them.

    rollout graph, one for each lane, every lane runs one tick after the other
        ReplayBuffer.admit -> EnvWorker.observe -> [InferenceEngine.generate -> EnvWorker.score] x turns
                           -> EnvWorker.finish -> ReplayBuffer.put

    train graph, one tick for each optimizer step
        ReplayBuffer.take -> Learner[k].step -> Learner[k].weights -> InferenceEngine[m].load_policy
                          -> ReplayBuffer.release

    call          consumes                  waits for                   is unblocked by
    admit         a number of groups        slots                       put (flat, faulty), fail, release, close
    observe       tickets                   admit
    generate      open groups               observe, or score           load_policy, where that has paused the engine
    score         open groups, answers      generate
    finish        open groups               the last score
    put           groups                    finish                      (wakes take)
    take          a policy version          groups_per_step groups      put, close
    step          a batch                   take; all other ranks       the other ranks' step
    weights       a report, to wait for it  step; all other ranks       the other ranks' weights
    load_policy   weights, a report         the first rank's weights
    release       a report, sync reports    all load_policy             (wakes admit)

Only `admit` and `take` wait for something outside of their tick. They are gates: a tick's other nodes are submitted
once its gate has let it through, so nothing that waits is ever queued before something that could wake it, and a
tick's deadline counts from the moment it has something to do.

The graphs are Ray DAGs. Ray's own executors are not used: `DAGNode.execute` is deprecated, and a compiled graph dies
with any of its actors and allows one graph an actor. Ours submits the bound nodes as plain actor calls that pass
object references from actor to actor.
"""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.dag import ClassMethodNode, DAGNode, InputNode
from ray.dag.constants import PARENT_CLASS_NODE_KEY


@dataclass(frozen=True)
class Actors:
    """Everybody who takes part: actor handles, or `Class.bind(...)` nodes where the graphs are only to be printed."""

    buffer: Any
    env_workers: Sequence[Any]
    engines: Sequence[Any]
    learners: Sequence[Any]


def rollout_graph(actors: Actors, lane: int, turns: int) -> DAGNode:
    """The graph of one lane; its input is the number of groups of a tick. Lanes are dealt out over the actors."""
    env_worker = actors.env_workers[lane % len(actors.env_workers)]
    engine = actors.engines[lane % len(actors.engines)]
    with InputNode() as num_groups:
        tickets = actors.buffer.admit.bind(num_groups)
        groups = env_worker.observe.bind(tickets)
        for _ in range(turns):
            answers = engine.generate.bind(groups)
            groups = env_worker.score.bind(groups, answers)
        return actors.buffer.put.bind(env_worker.finish.bind(groups))


def train_graph(actors: Actors) -> DAGNode:
    """The graph of an optimizer step; its input is the version of the policy that is trained."""
    with InputNode() as version:
        batch = actors.buffer.take.bind(version)
        reports = [learner.step.bind(batch) for learner in actors.learners]
        weights = [
            learner.weights.bind(report) for learner, report in zip(actors.learners, reports, strict=True)
        ]  # every rank takes part in gathering them; the first one has them
        loaded = [engine.load_policy.bind(weights[0], reports[0]) for engine in actors.engines]
        return actors.buffer.release.bind(reports[0], *loaded, *weights[1:])


def calls_of(output: DAGNode) -> list[ClassMethodNode]:
    """The actor calls of a graph, each after those it takes its arguments from. The first one is the gate."""
    order: dict[int, ClassMethodNode] = {}

    def visit(node: object) -> None:
        if isinstance(node, ClassMethodNode) and id(node) not in order:
            for argument in node.get_args():
                visit(argument)
            order[id(node)] = node

    visit(output)
    return list(order.values())


def actor_of(node: ClassMethodNode) -> Any:
    """The actor handle (or unmade actor) that a call is bound to."""
    return node.get_other_args_to_resolve()[PARENT_CLASS_NODE_KEY]


@dataclass
class Tick:
    """One passage through a graph."""

    lane: int
    calls: list[ClassMethodNode]
    value: Any
    refs: dict[int, ray.ObjectRef] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    """Unix time, s: when it was begun."""
    opened: float | None = None
    """Unix time, s: when its gate let it through."""

    def _submit(self, node: ClassMethodNode) -> None:
        arguments = [self.value if isinstance(a, InputNode) else self.refs.get(id(a), a) for a in node.get_args()]
        method = getattr(actor_of(node), node.get_method_name())
        self.refs[id(node)] = method.remote(*arguments)

    def begin(self) -> None:
        """Submits the gate."""
        self._submit(self.calls[0])

    def open(self) -> None:
        """Submits all that comes after the gate."""
        self.opened = time.time()
        for node in self.calls[1:]:
            self._submit(node)

    @property
    def gate(self) -> ray.ObjectRef:
        """What the first call gives."""
        return self.refs[id(self.calls[0])]

    @property
    def pending(self) -> ray.ObjectRef:
        """What the tick waits for now."""
        return self.gate if self.opened is None else self.refs[id(self.calls[-1])]

    def failure(self, timeout_s: float = 0.1) -> "Failure":
        """Of the first call that did not end well: where to look."""
        for node in self.calls:
            ref = self.refs.get(id(node))
            if ref is None or not ray.wait([ref], timeout=timeout_s)[0]:
                return Failure(f"{node.get_method_name()} gave no answer")
            try:
                ray.get(ref, timeout=timeout_s)
            except Exception as error:  # noqa: BLE001 - whatever it was, it is what is to be told
                trace = "".join(traceback.format_exception(error))
                return Failure(f"{node.get_method_name()}: {first_line(error)}", trace)
        return Failure("no call failed")


def first_line(error: BaseException) -> str:
    """An error in one line: its kind and what it says, the cause inside a Ray task error rather than its wrapping."""
    cause = getattr(error, "cause", None) or error
    said = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {said[0] if said else ''}"


@dataclass(frozen=True)
class Failure:
    """What went wrong in a tick."""

    line: str
    """In one line, e.g. "generate: RuntimeError: out of memory"."""
    trace: str = ""
    """Whole, the actor's own traceback in it; '' where there was no error, just no answer."""


@dataclass(frozen=True)
class Finished:
    """A tick that is over: its result, or what went wrong."""

    tick: Tick
    result: Any
    failure: Failure | None
    at: float
    """Unix time, s."""


class Executor:
    """Runs graphs, one tick at a time on each lane, any number of lanes at once."""

    def __init__(self, tick_timeout_s: float) -> None:
        self.tick_timeout_s = tick_timeout_s
        self.ticks: dict[int, Tick] = {}

    def start(self, lane: int, output: DAGNode, value: Any) -> None:
        """Begins a tick on a lane that has none."""
        assert lane not in self.ticks, f"lane {lane} is busy"
        tick = Tick(lane, calls_of(output), value)
        self.ticks[lane] = tick
        tick.begin()

    def poll(self, timeout_s: float) -> list[Finished]:
        """What has finished or failed, waiting for the first up to `timeout_s`; opens the gates that let through."""
        by_ref = {tick.pending: tick for tick in self.ticks.values()}
        done, _ = ray.wait(list(by_ref), num_returns=1, timeout=timeout_s, fetch_local=False)
        if done:  # whoever else is ready comes along
            done, _ = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0, fetch_local=False)
        finished = []
        for ref in done:
            tick = by_ref[ref]
            if tick.opened is None:
                tick.open()
            else:
                finished.append(self._finish(tick))
        now = time.time()
        for tick in list(self.ticks.values()):
            if tick.opened is not None and now - tick.opened > self.tick_timeout_s:
                failure = tick.failure()
                late = f"no end after {self.tick_timeout_s:g} s; {failure.line}"
                finished.append(self._drop(tick, Failure(late, failure.trace)))
        return finished

    def _finish(self, tick: Tick) -> Finished:
        try:
            result = ray.get(tick.pending, timeout=self.tick_timeout_s)
        except Exception:  # noqa: BLE001 - any failure of any part is the tick's
            return self._drop(tick, tick.failure())
        del self.ticks[tick.lane]
        return Finished(tick, result, None, time.time())

    def _drop(self, tick: Tick, failure: Failure) -> Finished:
        del self.ticks[tick.lane]
        return Finished(tick, None, failure, time.time())


def describe(output: DAGNode, names: dict[int, str]) -> list[str]:
    """A graph in words, a line a call. `names` has what each actor is called, by its `id`."""
    calls = calls_of(output)
    numbers = {id(node): number for number, node in enumerate(calls, 1)}
    lines = []
    for node in calls:
        arguments = ", ".join("input" if isinstance(a, InputNode) else f"#{numbers[id(a)]}" for a in node.get_args())
        lines.append(f"#{numbers[id(node)]:<3} {names[id(actor_of(node))]}.{node.get_method_name()}({arguments})")
    return lines
