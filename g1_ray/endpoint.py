"""A teacher behind any endpoint that speaks OpenAI's chat completions, with the true board put into its answers."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from typing import Any

import numpy as np
from PIL import Image

from envs import Codec, State, Task
from envs.core import Game
from g1_ray.teacher import Lesson


class Unusable(ValueError):
    """An answer that nothing can be learned from; the message says why."""


class Endpoint:
    """Asks a model for its thinking and its move. `key_env` names the environment variable that holds the key, if any.

    Raises `ValueError` where that variable is not set.
    """

    def __init__(
        self,
        task: Task,
        url: str,
        model: str,
        *,
        key_env: str = "",
        temperature: float = 1.0,
        max_tokens: int = 4096,
        timeout_s: float = 300.0,
    ) -> None:
        from openai import OpenAI

        if key_env and not os.environ.get(key_env):
            raise ValueError(f"key_env = {key_env!r}: that environment variable is not set; it has to hold the key")
        # The client wants some key; an endpoint without one does not look at it.
        self._client = OpenAI(base_url=url, api_key=os.environ.get(key_env, "none") if key_env else "none",
                              timeout=timeout_s, max_retries=4)  # fmt: skip
        self.codec = Codec(task)
        self._task, self._model = task, model
        self._options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
        self.outcomes: Counter[str] = Counter()

    def answer(self, game: Game, rng: np.random.Generator) -> Lesson:
        """The endpoint's answer with the true board in place of what it saw. Raises `Unusable` where it has no move."""
        content = [
            {"type": "image_url", "image_url": {"url": data_uri(State.of(self._task, game))}},
            {"type": "text", "text": self.codec.prompt()},
        ]
        made = self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
            seed=int(rng.integers(1 << 31)),
            **self._options,
        )
        read = self.codec.read(made.choices[0].message.content or "")
        if read.action is None:
            raise Unusable(str(read.cause))
        if not (read.thinking or "").strip():
            raise Unusable("no thinking")
        text = self.codec.write(game.perception(), (read.thinking or "").strip(), read.action)
        return Lesson(text, read.action, False)


def data_uri(state: State) -> str:
    """The picture of a state as a PNG in a data URI."""
    png = io.BytesIO()
    Image.fromarray(state.draw()).save(png, "PNG")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
