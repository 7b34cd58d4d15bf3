import asyncio
import dataclasses
import json
import random
from dataclasses import replace

import numpy as np
import pytest

from envs import State, Task
from g1_ray.config import RunConfig
from g1_ray.learner.samples import fault_of_group
from g1_ray.learner.tally import tally_of
from g1_ray.pipeline.curriculum import lesson_of
from g1_ray.pipeline.parcels import Parcel, sealed_batch
from g1_ray.pipeline.replay_buffer import MAX_DEATHS, MAX_ISSUES, POOL, RECENT, ReplayBuffer
from g1_ray.types import Completion, Fate, Group, Prompt, Rollout, Spoiled, Ticket, Turn

TASK = Task.make("2048", reasoning={"size": 3})


def state(seed: int = 0) -> State:
    game = TASK.new_game()
    game.reset(seed)
    return State.of(TASK, game)


def group_of(ticket: Ticket, version: int | None = None) -> Group:
    version = ticket.version if version is None else version
    start = state(ticket.group)
    ids = np.array([1, 2], np.int32)
    completion = Completion(ids, np.zeros(2, np.float32), np.full(2, version, np.int32), "stop")
    turn = Turn(
        Prompt(ids, (start,)), completion, "", 0, "", True, 0.0, {"game": 0.0}, 0.0, True, state(ticket.group + 1000)
    )
    return Group(ticket, start, (Rollout((turn,)),) * 2)


class Packing(ReplayBuffer):
    """Is given groups, some of which are `bad` or `flat` by their numbers, whatever they earn."""

    bad: frozenset[int] = frozenset()
    flat: frozenset[int] = frozenset()

    async def put(self, groups):
        return await super().put([g if isinstance(g, Spoiled) else self.packed(g) for g in groups])

    def packed(self, group: Group) -> Parcel:
        number = group.ticket.group
        if fault := fault_of_group(group) or ("bad" if number in self.bad else ""):
            return Parcel(group.ticket, group.min_version, fault)
        game = next(game for game in self.config.games if game.name == group.ticket.game)
        tally, lesson = tally_of(group, ()), lesson_of(group, game)
        return Parcel(group.ticket, group.min_version, flat=number in self.flat, tally=tally, lesson=lesson)


class Harness:
    def __init__(
        self, max_staleness: int = 1, flat: set[int] | None = None, curriculum=None, bad: set[int] | None = None, **game
    ):
        config = RunConfig(
            name="t",
            model={"path": "m"},
            games=[{"game": "2048", "reasoning": {"size": 3}, **game}],
            rollout={"groups_per_step": 4, "group_size": 2},
            curriculum=curriculum or {},
            asynchrony={"max_staleness": max_staleness},
        )
        self.fates: list[Fate] = []
        self.buffer = Packing(config, lambda fate, group: self.fates.append(fate))
        self.buffer.bad, self.buffer.flat = frozenset(bad or ()), frozenset(flat or ())

    async def wanted(self, version: int = 0) -> asyncio.Future:
        """Somebody asks for a batch; without staleness nothing is admitted before."""
        batch = asyncio.ensure_future(self.buffer.take(version))
        await asyncio.sleep(0)
        return batch

    def balanced(self) -> bool:
        books = self.buffer.books()
        return books["issued"] == sum(books[k] for k in ("trained", "dropped", "quarantined", "in_flight"))


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 10))


def test_slots_bound_what_is_under_way_and_come_back_on_release():
    harness = Harness(max_staleness=1)
    buffer = harness.buffer

    async def body():
        tickets = [t for _ in range(4) for t in await buffer.admit(2)]
        assert [t.group for t in tickets] == list(range(8))
        ninth = asyncio.ensure_future(buffer.admit(1))
        await buffer.put([group_of(t) for t in tickets[:4]])
        taken, _, _ = await buffer.take(0)
        await asyncio.sleep(0)
        assert [g.ticket.group for g in taken] == [0, 1, 2, 3]
        assert not ninth.done()  # trained on, but the engines do not hold the new weights yet
        assert harness.balanced() and buffer.in_flight == 8
        await buffer.release(1)
        assert [t.version for t in await ninth] == [1]
        assert harness.balanced() and buffer.books()["trained"] == 4

    run(body())
    assert [f.staleness for f in harness.fates] == [0, 0, 0, 0]


