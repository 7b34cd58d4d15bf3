"""The two graphs of a run, and the executor that runs them.

    rollout graph, one for each lane, every lane runs one tick after the other
        ReplayBuffer.admit -> EnvWorker.observe -> [InferenceEngine.generate -> EnvWorker.score] x passes
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

What waits for a `step` is submitted once that is over: a call whose arguments are not there yet would keep those after
it from being sent to the same rank, and nobody could ask it whether it is alive. An engine that fails in `load_policy`
does not fail the step: what waits for it is submitted once all engines are through, with None for those that failed.

The graphs are Ray DAGs. Ray's own executors are not used: `DAGNode.execute` is deprecated, and a compiled graph dies
with any of its actors and allows one graph an actor. Ours submits the bound nodes as plain actor calls that pass
object references from actor to actor.
"""

import contextlib
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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


def rollout_graph(actors: Actors, env_worker: int, engine: int, passes: int) -> DAGNode:
    """The graph of a tick on one env worker and one engine, by their numbers; its input is the number of groups."""
    games, answering = actors.env_workers[env_worker], actors.engines[engine]
    with InputNode() as num_groups:
        tickets = actors.buffer.admit.bind(num_groups)
        groups = games.observe.bind(tickets)
        for _ in range(passes):
            answers = answering.generate.bind(groups)
            groups = games.score.bind(groups, answers)
        return actors.buffer.put.bind(games.finish.bind(groups))


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


SETTLE_S = 60.0
"""Longest wait for a small result that is there, perhaps on another machine."""
MAY_FAIL = "load_policy"
"""The call that other calls of its tick go on without."""
AWAITED = ("step", MAY_FAIL)
"""Calls that have to be over before what waits for them is submitted."""


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
    passed: dict[int, bool] = field(default_factory=dict)
    """Of `AWAITED` calls that are over, by the node's `id`: whether they went well."""
    awaited: list[ray.ObjectRef] = field(default_factory=list)
    """What is news of the tick: its gate; then its end, and what may fail on the way."""

    def _submit(self, node: ClassMethodNode) -> None:
        arguments = [self.value if isinstance(a, InputNode) else self._result(a) for a in node.get_args()]
        method = getattr(actor_of(node), node.get_method_name())
        self.refs[id(node)] = method.remote(*arguments)

    def _result(self, argument: object) -> Any:
        return self.refs.get(id(argument), argument) if self.passed.get(id(argument), True) else None

    def named(self, method: str) -> list[ClassMethodNode]:
        """Its calls of a method, e.g. the steps of all ranks."""
        return [node for node in self.calls if node.get_method_name() == method]

    def begin(self) -> None:
        """Submits the gate."""
        self._submit(self.calls[0])
        self.awaited = [self.gate]

    def open(self) -> None:
        """Submits all that comes after the gate, up to what waits for calls that may fail."""
        self.opened = time.time()
        self._go_on()

    def _go_on(self) -> None:
        for node in self.calls[1:]:
            if id(node) not in self.refs and all(map(self._can_take, node.get_args())):
                self._submit(node)
        calls = [node for node in self.calls if node.get_method_name() in AWAITED]
        news = [self.refs[id(node)] for node in calls if id(node) in self.refs and id(node) not in self.passed]
        self.awaited = news + ([self.last] if self.last is not None else [])

    def _can_take(self, argument: object) -> bool:
        """Whether a call with this argument may be submitted by now."""
        if not isinstance(argument, ClassMethodNode):
            return True
        return id(argument) in (self.passed if argument.get_method_name() in AWAITED else self.refs)

    def settle(self, ref: ray.ObjectRef) -> None:
        """Goes on after an awaited call has ended.

        Raises what it raised; of one that may fail, what its arguments did.
        """
        node = next(node for node in self.calls if self.refs.get(id(node)) == ref)
        try:
            ray.get(ref, timeout=SETTLE_S)
            self.passed[id(node)] = True
        except Exception:
            if node.get_method_name() != MAY_FAIL:
                raise
            for argument in node.get_args():  # what the engine was given may be to blame, and not the engine
                ray.get(self.refs[id(argument)], timeout=1.0)
            self.passed[id(node)] = False
        self._go_on()

    @property
    def gate(self) -> ray.ObjectRef:
        """What the first call gives."""
        return self.refs[id(self.calls[0])]

    @property
    def last(self) -> ray.ObjectRef | None:
        """What the tick comes to, once that has been asked for."""
        return self.refs.get(id(self.calls[-1])) if self.opened is not None else None

    def failure(self, timeout_s: float = 0.1) -> "Failure":
        """Of the first call that raised, or else of the first that has not ended: where to look."""
        silent: list[ClassMethodNode] = []
        for node in self.calls:
            name, actor, ref = node.get_method_name(), actor_of(node), self.refs.get(id(node))
            if ref is None or not ray.wait([ref], timeout=timeout_s)[0]:
                waits_for = [self.refs[id(a)] for a in node.get_args() if id(a) in self.refs]
                silent += [node] if ref is not None and over(waits_for) else []
            elif name != MAY_FAIL:
                try:
                    ray.get(ref, timeout=timeout_s)
                except Exception as error:  # noqa: BLE001 - whatever it was, it is what is to be told
                    trace = "".join(traceback.format_exception(error))
                    return Failure(f"{name}: {first_line(error)}", trace, actor, error)
        if not silent:
            return Failure("no call failed")
        line, actors = f"{silent[0].get_method_name()} gave no answer", tuple(map(actor_of, silent))
        return Failure(line, actor=actors[0], silent=actors)

    def cancel(self) -> None:
        """Takes back the calls that are being answered: an engine gives up what it was asked for.

        Those that wait for them fail with them. (Of a call that was not sent yet, the actor would miss the number.)
        """
        for node in self.calls:
            ref = self.refs.get(id(node))
            waits_for = [self.refs[id(a)] for a in node.get_args() if id(a) in self.refs]
            if ref is not None and not over([ref]) and over(waits_for):
                with contextlib.suppress(Exception):  # of an actor that is gone
                    ray.cancel(ref, recursive=False)


