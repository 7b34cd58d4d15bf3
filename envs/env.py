"""The Gymnasium environment around a game, and the wrapper that takes answers in text."""

import string
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.codec import MAX_CHARS, Codec
from envs.core import Game
from envs.drawing import Canvas
from envs.options import nearest
from envs.rewards import reward_named
from envs.task import Axis, Task

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

    Observations are pictures, ready for a VLM, or boards. With `copy=False` every observation is the same array, drawn
    anew only where it changed. An illegal action costs a move and changes nothing; `info` has `legal_actions`,
    `action_mask`, `score`, `moves`, and after a step `legal`, `gain` and `success`.

    `reset` takes the options `state` (the bytes of a `Game.snapshot`) or `walk` (random legal moves to start with). A
    seed that is given is the game's own seed.
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
    ) -> None:
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
        self._canvas = Canvas(self.task.renderer)
        self.observation_space = observation_space(self.task, observation, self.game)
        self.action_space = spaces.Discrete(self.game.actions.num)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode, or goes on from `options["state"]`."""
        super().reset(seed=seed)
        options = options or {}
        for key in options:
            if key not in ("state", "walk"):
                raise ValueError(f"unknown reset option {key!r}{nearest(key, ('state', 'walk'))}")
        self.game.reset(seed if seed is not None else draw_seed(self.np_random))
        if "state" in options:
            self.game.restore(options["state"])
        for _ in range(options.get("walk", 0)):
            before = self.game.snapshot()
            legal = self.game.legal_actions()
            self.game.step(legal[int(self.np_random.random() * len(legal))])
            if self.game.over:  # the start of an episode is never its end
                self.game.restore(before)
                break
        return self._observe(), self._info()

    def step(self, action: int | None) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One move; None stands for an answer that could not be read."""
        outcome = self.game.step(action)
        info = self._info()
        info["legal"], info["gain"], info["success"] = outcome.legal, outcome.gain, outcome.success
        return self._observe(), self._reward(outcome), outcome.terminated, outcome.truncated, info

    def _observe(self) -> Observation:
        board = self.game.perception()
        if self._board_only:
            return board
        if self._copy:
            return self.task.renderer.draw(board, self.game.looks)
        return self._canvas.show(board, self.game.looks)

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
        if self.render_mode == "rgb_array":
            return self.task.draw(self.game)
        if self.render_mode == "ansi":
            return board_text(self.task, self.game)
        return None


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