def test_a_group_is_taken_in_once_and_an_older_issue_never():
    harness = Harness()
    buffer = harness.buffer

    async def body():
        tickets = await buffer.admit(2)
        assert await buffer.put([group_of(tickets[0])]) == 1
        assert await buffer.put([group_of(tickets[0])]) == 0
        await buffer.fail([tickets[1]], "worker died")
        assert await buffer.put([group_of(tickets[1])]) == 0  # the dead worker was not dead after all
        again = (await buffer.admit(1))[0]
        assert (again.group, again.incarnation, again.seed) == (1, 1, tickets[1].seed)
        assert await buffer.put([group_of(tickets[1])]) == 0
        assert await buffer.put([group_of(again)]) == 1
        assert buffer.books()["refused"] == 3 and buffer.books()["issued"] == 2 and harness.balanced()

    run(body())


def test_what_fails_again_and_again_is_quarantined_with_its_reason():
    harness = Harness()

    async def body():
        ticket = (await harness.buffer.admit(1))[0]
        for _ in range(MAX_ISSUES - 1):
            await harness.buffer.fail([ticket], "engine died")
            ticket = (await harness.buffer.admit(1))[0]
        await harness.buffer.fail([ticket], "engine died")
        assert harness.balanced() and harness.buffer.in_flight == 0

    run(body())
    assert [(f.fate, f.reason) for f in harness.fates] == [("quarantined", "engine died")]


def test_a_group_that_ends_its_part_every_time_is_given_up_and_its_neighbours_are_not():
    harness = Harness(max_staleness=1)

    async def body():
        tickets, deaths = await harness.buffer.admit(4), 0
        while tickets:
            assert deaths < 2 or len(tickets) == 1  # alone from the third time on
            if 2 in [ticket.group for ticket in tickets]:
                deaths += 1
                await harness.buffer.fail(tickets, "score: ActorDiedError", blame=False)
            else:
                await harness.buffer.put([group_of(ticket) for ticket in tickets])
            tickets = await harness.buffer.admit(4) if harness.buffer._again else []
        assert deaths == MAX_DEATHS
        assert harness.balanced()

    run(body())
    given_up = [(fate.group, fate.fate, fate.reason) for fate in harness.fates]
    assert given_up == [(2, "quarantined", "score: ActorDiedError")]


def test_failed_groups_are_issued_again_even_when_every_slot_is_taken():
    harness = Harness(max_staleness=0)

    async def body():
        await harness.wanted()
        tickets = await harness.buffer.admit(4)
        await harness.buffer.fail(tickets[1:3], "x", blame=False)
        again = await harness.buffer.admit(2)
        assert [t.group for t in again] == [1, 2]
        await harness.buffer.fail(again, "x")  # one of them may be to blame: alone it fails no others
        assert [[t.group for t in await harness.buffer.admit(2)] for _ in range(2)] == [[1], [2]]

    run(body())


def test_stale_groups_are_dropped_not_trained_on():
    harness = Harness(max_staleness=1)
    buffer = harness.buffer

    async def body():
        tickets = await buffer.admit(8)
        await buffer.put([group_of(t) for t in tickets[:6]])
        await buffer.take(0)
        await buffer.release(1)
        late = asyncio.ensure_future(buffer.take(2))  # as if a step had been made without them
        await asyncio.sleep(0)
        assert not late.done()
        fresh = await buffer.admit(4)
        await buffer.put([group_of(t) for t in fresh])
        assert [g.ticket.group for g in (await late)[0]] == [t.group for t in fresh]
        assert harness.balanced()

    run(body())
    assert {(f.group, f.reason, f.staleness) for f in harness.fates if f.fate == "dropped"} == {
        (4, "stale", 2),
        (5, "stale", 2),
    }


def test_flat_and_bad_groups_give_their_slots_back_at_once():
    harness = Harness(max_staleness=0, flat={1}, bad={2})
    buffer = harness.buffer

    async def body():
        batch = await harness.wanted()
        await buffer.put([group_of(t) for t in await buffer.admit(4)])
        more = await buffer.admit(2)
        assert [t.group for t in more] == [4, 5]
        await buffer.put([group_of(t) for t in more])
        assert [g.ticket.group for g in (await batch)[0]] == [0, 3, 4, 5]

    run(body())
    assert harness.balanced()
    assert [(f.group, f.fate, f.reason) for f in harness.fates] == [(1, "dropped", "flat"), (2, "quarantined", "bad")]


