"""Speed of the environments on one core, each figure beside `np.copyto` of equal bytes measured in the same run."""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from envs import State, Task, VLMGymEnv, VLMGymVectorEnv
from envs.drawing import Renderer
from envs.players import random_legal
from g1_ray.seeds import seed_of
from jobs.bench import Row

STEPS = 4000


def envs_rows(args: argparse.Namespace) -> Iterator[Row]:
    """All of it, on one core."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    try:
        if cores:
            os.sched_setaffinity(0, {min(cores)})
        for measure in (frame, steps, vector, pixel_values):
            yield from filter(None, (measure(name, task) for name, task in CASES.items()))
        yield from logic()
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


def seconds(*calls: Callable[[], Any], rounds: int = 15, each: float = 0.02) -> list[float]:
    """The median time of one call of each, taken in turns so that a change of the machine's speed hits all alike."""
    counts = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        counts.append(max(1, int(each / (time.perf_counter() - start))))
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, count, taken in zip(calls, counts, times, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                call()
            taken.append((time.perf_counter() - start) / count)
    return [float(np.median(taken)) for taken in times]


CASES = {
    "2048 4x4": Task.make("2048"),
    "2048 4x4 patch 32": Task.make("2048", perception={"patch": 32}),
    "shisen 6x6": Task.make("shisen"),
    "shisen-photos 6x6": Task.make("shisen-photos"),
    "swap 8x8": Task.make("swap"),
}


def _copy_s(renderer: Renderer) -> Callable[[], None]:
    source, target = np.ones(renderer.shape, np.uint8), np.zeros(renderer.shape, np.uint8)
    return lambda: np.copyto(target, source)


def frame(name: str, task: Task) -> Row:
    """A whole frame from a board, into a standing array and into a new one."""
    game, renderer = State.start(task, 0).game(), task.renderer
    board, looks, out = game.perception(), game.looks, np.zeros(renderer.shape, np.uint8)
    copy, full, fresh = seconds(
        _copy_s(renderer), lambda: renderer.draw(board, looks, out), lambda: renderer.draw(board, looks)
    )
    figures = {"us": full * 1e6, "fresh us": fresh * 1e6, "copyto us": copy * 1e6}
    ratios = {"full/copyto": full / copy, "fresh/copyto": fresh / copy}
    return {"what": f"frame {name} {renderer.shape[0]} px", **figures, **ratios}


def steps(name: str, task: Task) -> Row:
    """Whole steps of the single Gymnasium environment: rules, legal actions, info, picture.

    The actions are random legal ones, so that every step changes the board, chosen beforehand; resets are included.
    """
    seeds, actions = _playlist(task)
    envs = [VLMGymEnv(task.name, perception=task.perception.as_dict(), copy=copy) for copy in (True, False)]
    taken: list[list[float]] = [[], []]
    for _ in range(5):
        for env, rates in zip(envs, taken, strict=True):
            start = time.perf_counter()
            for seed, played in zip(seeds, actions, strict=True):
                env.reset(seed=seed)
                for action in played:
                    env.step(action)
            rates.append(sum(map(len, actions)) / (time.perf_counter() - start))
    fresh, standing = (float(np.median(rates)) for rates in taken)
    copies = 1 / seconds(_copy_s(task.renderer))[0]
    return {"what": f"steps/s {name}", "fresh copy": fresh, "standing frame": standing, "copyto/s": copies}


def _playlist(task: Task) -> tuple[list[int], list[list[int]]]:
    rng = np.random.default_rng(0)
    game, made = task.new_game(), 0
    seeds: list[int] = []
    actions: list[list[int]] = []
    while made < STEPS:
        seeds.append(seed_of("bench", len(seeds)))
        game.reset(seeds[-1])
        actions.append([])
        while not game.over:
            actions[-1].append(random_legal(game, rng))
            game.step(actions[-1][-1])
        made += len(actions[-1])
    return seeds, actions


def vector(name: str, task: Task, num: int = 16, moves: int = 60) -> Row:
    """The vectorised environment with standing frames, random legal actions."""
    env = VLMGymVectorEnv(num, task.name, perception=task.perception.as_dict(), copy=False)
    rng, taken = np.random.default_rng(0), []
    for seed in range(5):
        _, info = env.reset(seed=seed * num)
        spent = 0.0
        for _ in range(moves):
            chosen = [legal[int(rng.random() * len(legal))] if legal else 0 for legal in info["legal_actions"]]
            start = time.perf_counter()
            *_, info = env.step(np.array(chosen))
            spent += time.perf_counter() - start
        taken.append(num * moves / spent)
    return {"what": f"vector of {num}, steps/s {name}", "standing frame": float(np.median(taken))}


def logic(num: int = 1024, moves: int = 100) -> list[Row]:
    """Rules alone: 2048 in the vectorised path with uniform actions and new deals; the legal pairs of Shisen-Sho."""
    task = Task.make("2048", reasoning={"horizon": 0})
    batch, rng = task.new_batch(num), np.random.default_rng(0)
    for i in range(num):
        batch.reset(i, i)
    taken, legal, deals = [], 0, num
    for _ in range(5):
        actions = rng.integers(0, 4, (moves, num))
        start = time.perf_counter()
        for chosen in actions:
            outcomes = batch.step(chosen)
            legal += int(outcomes.legal.sum())
            for i in np.flatnonzero(outcomes.terminated).tolist():
                batch.reset(i, deals)
                deals += 1
        taken.append(num * moves / (time.perf_counter() - start))
    figures = {"steps/s": float(np.median(taken)), "legal share": legal / (5 * num * moves)}
    rows: list[Row] = [{"what": f"logic 2048, {num} boards", **figures}]
    for side in (6, 12):
        game = State.start(Task.make("shisen", reasoning={"rows": side, "cols": side}), 0).game()
        (one,) = seconds(game._find_legal)
        rows.append({"what": f"legal actions of shisen {side}x{side}", "ms": one * 1e3})
    return rows


def pixel_values(name: str, task: Task) -> Row | None:
    """Model inputs straight from a board, beside transformers' processor given the picture; nothing without it."""
    try:
        import torch
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

        from g1_ray.models.pixels import PixelValues
    except ImportError:
        return None
    if task.perception.patch != 28:  # Qwen2-VL's processor would resize it
        return None
    torch.set_num_threads(1)
    game = State.start(task, 0).game()
    board, looks = game.perception(), game.looks
    array = task.renderer.draw(board, looks)
    picture = Image.fromarray(array)
    fast, pil = Qwen2VLImageProcessor(), Qwen2VLImageProcessorPil()
    ours = PixelValues(fast, task.renderer)
    values, _ = ours(board, looks)
    target = np.empty_like(values)
    ways = ("ours", "copyto", "transformers", "given an array", "PIL backend")
    times = seconds(
        lambda: ours(board, looks),
        lambda: np.copyto(target, values),
        lambda: fast(images=[picture], return_tensors="pt"),
        lambda: fast(images=[array], return_tensors="pt"),
        lambda: pil(images=[picture], return_tensors="np"),
    )
    ratios = {"transformers/ours": times[2] / times[0], "given an array/ours": times[3] / times[0]}
    return {"what": f"pixel_values {name}", **{f"{w} ms": s * 1e3 for w, s in zip(ways, times, strict=True)}, **ratios}
