"""What options of a run's config have to agree on with one another."""

from typing import Any


def check_together(run: Any) -> None:
    """Of a `RunConfig`; raises `ValueError` that names the options and the fix."""
    names = [game.name for game in run.games]
    for name in names:
        if names.count(name) > 1:
            last = len(names) - 1 - names[::-1].index(name)
            raise ValueError(f"games: two are called {name!r}; give one of them a name: games.{last}.name=...")
    for game in run.games if run.eval.runs and not run.eval.moves else ():
        if not game.task().reasoning.horizon:  # an answer that is no legal move leaves a board as it is
            raise ValueError(
                f"games: {game.name} with horizon = 0 never ends, and eval.moves = 0 plays whole episodes; "
                "give eval.moves or a horizon"
            )
    if run.rollout.max_tokens >= run.engine.max_model_len:
        raise ValueError(
            f"rollout.max_tokens = {run.rollout.max_tokens} leaves no room for a prompt; "
            f"engine.max_model_len = {run.engine.max_model_len} has to be larger"
        )
    if run.rollout.group_size > run.engine.max_num_seqs:
        raise ValueError(
            f"rollout.group_size = {run.rollout.group_size}: an engine decodes a group together, and at most "
            f"engine.max_num_seqs = {run.engine.max_num_seqs} answers; make that larger, or the group smaller"
        )
    if run.asynchrony.lanes < run.engine.num_engines:
        raise ValueError(
            f"asynchrony.lanes = {run.asynchrony.lanes} for engine.num_engines = {run.engine.num_engines}: a "
            "lane is at one engine at a time, so some would have nothing to do; give at least as many lanes"
        )
    if run.learner.num_ranks > 1 and 0 < run.learner.gpus < 1:
        raise ValueError(
            f"learner.num_ranks = {run.learner.num_ranks} and learner.gpus = {run.learner.gpus:g}: ranks can't "
            "share a GPU (NCCL wants one for each); give learner.gpus = 1, or a single rank"
        )
    if run.deterministic and run.asynchrony.max_staleness:
        raise ValueError(
            f"deterministic with asynchrony.max_staleness = {run.asynchrony.max_staleness}: how far rollouts run "
            "ahead depends on who is faster; give asynchrony.max_staleness = 0"
        )
    if run.deterministic and run.engine.kind != "transformers":
        raise ValueError(
            f"deterministic with engine.kind = {run.engine.kind}: what it decodes together, and with that how "
            "sums are rounded, depends on who is faster; give engine.kind = transformers"
        )
    if run.asynchrony.groups_per_tick > run.capacity:
        raise ValueError(
            f"asynchrony.groups_per_tick = {run.asynchrony.groups_per_tick}: at most {run.capacity}, "
            "which is (max_staleness + 1) x groups_per_step"
        )
