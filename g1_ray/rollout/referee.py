"""Judges the answers to states of one game as a run rewards them: a completion becomes a turn."""

import functools
from collections.abc import Mapping

from envs import Codec, State, Task
from envs.lookahead import look_ahead
from envs.rewards import reward_named
from g1_ray.config import GameConfig, RewardConfig
from g1_ray.rollout.judge import judge
from g1_ray.types import Completion, Request, Turn


class Referee:
    """Of one game of a run. `thinks_first`: whether the model's chat template opens the thinking (`Codec`)."""

    def __init__(self, config: GameConfig, weights: RewardConfig, thinks_first: bool = False) -> None:
        self.config, self.weights = config, weights
        self.task: Task = config.task()
        self.codec = Codec(self.task, thinks_first)
        self.reward = reward_named(config.reward)
        self._ahead = functools.lru_cache(1024)(self._look_ahead)  # all answers of a group are to one state

    def _look_ahead(self, state: State) -> Mapping[int, float]:
        return look_ahead(state.game(), self.config.lookahead, self.reward)

    def turn(self, state: State, request: Request, completion: Completion, text: str) -> Turn:
        """What an answer to a state came to. It is tried on a fork, so equal answers always earn the same."""
        game = state.game()
        judged = judge(self.codec, game, text, self.reward, worth=self._ahead(state) if self.config.lookahead else None)
        return Turn(
            prompt=request.prompt,
            completion=completion,
            text=text,
            action=judged.answer.action,
            cause=str(judged.answer.cause or ""),
            legal=judged.outcome.legal,
            gain=judged.outcome.gain,
            rewards=judged.parts,
            reward=self.weights.total(judged.parts),
            perception_exact=judged.seen.exact,
            next_state=State.of(state.task, game),
        )
