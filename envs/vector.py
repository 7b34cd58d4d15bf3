"""Many environments of one task, stepped as one: shared logic where the game has it, one array of frames, no wrappers.

It does what `gymnasium.vector.SyncVectorEnv` does with the same seeds and actions, array for array; it is just faster.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.batch import Outcomes
from envs.core import Outcome
from envs.drawing import StandingFrames
from envs.env import Start, VLMGymEnv, draw_seed, observation_space, refuse, with_horizon
from envs.options import nearest, plain
from envs.rewards import reward_named
from envs.task import Axis, Task

Seeds = int | Sequence[int | None] | None
Mask = NDArray[np.bool_]


class VLMGymVectorEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` games of one task: `gymnasium.make_vec(id, num_envs=N, **options of the environment)`.

    Autoreset is one of Gymnasium's: with NEXT_STEP the step after an episode's end starts the next one and ignores its
    action; with SAME_STEP the step that ends an episode does, and `info` has `final_obs` and `final_info`; with
    DISABLED `reset(options={"reset_mask": mask})` does. `max_episode_steps` makes the horizon no longer than that.
    Frames with `copy=False` are those of `VLMGymEnv`, one array [num_envs, height, width, 3].
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
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        **unknown: Any,
    ) -> None:
        refuse(unknown, game, type(self))
        num_envs, max_episode_steps = plain(num_envs), plain(max_episode_steps)
        if type(num_envs) is not int or num_envs < 1:
            raise ValueError(f"num_envs = {num_envs!r}: must be 1 or more")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode = {render_mode!r}: frames of many environments are 'rgb_array' only")
        task = Task.make(game, preset=preset, reasoning=reasoning, perception=perception)
        if max_episode_steps and not task.reasoning.ended_by(max_episode_steps):
            task = dataclasses.replace(task, reasoning=dataclasses.replace(task.reasoning, horizon=max_episode_steps))
        self.task = task
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self._num_actions = self.task.new_game().actions.num
        self.single_action_space = spaces.Discrete(self._num_actions)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._observed(observation)
        self.batch = self.task.new_batch(num_envs)
        self._reward = reward_named(reward)
        self._copy = copy
        self._frames = StandingFrames(self.task.renderer, num_envs)
        self._rngs: list[np.random.Generator] = [seeding.np_random(None)[0] for _ in range(num_envs)]
        self._started = np.zeros(num_envs, np.bool_)
        self._done = np.zeros(num_envs, np.bool_)
        self._spec: EnvSpec | None = None

    def _observed(self, observation: str) -> None:
        """Makes the spaces of observations."""
        self._board_only = observation == "board"
        self.single_observation_space = observation_space(self.task, observation, self.task.new_game())
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def __getstate__(self) -> dict[str, Any]:
        large = ("observation_space", "single_observation_space")
        return {key: value for key, value in self.__dict__.items() if key not in large}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._observed("board" if self._board_only else "rgb")

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Starts every game, or those that `options["reset_mask"]` [num_envs] marks.

        An integer seed gives game i the seed `seed + i`. The other options are those of `VLMGymEnv`, for each game.

        Raises `ValueError` on seeds or options that are none, and changes nothing then.
        """
        options = dict(options or {})
        who = self._marked(options.pop("reset_mask")) if "reset_mask" in options else np.ones(self.num_envs, np.bool_)
        self._check_started(who)
        start = Start.of(self.task, options)
        seeds = self._seeds(seed)
        rngs = [self._rngs[i] if one is None else seeding.np_random(one)[0] for i, one in enumerate(seeds)]
        for i in np.flatnonzero(who).tolist():
            self._rngs[i], one = rngs[i], seeds[i]
            self._begin(i, start, one if one is not None else draw_seed(self._rngs[i]))
        self._started |= who
        self._done &= ~who
        return self._observe(), self._info(who)

    def _marked(self, mask: Any) -> Mask:
        """`reset_mask`, checked."""
        if (
            not isinstance(mask, np.ndarray)
            or mask.dtype != np.bool_
            or mask.shape != (self.num_envs,)
            or not mask.any()
        ):
            raise ValueError(f"reset_mask = {mask!r}: must be an array of {self.num_envs} booleans, one at least True")
        return mask

    def _seeds(self, seed: Seeds) -> list[int | None]:
        """A seed or none for each game."""
        seed = plain(seed)
        if isinstance(seed, int):
            return [seed + i for i in range(self.num_envs)]
        seeds: list[int | None] = [plain(one) for one in seed] if seed is not None else [None] * self.num_envs
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        return seeds

    def _begin(self, index: int, start: Start, seed: int) -> None:
        if start.plain:
            self.batch.reset(index, seed)
        else:
            game = self.task.new_game()
            start.begin(game, seed)
            self.batch.restore(index, game.snapshot())

    def _check_started(self, soon: Mask | None = None) -> None:
        started = self._started if soon is None else self._started | soon
        if not started.all():
            raise ResetNeeded(f"games {np.flatnonzero(~started).tolist()} were never started: call reset first")

    def step(
        self, actions: NDArray[np.integer]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """One move of every game; where an episode is over or ends, what the autoreset mode says."""
        self._check_started()
        actions = self.batch.checked(np.asarray(actions))
        live = ~self._done
        if self.autoreset_mode == AutoresetMode.DISABLED and not live.all():
            raise ResetNeeded(
                f"the episodes of games {np.flatnonzero(self._done).tolist()} are over, and autoreset is off: call "
                'reset(options={"reset_mask": mask}) first'
            )
        self._deal_again(self._done)
        outcomes = self.batch.step(actions, live)
        rewards = np.array([self._reward(Outcome(*row)) for row in zip(*(f.tolist() for f in outcomes), strict=True)])
        rewards[~live] = 0.0
        self._done = outcomes.terminated | outcomes.truncated
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._done.any():
            info = self._start_over(outcomes)
        else:
            info = self._info(np.ones(self.num_envs, np.bool_), outcomes, live)
        return self._observe(), rewards, outcomes.terminated, outcomes.truncated, info

    def _start_over(self, outcomes: Outcomes) -> dict[str, Any]:
        """Starts the next episode where one has ended; the info of this step, with that of the end in it."""
        ended = self._done
        final_obs = np.full(self.num_envs, None, object)
        for i in np.flatnonzero(ended).tolist():
            board = self.batch.boards[i]
            final_obs[i] = board.copy() if self._board_only else self.task.renderer.draw(board, self.batch.looks[i])
        final_info = self._info(ended, outcomes, ended)
        self._deal_again(ended)
        self._done = np.zeros(self.num_envs, np.bool_)
        return {
            **self._info(np.ones(self.num_envs, np.bool_), outcomes, ~ended),
            "final_obs": final_obs,
            "_final_obs": ended.copy(),
            "final_info": final_info,
            "_final_info": ended.copy(),
        }

    def _deal_again(self, who: Mask) -> None:
        for index in np.flatnonzero(who).tolist():
            self.batch.reset(index, draw_seed(self._rngs[index]))

    def _observe(self) -> NDArray[np.uint8]:
        boards, looks = self.batch.boards, self.batch.looks
        if self._board_only:
            return np.array(boards)
        frames = self._frames.show(boards, looks)
        return frames.copy() if self._copy else frames

    def _info(self, who: Mask, outcomes: Outcomes | None = None, played: Mask | None = None) -> dict[str, Any]:
        """What there is to tell of the games `who` [num_envs], and of the moves of those that `played`."""
        legal = np.full(self.num_envs, None, object)
        mask = np.zeros((self.num_envs, self._num_actions), np.int8)
        for i in np.flatnonzero(who).tolist():
            legal[i] = self.batch.legal_actions(i)
            mask[i, list(legal[i])] = 1
        info: dict[str, Any] = {}
        for key, value in (
            ("legal_actions", legal),
            ("action_mask", mask),
            ("score", self.batch.scores * who),
            ("moves", self.batch.moves * who),
        ):
            info[key], info[f"_{key}"] = value, who.copy()
        if outcomes is not None and played is not None and played.any():
            for key, value in (("legal", outcomes.legal), ("gain", outcomes.gain), ("success", outcomes.success)):
                info[key], info[f"_{key}"] = value * played, played.copy()
        return info

    def render(self) -> tuple[Any, ...] | None:
        """A frame of every game, [height, width, 3] each."""
        if self.render_mode is None:
            return None
        self._check_started()
        boards, looks = self.batch.boards, self.batch.looks
        return tuple(self.task.renderer.draw(boards[i], looks[i]) for i in range(self.num_envs))

    @property
    def spec(self) -> EnvSpec | None:
        """How the environments were made; its `max_episode_steps` is the horizon."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = with_horizon(spec, self.task)


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """One of Gymnasium's modes, or its name or value, 'SAME_STEP' or 'SameStep'."""
    for known in AutoresetMode:
        if mode in (known, known.name, known.value):
            return known
    raise ValueError(f"unknown autoreset_mode {mode!r}{nearest(str(mode), [known.name for known in AutoresetMode])}")
