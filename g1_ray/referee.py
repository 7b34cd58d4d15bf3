"""What an answer to a state comes to: read, played on a fork, and rewarded."""

from __future__ import annotations

from envs import Codec, Game, State, Task
from envs.rewards import reward_named
from g1_ray.config import GameConfig, RewardConfig
from g1_ray.types import Completion, Request, Turn


class Referee:
    """Reads and scores the answers to states of one game."""

    def __init__(self, config: GameConfig, weights: RewardConfig) -> None:
        self.config, self.weights = config, weights
        self.task: Task = config.task()
        self.codec = Codec(self.task)
        self.reward = reward_named(config.reward)

    def turn(self, state: State, request: Request, completion: Completion, text: str) -> Turn:
        """What an answer to a state came to. It is tried on a fork, so equal answers always earn the same."""
        game: Game = state.game()
        board = game.perception()
        answer = self.codec.read(text)
        seen = self.codec.score_perception(answer.perception, board)
        outcome = game.step(answer.action)
        rewards = {
            "game": float(self.reward(outcome)),
            "format": float(answer.well_formed),
            "perception": seen.share,
        }
        return Turn(
            prompt=request.prompt,
            completion=completion,
            text=text,
            action=answer.action,
            cause=str(answer.cause) if answer.cause else "",
            legal=outcome.legal,
            gain=outcome.gain,
            rewards=rewards,
            reward=self.weights.game * rewards["game"]
            + self.weights.format * rewards["format"]
            + self.weights.perception * rewards["perception"],
            perception_exact=seen.exact,
            next_state=State.of(state.task, game),
        )
