"""Many environments of one task, stepped as one: shared logic where the game has it, one array of frames, no wrappers.

It does what `gymnasium.vector.SyncVectorEnv` does with the same seeds and actions, array for array; it is just faster.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.batch import Outcomes
from envs.core import Outcome
from envs.drawing import Canvas
from envs.env import VLMGymEnv, draw_seed, observation_space
from envs.rewards import reward_named
from envs.task import Axis, Task


class VLMGymVectorEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` games of one task: `gymnasium.make_vec(id, num_envs=N, **options of the environment)`.

    Autoreset is Gymnasium's NEXT_STEP: the step after an episode's end starts the next one and ignores its action.
    With `copy=False` observations are one standing array [num_envs, ...], drawn anew only where boards changed.
    """

    metadata = {**VLMGymEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    # Options by name, as `gymnasium.make_vec` passes them on: those of `VLMGymEnv`.
    def __init__(
        self,
        num_envs: int,
        game: str,
        preset: str = "",
        reasoning: Axis = None,
        perception: Axis = None,
        reward: str = "ternary",
        observation: str = "rgb",
        copy: bool = True,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs = {num_envs}: must be 1 or more")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode = {render_mode!r}: frames of many environments are 'rgb_array' only")
        self.task = Task.make(game, preset=preset, reasoning=reasoning, perception=perception)
        self.num_envs = num_envs
        self.render_mode = render_mode
        one = self.task.new_game()
        self._num_actions = one.actions.num
        self.single_action_space = spaces.Discrete(self._num_actions)
        self.single_observation_space = observation_space(self.task, observation, one)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.batch = self.task.new_batch(num_envs)
        self._reward = reward_named(reward)
        self._copy = copy
        self._board_only = observation == "board"
        self._frames = np.zeros((0 if self._board_only else num_envs, *self.task.renderer.shape), np.uint8)
        self._canvases = [Canvas(self.task.renderer, frame) for frame in self._frames]
        self._rngs: list[np.random.Generator] = [seeding.np_random(None)[0] for _ in range(num_envs)]
        self._done = np.ones(num_envs, np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Starts every game; an integer seed gives game i the seed `seed + i`."""
        if options:
            raise ValueError(f"reset options {sorted(options)}: many environments take none")
        if isinstance(seed, int | np.integer):
            seeds: Sequence[int | None] = [int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = seed or [None] * self.num_envs
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        for i, one in enumerate(seeds):
            if one is not None:
                self._rngs[i] = seeding.np_random(one)[0]
            self.batch.reset(i, one if one is not None else draw_seed(self._rngs[i]))
        self._done[:] = False
        return self._observe(), self._info(None, np.zeros(self.num_envs, np.bool_))

    def step(
        self, actions: NDArray[np.integer]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One move of every game, or its restart where the last move ended an episode."""
        live = ~self._done
        for index in np.flatnonzero(self._done).tolist():
            self.batch.reset(index, draw_seed(self._rngs[index]))
        outcomes = self.batch.step(np.asarray(actions), live)
        rewards = np.array([self._reward(Outcome(*row)) for row in zip(*(f.tolist() for f in outcomes), strict=True)])
        rewards[~live] = 0.0
        self._done = outcomes.terminated | outcomes.truncated
        return self._observe(), rewards, outcomes.terminated, outcomes.truncated, self._info(outcomes, live)

    def _observe(self) -> NDArray[np.uint8]:
        boards, looks = self.batch.boards, self.batch.looks
        if self._board_only:
            return np.array(boards)
        for i, canvas in enumerate(self._canvases):
            canvas.show(boards[i], looks[i])
        return self._frames.copy() if self._copy else self._frames

    def _info(self, outcomes: Outcomes | None, live: NDArray[np.bool_]) -> dict[str, Any]:
        everyone = np.ones(self.num_envs, np.bool_)
        legal = np.empty(self.num_envs, object)
        mask = np.zeros((self.num_envs, self._num_actions), np.int8)
        for i in range(self.num_envs):
            legal[i] = self.batch.legal_actions(i)
            mask[i, list(legal[i])] = 1
        info: dict[str, Any] = {}
        for key, value in (
            ("legal_actions", legal),
            ("action_mask", mask),
            ("score", self.batch.scores.copy()),
            ("moves", self.batch.moves.copy()),
        ):
            info[key], info[f"_{key}"] = value, everyone.copy()
        if outcomes is not None and live.any():
            for key, value in (("legal", outcomes.legal), ("gain", outcomes.gain), ("success", outcomes.success)):
                info[key], info[f"_{key}"] = value, live.copy()
        return info

    def render(self) -> tuple[Any, ...] | None:
        """A frame of every game, [height, width, 3] each."""
        if self.render_mode is None:
            return None
        boards, looks = self.batch.boards, self.batch.looks
        return tuple(self.task.renderer.draw(boards[i], looks[i]) for i in range(self.num_envs))
