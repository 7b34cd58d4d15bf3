"""Whoever hangs is named in time, with its process and what it was at, and the run goes on."""

import json
import os
import random
import signal
import time

import pytest
from orders import ORDERS, TAKEN
from test_chaos import Onlooker, processes, small
from test_pipeline import lines

from g1_ray.config import RunConfig
from g1_ray.pipeline.recovery import waits_for_others
from jobs.train import train

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(3600)]
TICK_S, HANG_S, LATE_S = 20.0, 10.0, 5.0
HANGS = {
    "generate": ("engine 0", TICK_S, "generate gave no answer", "_waits_for_ever"),
    "generate, loop and all": ("engine 0", HANG_S, "no sign of life", "sleeps"),
    "load_policy": ("engine 0", TICK_S, "load_policy gave no answer", "_waits_for_ever"),
    "step of rank 0": ("learner 0", TICK_S, "step gave no answer", "sleeps"),
    "step of rank 1": ("learner 1", TICK_S, "step gave no answer", "sleeps"),
    "score": ("env worker", HANG_S, "no sign of life", "stands_still"),
    "buffer": ("buffer", HANG_S, "no sign of life", ""),
}
"""What hangs -> whose it is, in what time it is noticed, what is said of it, and the function that its stack ends in (a
process that is stopped has none)."""
RANK = """Thread 0x00007f00 (most recent call first):
  File "/x/torch/distributed/distributed_c10d.py", line 3000 in all_reduce
  File "/x/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "/y/g1_ray/learner/learner.py", line 240 in _total
Thread 0x00007f01 (most recent call first):
  File "/x/threading.py", line 327 in wait
"""


def test_a_rank_that_waits_for_others_is_told_from_one_that_does_not():
    assert waits_for_others(RANK)
    assert not waits_for_others(RANK.replace("torch/distributed", "torch/nn"))
    deep = "Thread 0x1 (most recent call first):\n" + '  File "/y/mine.py", line 3 in loss\n' * 9
    assert not waits_for_others(deep + '  File "/x/torch/distributed/fsdp/state.py", line 1 in forward\n')


class Staller(Onlooker):
    """Has somebody hang, waits for the note and for the run to go on, and so on; then has it stop."""

    def __init__(self, run: RunConfig, hangs: list[str]) -> None:
        super().__init__(run)
        self.hangs, self.faults = hangs, []

    def notes(self) -> list[dict]:
        return lines(self.run_config.folder, "notes.jsonl")

    def run(self) -> None:
        try:
            assert self.until(lambda: len(self.steps()) >= 2, 600), "no step was made"
            for hang in self.hangs:
                self.faults += [fault] if (fault := self.watched(hang)) else []
                steps = len(self.steps())
                assert self.until(lambda steps=steps: len(self.steps()) >= steps + 2, 240), f"{hang}: it does not go on"
        except Exception as error:  # noqa: BLE001 - told by the test
            self.faults.append(repr(error))
        finally:
            ORDERS.unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGTERM)

    def watched(self, hang: str) -> str:
        """What is wrong with how it was named; '' where nothing is."""
        who, after, said, function = HANGS[hang]
        TAKEN.unlink(missing_ok=True)
        if hang == "buffer":
            (victim,) = processes("buffer")
            victim.suspend()
            at, process = time.time(), victim.pid
        else:
            ORDERS.write_text(hang)
            assert self.until(lambda: TAKEN.is_file() and TAKEN.read_text(), 120), f"nobody took {hang!r}"
            taken = json.loads(TAKEN.read_text())
            at, process = taken["time"], taken["process"]

        def named() -> list[dict]:
            return [note for note in self.notes() if note["time"] > at and who in note["note"] and said in note["note"]]

        assert self.until(named, after + 30), f"{hang}: nobody was named"
        note = named()[0]
        took = note["time"] - at
        time.sleep(3)
        stacks = "".join(n.get("traceback", "") for n in self.notes() if n["time"] > at and who in n["note"])
        print(f"\n{time.strftime('%H:%M:%S')} {hang}: {took:.1f} s: {note['note']}", end="", flush=True)
        wrong = [
            f"process {process}" not in note["note"] and f"the process is {process}",
            " on node " not in note["note"] and "no node",
            took > after + LATE_S and f"{took:.1f} s",
            function not in stacks and f"{function} is not in {stacks}",
        ]
        return "; ".join([f"{hang}: {note['note']}", *filter(None, wrong)]) if any(wrong) else ""


@pytest.mark.slow
@pytest.mark.chaos
def test_hangs_have_names(ray_cluster, tmp_path):
    """G1_RAY_HANGS of them (default 30), all kinds alike, in a run of two ranks."""
    num, rng = int(os.environ.get("G1_RAY_HANGS", "30")), random.Random(0)
    hangs = (list(HANGS) * (num // len(HANGS) + 1))[:num]
    rng.shuffle(hangs)
    base = small(tmp_path, "transformers", num_ranks=2)
    made = base.model_dump()
    made["engine"]["kind"], made["algorithm"]["loss"] = "hanging:still", "hanging:still"
    for game in made["games"]:
        game["reward"] = "hanging:still"
    made["asynchrony"] |= {"tick_timeout_s": TICK_S, "hang_s": HANG_S}
    run = RunConfig.model_validate(made)
    ORDERS.unlink(missing_ok=True)
    staller = Staller(run, hangs)
    staller.start()
    assert train(run) == 0
    assert not staller.faults, "\n".join(staller.faults)
