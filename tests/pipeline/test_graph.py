import asyncio
import time
from dataclasses import replace

import pytest

from g1_ray.pipeline.graph import Actors, Executor, Failure, calls_of, describe, rollout_graph, train_graph

pytestmark = pytest.mark.xdist_group("ray")


class Buffer:
    """Admits as many ticks at once as it has slots; keeps what is put."""

    async def open(self, slots: int) -> None:
        self.slots = asyncio.Semaphore(slots)
        self.done: list[str] = []
        self.most = self.now = 0

    async def admit(self, n: int) -> str:
        await self.slots.acquire()
        self.now += 1
        self.most = max(self.most, self.now)
        return f"{n}"

    async def put(self, text: str) -> str:
        self.now -= 1
        self.slots.release()
        self.done.append(text)
        return text

    async def take(self, version: int) -> int:
        return version

    async def release(self, report: int, *rest: object) -> tuple[object, ...]:
        return (report, *rest)

    async def seen(self) -> tuple[list[str], int]:
        return self.done, self.most


class Env:
    def observe(self, text: str) -> str:
        return text + " seen"

    def score(self, play: str, answer: str) -> str:
        return f"{play}+{answer}"

    def finish(self, play: str) -> str:
        return play


class Engine:
    def __init__(self) -> None:
        self.behave()

    def behave(self, delay_s: float = 0.0, fails_at: int = 0) -> None:
        self.delay_s, self.fails_at, self.calls = delay_s, fails_at, 0

    async def generate(self, play: str) -> str:
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("out of memory\nand more")
        await asyncio.sleep(self.delay_s)
        return f"a{self.calls}"

    async def load_policy(self, weights: str, report: int) -> str:
        return f"loaded {weights} of {report}"


class Rank:
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def step(self, version: int) -> int:
        return version + 1

    def weights(self, report: int) -> str:
        return f"w{report}" if self.rank == 0 else ""


@pytest.fixture(scope="module")
def everybody(ray_cluster):
    def made(kind, *args):
        return ray_cluster.remote(kind).options(num_cpus=0).remote(*args)

    return Actors(made(Buffer), [made(Env)], [made(Engine), made(Engine)], [made(Rank, rank) for rank in range(3)])


@pytest.fixture
def crew(ray_cluster, everybody):
    def make(engines: int = 1, ranks: int = 1, **behaviour: float) -> Actors:
        asked = [engine.behave.remote(**behaviour) for engine in everybody.engines]
        asked += [everybody.env_workers[0].finish.remote(""), everybody.buffer.open.remote(2)]
        ray_cluster.get(asked, timeout=120)  # all of them are there
        return Actors(everybody.buffer, everybody.env_workers, everybody.engines[:engines], everybody.learners[:ranks])

    return make


def run_until(executor: Executor, count: int, again=None):
    finished, deadline = [], time.monotonic() + 30
    while len(finished) < count:
        assert time.monotonic() < deadline, "the executor hangs"
        for one in executor.poll(0.5):
            finished.append(one)
            if again:
                again(one)
    return finished


def test_many_ticks_are_in_flight_and_the_gate_holds_them_back(ray_cluster, crew):
    actors = crew(delay_s=0.02)
    executor = Executor(tick_timeout_s=20)
    graphs = [rollout_graph(actors, 0, 0, passes=1) for lane in range(4)]
    for lane, graph in enumerate(graphs):
        executor.start(lane, graph, lane)
    finished = run_until(executor, 12, lambda one: executor.start(one.tick.lane, graphs[one.tick.lane], 9))
    finished += run_until(executor, len(executor.ticks))
    assert not any(one.failure for one in finished)
    done, most = ray_cluster.get(actors.buffer.seen.remote(), timeout=10)
    assert most == 2  # four lanes, two slots, and both were used
    assert done[0].endswith("seen+a1") and len(done) >= 12


def test_turns_unroll_the_graph(ray_cluster, crew):
    actors = crew()
    executor = Executor(tick_timeout_s=20)
    executor.start(0, rollout_graph(actors, 0, 0, passes=3), 5)
    (one,) = run_until(executor, 1)
    assert one.result == "5 seen+a1+a2+a3"


def test_a_failed_call_is_named_and_the_lane_goes_on(ray_cluster, crew):
    actors = crew(fails_at=1)
    executor = Executor(tick_timeout_s=20)
    graph = rollout_graph(actors, 0, 0, passes=1)
    executor.start(0, graph, 1)
    (one,) = run_until(executor, 1)
    assert one.failure.line == "generate: RuntimeError: out of memory"
    assert "in generate\n" in one.failure.trace and one.failure.trace.rstrip().endswith("out of memory\nand more")
    assert ray_cluster.get(one.tick.gate, timeout=10) == "1"  # what it was to make is known
    executor.start(0, graph, 2)
    assert run_until(executor, 1)[0].result == "2 seen+a2"


