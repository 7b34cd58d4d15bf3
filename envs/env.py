"""The Gymnasium environment around a game, and the wrapper that takes answers in text."""

import dataclasses
import inspect
import string
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from envs.codec import MAX_CHARS, Codec
from envs.core import Game, as_bytes
from envs.drawing import StandingFrames
from envs.options import nearest, plain
from envs.perception import Perception
from envs.rewards import reward_named
from envs.task import Axis, Task, game_spec

Observation = NDArray[np.uint8]
"""[height, width, 3] RGB, or the board [rows, cols] of kinds with observation="board"."""

OBSERVATIONS = ("rgb", "board")


def observation_space(task: Task, observation: str, game: Game) -> spaces.Box:
    """The space of single observations. Raises `ValueError` on an unknown kind of observation."""
    if observation not in OBSERVATIONS:
        raise ValueError(f"unknown observation {observation!r}{nearest(observation, OBSERVATIONS)}")
    if observation == "board":
        return spaces.Box(0, game.num_kinds, (game.rows, game.cols), np.uint8)
    return spaces.Box(0, 255, task.renderer.shape, np.uint8)


def action_mask(num: int, legal: tuple[int, ...]) -> NDArray[np.int8]:
    """[num] 1 for legal actions: what `Discrete.sample(mask)` takes."""
    mask = np.zeros(num, np.int8)
    mask[list(legal)] = 1
    return mask