def over(refs: list[ray.ObjectRef]) -> bool:
    """Whether all of some calls have ended, well or not."""
    return not refs or len(ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[0]) == len(refs)


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
    actor: Any = None
    """Whose call it was."""
    error: BaseException | None = None
    """What the call raised; None where it gave no answer."""
    silent: tuple[Any, ...] = ()
    """Everybody who was asked and gave no answer, where nothing was raised: ranks wait for each other."""

    @property
    def call(self) -> str:
        """E.g. "generate"."""
        return self.line.partition(":")[0].removesuffix(" gave no answer").rpartition("; ")[2]

    @property
    def died(self) -> bool:
        """Whether its actor did, or could not be reached."""
        return isinstance(self.error, ray.exceptions.RayActorError | ray.exceptions.ObjectLostError)


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
        self.who_hangs: Callable[[Failure], Any] = lambda failure: failure.actor
        """The actor to blame for a tick that came to no end; asked before its calls are taken back."""
        self.ticks: dict[int, Tick] = {}

    def start(self, lane: int, output: DAGNode, value: Any) -> None:
        """Begins a tick on a lane that has none."""
        assert lane not in self.ticks, f"lane {lane} is busy"
        tick = Tick(lane, calls_of(output), value)
        self.ticks[lane] = tick
        tick.begin()

    def poll(self, timeout_s: float) -> list[Finished]:
        """What has finished or failed, waiting for the first up to `timeout_s`; opens the gates that let through."""
        by_ref = {ref: tick for tick in self.ticks.values() for ref in tick.awaited}
        if not by_ref:
            time.sleep(timeout_s)
            return []
        done, _ = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0, fetch_local=False)
        if not done:
            done, _ = ray.wait(list(by_ref), num_returns=1, timeout=timeout_s, fetch_local=False)
        finished = []
        for ref in done:
            tick = by_ref[ref]
            if self.ticks.get(tick.lane) is tick and (over := self._hear(tick, ref)):
                finished.append(over)
        now = time.time()
        for tick in list(self.ticks.values()):
            if tick.opened is not None and now - tick.opened > self.tick_timeout_s:
                failure = tick.failure()
                failure = replace(failure, line=f"no end after {self.tick_timeout_s:g} s; {failure.line}")
                finished.append(self._drop(tick, replace(failure, actor=self.who_hangs(failure))))
        return finished

    def _hear(self, tick: Tick, ref: ray.ObjectRef) -> Finished | None:
        """Takes a tick on by what has ended; itself, where that was its last call or one that failed."""
        try:
            if tick.opened is None:
                tick.open()
            elif ref == tick.last:
                result = ray.get(ref, timeout=self.tick_timeout_s)
                del self.ticks[tick.lane]
                return Finished(tick, result, None, time.time())
            else:
                tick.settle(ref)
        except Exception:  # noqa: BLE001 - any failure of any part is the tick's
            return self._drop(tick, tick.failure())
        return None

    def _drop(self, tick: Tick, failure: Failure) -> Finished:
        del self.ticks[tick.lane]
        tick.cancel()
        return Finished(tick, None, failure, time.time())

    def clear(self) -> list[Tick]:
        """Gives up all ticks, and returns them."""
        dropped = list(self.ticks.values())
        self.ticks.clear()
        for tick in dropped:
            tick.cancel()
        return dropped


def describe(output: DAGNode, names: dict[int, str]) -> list[str]:
    """A graph in words, a line a call. `names` has what each actor is called, by its `id`."""
    calls = calls_of(output)
    numbers = {id(node): number for number, node in enumerate(calls, 1)}
    lines = []
    for node in calls:
        arguments = ", ".join("input" if isinstance(a, InputNode) else f"#{numbers[id(a)]}" for a in node.get_args())
        lines.append(f"#{numbers[id(node)]:<3} {names[id(actor_of(node))]}.{node.get_method_name()}({arguments})")
    return lines