def test_a_hung_call_is_given_up_and_named(crew):
    actors = crew(delay_s=60)
    executor = Executor(tick_timeout_s=0.5)
    executor.start(0, rollout_graph(actors, 0, 0, passes=1), 1)
    (one,) = run_until(executor, 1)
    hung = actors.engines[0]
    assert one.failure == Failure("no end after 0.5 s; generate gave no answer", actor=hung, silent=(hung,))
    assert one.failure.call == "generate"


def test_a_dead_actor_is_named(ray_cluster, crew):
    actors = crew()
    engine = ray_cluster.remote(Engine).options(num_cpus=0).remote()
    ray_cluster.get(engine.behave.remote(delay_s=60), timeout=120)
    executor = Executor(tick_timeout_s=20)
    executor.start(0, rollout_graph(replace(actors, engines=[engine]), 0, 0, passes=1), 1)
    while executor.ticks[0].opened is None:
        executor.poll(0.1)
    ray_cluster.kill(engine)
    (one,) = run_until(executor, 1)
    assert one.failure.line.startswith("generate: ") and "Died" in one.failure.line and one.failure.trace


def test_the_train_graph_joins_all_ranks_and_all_engines(crew):
    actors = crew(engines=2, ranks=3)
    graph = train_graph(actors)
    executor = Executor(tick_timeout_s=20)
    executor.start(-1, graph, 7)
    (one,) = run_until(executor, 1)
    assert one.result == (8, "loaded w8 of 8", "loaded w8 of 8", "", "")
    assert [node.get_method_name() for node in calls_of(graph)][0] == "take"


def test_graphs_are_printed_without_a_cluster(capsys):
    from g1_ray.config import RunConfig
    from g1_ray.pipeline.actors import unmade

    config = RunConfig(name="t", model={"path": "tiny-base"}, games=[{"game": "2048"}], learner={"num_ranks": 2})
    actors, names = unmade(config)
    rollout = describe(rollout_graph(actors, 0, 0, passes=1), names)
    assert rollout == [
        "#1   ReplayBuffer.admit(input)",
        "#2   EnvWorker[0].observe(#1)",
        "#3   InferenceEngine[0].generate(#2)",
        "#4   EnvWorker[0].score(#2, #3)",
        "#5   EnvWorker[0].finish(#4)",
        "#6   ReplayBuffer.put(#5)",
    ]
    train = describe(train_graph(actors), names)
    assert train[0] == "#1   ReplayBuffer.take(input)" and train[-1].endswith("release(#2, #4, #6)")
    assert "Learner[1].step(#1)" in train[4]


def test_an_engine_that_fails_to_load_does_not_fail_the_step(ray_cluster, crew):
    actors = crew(engines=1, ranks=2)
    gone = ray_cluster.remote(Engine).options(num_cpus=0).remote()
    ray_cluster.get(gone.behave.remote(), timeout=120)
    ray_cluster.kill(gone)
    executor = Executor(tick_timeout_s=20)
    executor.start(-1, train_graph(replace(actors, engines=[gone, *actors.engines])), 7)
    (one,) = run_until(executor, 1)
    assert one.result == (8, None, "loaded w8 of 8", "")
    assert list(one.tick.passed.values()).count(False) == 1


def test_the_error_of_one_rank_ends_the_step_though_others_hang(ray_cluster, crew):
    actors = crew(ranks=1)

    class Broken(Rank):
        def step(self, version: int) -> int:
            raise RuntimeError("loss of nothing")

    class Hanging(Rank):
        def step(self, version: int) -> int:
            time.sleep(60)
            return 0

    others = [ray_cluster.remote(kind).options(num_cpus=0).remote(1) for kind in (Hanging, Broken)]
    ray_cluster.get([other.weights.remote(0) for other in others], timeout=120)
    executor, began = Executor(tick_timeout_s=50), time.monotonic()
    executor.start(-1, train_graph(replace(actors, learners=[*actors.learners, *others])), 7)
    (one,) = run_until(executor, 1)
    assert one.failure.line == "step: RuntimeError: loss of nothing" and one.failure.actor == others[1]
    assert time.monotonic() - began < 20
    for other in others:
        ray_cluster.kill(other)