class VLMGymEnv(gymnasium.Env[Observation, int]):
    """One game of a task.

    Observations are pictures, ready for a VLM, or boards. With `copy=False` pictures are not to be written to: one is
    drawn in the memory of an earlier one that nobody holds any more, and there only where it changed. An illegal action
    costs a move and changes nothing; `info` has `legal_actions`, `action_mask`, `score`, `moves`, and after a step
    `legal`, `gain` and `success`.

    `reset` takes the options `state` (the bytes of a `Game.snapshot`) and `walk` (random legal moves to start with,
    fewer where they would end the episode). A seed that is given is the game's own seed. A reset that fails changes
    nothing.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 4}

    def __init__(
        self,
        game: str,
        preset: str = "",
        reasoning: Axis = None,
        perception: Axis = None,
        reward: str = "ternary",
        observation: str = "rgb",
        copy: bool = True,
        render_mode: str | None = None,
        **unknown: Any,
    ) -> None:
        refuse(unknown, game, type(self))
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"unknown render_mode {render_mode!r}{nearest(render_mode, self.metadata['render_modes'])}"
            )
        self.task = Task.make(game, preset=preset, reasoning=reasoning, perception=perception)
        self.game = self.task.new_game()
        self.render_mode = render_mode
        self._reward = reward_named(reward)
        self._board_only = observation == "board"
        self._copy = copy
        self._frames = StandingFrames(self.task.renderer, 1)
        self._spec: EnvSpec | None = None
        self.observation_space = observation_space(self.task, observation, self.game)
        self.action_space = spaces.Discrete(self.game.actions.num)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode, or goes on from `options["state"]`."""
        start = Start.of(self.task, options or {})
        super().reset(seed=plain(seed))
        start.begin(self.game, self.np_random_seed if seed is not None else draw_seed(self.np_random))
        return self._observe(), self._info()

    def step(self, action: int | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One move; None stands for an answer that could not be read."""
        outcome = self.game.step(action)
        info = self._info()
        info["legal"], info["gain"], info["success"] = outcome.legal, outcome.gain, outcome.success
        return self._observe(), self._reward(outcome), outcome.terminated, outcome.truncated, info

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "observation_space"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # the space is bounds for every pixel, megabytes of two numbers
        self.observation_space = observation_space(self.task, "board" if self._board_only else "rgb", self.game)

    def _observe(self) -> Observation:
        board = self.game.perception()
        if self._board_only:
            return board
        if self._copy:
            return self.task.renderer.draw(board, self.game.looks)
        return self._frames.show(board[None], self.game.looks[None])[0]

    def _info(self) -> dict[str, Any]:
        legal = self.game.legal_actions()
        return {
            "legal_actions": legal,
            "action_mask": action_mask(self.game.actions.num, legal),
            "score": self.game.score,
            "moves": self.game.moves,
        }

    def action_masks(self) -> NDArray[np.bool_]:
        """[actions] True for legal ones, under the name that maskable policies look for."""
        return action_mask(self.game.actions.num, self.game.legal_actions()).astype(np.bool_)

    def render(self) -> Any:
        """The frame [height, width, 3] or the board as text, by `render_mode`."""
        if self.render_mode and not self.game.looks.size:
            raise ResetNeeded("there is no episode yet: call reset first")
        if self.render_mode == "rgb_array":
            return self.task.draw(self.game)
        if self.render_mode == "ansi":
            return board_text(self.task, self.game)
        return None

    @property
    def spec(self) -> EnvSpec | None:
        """How the environment was made; its `max_episode_steps` is the horizon."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = with_horizon(spec, self.task)


def with_horizon(spec: EnvSpec | None, task: Task) -> EnvSpec | None:
    """A spec that says after how many steps an episode of the task is cut off."""
    return spec and dataclasses.replace(spec, max_episode_steps=task.reasoning.horizon or None)


def refuse(unknown: Mapping[str, Any], game: str, made: type) -> None:
    """Raises `ValueError` on options that the constructor of `made` doesn't know, and says where they go."""
    for key, value in unknown.items():
        rules, looks = game_spec(game).game_type.options_type, Perception
        for axis, options in (("reasoning", rules), ("perception", looks)):
            if key in (field.name for field in dataclasses.fields(options)):
                raise ValueError(f'{key} = {value!r}: an option of {axis}; give {axis}={{"{key}": {value!r}}}')
        known = [name for name in inspect.signature(made).parameters if name != "unknown"]
        known += [field.name for options in (rules, looks) for field in dataclasses.fields(options)]
        raise ValueError(f"unknown option {key!r}{nearest(key, known)}")


@dataclasses.dataclass(frozen=True)
class Start:
    """Where an episode starts: the options of `reset`, checked."""

    state: bytes | None
    walk: int

    @classmethod
    def of(cls, task: Task, options: Mapping[str, Any]) -> "Start":
        """Raises `ValueError` on what no episode can start from."""
        for key in options:
            if key not in ("state", "walk"):
                raise ValueError(f"unknown reset option {key!r}{nearest(key, ('state', 'walk'))}")
        walk = plain(options.get("walk", 0))
        if type(walk) is not int or walk < 0:
            raise ValueError(f"walk = {walk!r}: must be a number of moves, 0 or more")
        if "state" not in options:
            return cls(None, walk)
        state = as_bytes(options["state"], "state")
        game = task.new_game()
        game.restore(state)
        if walk and game.over:
            raise ValueError(
                f"walk = {walk}: the episode of the state is over; give a state with moves left, or no walk"
            )
        return cls(state, walk)

    @property
    def plain(self) -> bool:
        """Whether the episode starts with the deal of its seed."""
        return self.state is None and not self.walk

    def begin(self, game: Game, seed: int) -> None:
        """Puts a game there. The moves of the walk come from a stream of their own: the seed's is the deal's."""
        if self.state is None:
            game.reset(seed)
        else:
            game.restore(self.state)
        if not self.walk:
            return
        rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
        for _ in range(self.walk):
            before, legal = game.snapshot(), game.legal_actions()
            game.step(legal[int(rng.random() * len(legal))])
            if game.over:  # the start of an episode is never its end
                game.restore(before)
                break


def draw_seed(rng: np.random.Generator) -> int:
    """A fresh seed for a game."""
    return int(rng.integers(2**63 - 1))


def board_text(task: Task, game: Game) -> str:
    """The board as text with its row and column numbers."""
    names = task.renderer.names
    rows = [[names[kind] for kind in row] for row in game.perception().tolist()]
    width = max(len(name) for row in rows for name in row)
    lines = ["   " + " ".join(str(col).center(width) for col in range(game.cols))]
    lines += [f"{i:2} " + " ".join(name.center(width) for name in row) for i, row in enumerate(rows)]
    return "\n".join(line.rstrip() for line in lines)


class TextAnswers(gymnasium.Wrapper[Observation, str, Observation, int]):
    """Takes answers in the words of a model. What can't be read is a move lost, with its cause in `info["invalid"]`.

    `prompt` is what the model is asked; `info["answer"]` is the `Answer` as read.
    """

    def __init__(self, env: gymnasium.Env[Observation, int]) -> None:
        super().__init__(env)
        inner = env.unwrapped
        if not isinstance(inner, VLMGymEnv):
            raise ValueError(f"TextAnswers reads answers for VLM-Gym environments; {inner} is none")
        self.codec = Codec(inner.task)
        self.prompt = self.codec.prompt()
        self.action_space = spaces.Text(MAX_CHARS, charset=string.printable)

    def step(self, action: str) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        """Reads the answer and plays its move."""
        answer = self.codec.read(action)
        observation, reward, terminated, truncated, info = self.env.step(answer.action)  # type: ignore[arg-type]
        info["invalid"] = str(answer.cause) if answer.cause else None
        info["answer"] = answer
        return observation, reward, terminated, truncated, info