@pytest.mark.parametrize("bad", ["no tokens", "no tokens in one answer", "no turns"])
def test_a_group_without_tokens_is_quarantined_and_its_neighbours_are_not(bad: str):
    """Its line is in the ledger, whatever is missing from it."""
    harness = Harness()

    async def body():
        tickets = await harness.buffer.admit(3)
        groups = [group_of(ticket) for ticket in tickets]
        rollout = groups[1].rollouts[0]
        none = np.empty(0, np.int32)
        empty = replace(rollout.turns[0], completion=Completion(none, none.astype(np.float32), none, "length"))
        lacking = Rollout() if bad == "no turns" else Rollout((empty,))
        rollouts = (lacking, rollout) if bad == "no tokens in one answer" else (lacking, lacking)
        groups[1] = replace(groups[1], rollouts=rollouts)
        assert await harness.buffer.put(groups) == 3

    run(body())
    assert harness.balanced() and harness.buffer.books()["in_flight"] == 2
    assert [(fate.group, fate.fate, fate.staleness) for fate in harness.fates] == [(1, "quarantined", 0)]
    assert ("no turns" if bad == "no turns" else "an empty") in harness.fates[0].reason


@pytest.mark.parametrize("num, step", [(3 * POOL, 1), (POOL + 8, -1)])
def test_what_is_kept_of_flat_groups_is_bounded_and_does_not_depend_on_their_order(num: int, step: int):
    """In the order of their numbers, and backwards within each batch of tickets: the same ones are kept."""
    harness = Harness(max_staleness=0, flat=set(range(num)))
    buffer = harness.buffer

    async def body():
        batch = await harness.wanted()
        for _ in range(num // 4):
            await buffer.put([group_of(ticket) for ticket in (await buffer.admit(4))[::step]])
            assert len(buffer._flat) <= POOL
        assert buffer.flat_in_a_row == num
        await buffer.put([group_of(ticket) for ticket in await buffer.admit(4)])
        assert buffer.flat_in_a_row == 0
        return await batch

    groups, flat, forgotten = run(body())
    assert [group.ticket.group for group in flat] == list(range(num - POOL, num))
    assert forgotten == {"2048": num - POOL} and harness.balanced() and buffer.books()["dropped: flat"] == num
    metrics = sealed_batch([*groups, *flat], 0, forgotten=forgotten).origin.metrics
    assert metrics["groups"] == metrics["2048/groups"] == num + 4
    assert metrics["flat_groups"] == metrics["2048/flat_groups"] == num + 4  # by their rewards, these are flat too


def test_without_staleness_a_batch_does_not_depend_on_who_was_faster():
    def taken(order: list[int]) -> list[list[int]]:
        harness = Harness(max_staleness=0, flat={1, 6}, states={"policy": 0.5, "random_walk": 0.5})
        buffer = harness.buffer
        batches = []

        async def body():
            for version in range(3):
                batch = await harness.wanted(version)
                waiting = await buffer.admit(4)
                while waiting:
                    pick = waiting.pop(order[version] % len(waiting))
                    await buffer.put([group_of(pick)])
                    if pick.group in (1, 6):
                        waiting += await buffer.admit(1)
                groups, _, _ = await batch
                batches.append([(g.ticket.group, g.ticket.seed, g.ticket.state) for g in groups])
                await buffer.release(version + 1)

        run(body())
        return batches

    first = taken([0, 0, 0])
    assert first == taken([3, 1, 2])
    assert any(state is not None for batch in first for _, _, state in batch)  # visited states came into it


@pytest.mark.parametrize("kind", ["weights", "learnability"])
def test_without_staleness_a_run_that_goes_on_draws_what_it_would_have_drawn(kind: str):
    """Nothing is in flight between two steps, however eager the lanes are."""

    def differing(ticket: Ticket) -> Group:
        group = group_of(ticket)
        (turn,) = group.rollouts[0].turns
        return replace(group, rollouts=(group.rollouts[0], Rollout((replace(turn, reward=ticket.seed % 3),))))

    async def steps(harness: Harness, first: int, last: int) -> list[list[tuple]]:
        buffer, drawn = harness.buffer, []
        for version in range(first, last):
            eager = asyncio.ensure_future(buffer.admit(4))
            await asyncio.sleep(0)
            assert not eager.done() and buffer.in_flight == 0
            batch = await harness.wanted(version)
            tickets = await eager
            while tickets:
                drawn.append([(t.group, t.seed, t.source, t.state) for t in tickets])
                await buffer.put([differing(t) for t in tickets])
                tickets = [] if batch.done() or len(buffer._waiting) == 4 else await buffer.admit(1)
            await batch
            await buffer.release(version + 1)
        return drawn

    def made() -> Harness:
        return Harness(0, {1, 9}, {"kind": kind}, states={"policy": 0.5, "random_walk": 0.5})

    whole, first, second = made(), made(), made()
    drawn = run(steps(whole, 0, 8))
    again = run(steps(first, 0, 3))
    second.buffer.load_state_dict(json.loads(json.dumps(first.buffer.state_dict())))
    assert again + run(steps(second, 3, 8)) == drawn
    assert whole.buffer.state_dict() == second.buffer.state_dict()


def test_a_state_that_no_answer_changed_is_visited_again():
    harness = Harness(max_staleness=0, flat={0, 1}, states={"policy": 1})

    def unmoved(ticket: Ticket) -> Group:
        group = group_of(ticket)
        (turn,) = group.rollouts[0].turns
        rewards = (0.0, float(ticket.group == 2))
        turns = (replace(turn, next_state=group.start, reward=reward) for reward in rewards)
        return replace(group, rollouts=tuple(Rollout((turn,)) for turn in turns))

    async def body():
        batch = await harness.wanted()
        tickets = await harness.buffer.admit(4)
        # 0 and 1 are flat; 0 and 2 left their states as they were.
        await harness.buffer.put([unmoved(t) if t.group in (0, 2) else group_of(t) for t in tickets])
        await harness.buffer.put([group_of(t) for t in await harness.buffer.admit(2)])
        await batch
        await harness.buffer.release(1)
        return harness.buffer.state_dict()["curriculum"]["visited"]["2048"]

    visited = run(body())
    older = {"next": 4, "version": 1, "books": {"in_flight": 0}, "visited": {"2048": visited}}
    again = Harness(states={"policy": 1}).buffer
    again.load_state_dict(older)  # of before there was a curriculum
    assert again.state_dict()["curriculum"]["visited"]["2048"] == visited
    ends = (state(0), state(1001), state(2), state(1003), state(1004), state(1005))
    assert visited == [s.to_bytes().hex() for s in ends]


def test_ratios_divide_the_groups_among_the_games():
    config = RunConfig(
        name="t",
        model={"path": "m"},
        games=[{"game": "2048", "ratio": 3}, {"game": "swap", "ratio": 1}],
        rollout={"groups_per_step": 400},
        asynchrony={"max_staleness": 1},
    )
    buffer = ReplayBuffer(config, lambda f, g: None)
    tickets = run(buffer.admit(400))
    assert 0.68 < sum(t.game == "2048" for t in tickets) / 400 < 0.82
    assert len({t.seed for t in tickets}) == 400


def test_books_go_on_after_a_restart_and_what_was_in_flight_is_booked_as_lost():
    harness = Harness(max_staleness=1)

    async def body():
        tickets = await harness.buffer.admit(8)
        await harness.buffer.put([group_of(t) for t in tickets[:5]])
        await harness.buffer.take(0)
        await harness.buffer.release(1)
        return harness.buffer.state_dict()

    saved = run(body())
    after = Harness(max_staleness=1)
    after.buffer.load_state_dict(saved)
    assert after.balanced()
    assert after.buffer.books()["dropped: lost"] == 4 and after.buffer.books()["trained"] == 4
    ticket = run(after.buffer.admit(1))[0]
    assert (ticket.group, ticket.version) == (8, 1)


def test_closing_wakes_everybody():
    harness = Harness(max_staleness=0)

    async def body():
        batch = await harness.wanted()
        await harness.buffer.admit(4)
        waiting = [asyncio.ensure_future(harness.buffer.admit(1)), batch]
        await asyncio.sleep(0)
        await harness.buffer.close()
        assert await asyncio.gather(*waiting) == [[], ([], [], {})]

    run(body())


def test_the_last_groups_of_a_batch_come_even_where_a_tick_asks_for_more():
    harness = Harness(max_staleness=0, flat={1})
    buffer = harness.buffer

    async def body():
        batch = await harness.wanted()
        first, second = await buffer.admit(2), await buffer.admit(2)
        waiting = asyncio.ensure_future(buffer.admit(2))
        await buffer.put([group_of(t) for t in first])  # one of them is flat, so one slot is free
        await asyncio.sleep(0)
        assert not waiting.done()  # another may come free, so they wait to go together
        await buffer.put([group_of(t) for t in second])
        (last,) = await waiting
        await buffer.put([group_of(last)])
        assert len((await batch)[0]) == 4

    run(body())


@pytest.mark.parametrize("seed", range(20))
def test_a_buffer_that_dies_comes_back_with_its_books_off_the_ledger(seed):
    """At any moment: what had ended, and what a step is trained on, is known; all else was lost, and is booked."""
    rng, lines = random.Random(seed), []
    harness = Harness(max_staleness=2, flat={3, 8, 9}, bad={5})
    config, dead = harness.buffer.config, harness.buffer
    keep = lambda fate, group: lines.append(dataclasses.asdict(fate))  # noqa: E731
    dead._keep, dead._record = keep, lines.append

    async def live():
        running, version = [], 0
        for _ in range(rng.randrange(60)):
            what = rng.random()
            if what < 0.4 and dead._free >= 2:
                running += await dead.admit(2)
            elif what < 0.7 and running:
                await dead.put([group_of(running.pop(rng.randrange(len(running))))])
            elif what < 0.8 and running:
                await dead.fail([running.pop()], "engine died", blame=rng.random() < 0.5)
            elif len(dead._waiting) >= 4 and not dead._taken:
                await dead.take(version)
            elif dead._taken:
                version += 1
                await dead.release(version)
        return version, list(dead._taken)

    version, taken = run(live())
    before = dict(dead.counts)
    again = Packing(config, keep, lines.append)
    again.recover(list(lines))
    books, lost = again.books(), again.counts["dropped: lost"]
    assert books["issued"] == before.get("issued", 0) and again.version == version
    assert books["trained"] == before.get("trained", 0) and books["quarantined"] == before.get("quarantined", 0)
    assert books["dropped"] == before.get("dropped", 0) + lost
    assert books["in_flight"] == len(taken) and set(again._taken) == set(taken)
    assert books["issued"] == sum(books[name] for name in ("trained", "dropped", "quarantined", "in_flight"))
    assert lost == dead.in_flight - len(taken)
    fates = [line["group"] for line in lines if "fate" in line]
    assert len(fates) == len(set(fates)) == books["issued"] - len(taken)

    async def go_on():
        await again.release(version + 1)  # the step that was being trained is booked as if nothing had been
        tickets = await again.admit(4)
        assert [ticket.group for ticket in tickets] == [books["issued"] + i for i in range(4)]
        assert again.books()["trained"] == books["trained"] + len(taken)

    run(go_on())


def test_a_spoiled_group_is_quarantined_with_its_reason_and_spoils_no_other():
    harness = Harness(max_staleness=0)

    async def body():
        await harness.wanted()
        first, second, *_ = await harness.buffer.admit(4)
        assert await harness.buffer.put([Spoiled(first, "observe: ValueError: no such board"), group_of(second)]) == 2
        assert harness.balanced() and len(harness.buffer._waiting) == 1 and not harness.buffer.spoiled

    run(body())
    assert [(f.group, f.fate, f.reason) for f in harness.fates] == [
        (0, "quarantined", "observe: ValueError: no such board")
    ]


def test_of_ten_thousand_groups_a_thousand_bad_ones_are_quarantined_and_no_other():
    rng = random.Random(0)
    bad = set(rng.sample(range(10_000), 1_000))
    harness = Harness(max_staleness=1, bad=bad)

    async def body():
        version = 0
        while harness.buffer.counts["issued"] < 10_000:
            tickets = await harness.buffer.admit(1)
            await harness.buffer.put([group_of(ticket) for ticket in tickets])
            if len(harness.buffer._waiting) >= 4:
                await harness.buffer.take(version)
                version += 1
                await harness.buffer.release(version)
        assert harness.balanced() and not harness.buffer.spoiled

    asyncio.run(asyncio.wait_for(body(), 120))
    assert {fate.group for fate in harness.fates if fate.fate == "quarantined"} == {n for n in bad if n < 10_000}


def test_a_run_is_spoiled_where_most_of_the_last_groups_are():
    harness = Harness(max_staleness=3, bad=set(range(1000)))

    async def body():
        for _ in range(RECENT):
            assert not harness.buffer.spoiled
            await harness.buffer.put([group_of(ticket) for ticket in await harness.buffer.admit(1)])
        assert harness.buffer.spoiled == "bad"

    run(body())
