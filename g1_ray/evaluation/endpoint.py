"""Models behind endpoints that speak OpenAI's chat completions: asked about boards."""

import os
import time
from collections import Counter
from typing import Literal

from pydantic import Field

from envs import State
from g1_ray.config import Section
from g1_ray.evaluation.play import Reply
from g1_ray.runs.parquet import data_uri, png_of

LONGEST_WAIT_S = 60.0
"""Between two tries; a server that names a longer one with `Retry-After` is waited for as it says."""


class EndpointError(RuntimeError):
    """An endpoint that gave no reply, however often it was asked."""


class EndpointConfig(Section):
    """A model behind an endpoint."""

    url: str = Field("", description="of the endpoint, such as http://localhost:8000/v1")
    model: str = Field("", description="its name at the endpoint")
    key_env: str = Field("", description="environment variable that holds the key, if one is needed")
    temperature: float = Field(1.0, ge=0)
    max_tokens: int = Field(4096, ge=1, description="longest answer of the endpoint")
    limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the endpoint calls that; OpenAI's newest models want the second"
    )
    concurrency: int = Field(16, ge=1, description="requests to the endpoint at a time")
    timeout_s: float = Field(300.0, gt=0, description="longest wait for one reply")
    tries: int = Field(8, ge=1, description="times that a question is put, where the endpoint is busy or fails")


class Endpoint:
    """Asks a model about boards, and goes on asking where the endpoint is busy, fails or is silent.

    `troubles` counts what went wrong on the way: '429', '500', ..., 'timed out', 'no connection', 'no choices'.
    Raises `ValueError` where the variable that should hold the key is not set. The key is written nowhere.
    """

    def __init__(self, config: EndpointConfig) -> None:
        from openai import OpenAI

        key = os.environ.get(config.key_env, "") if config.key_env else "none"
        if not key:
            raise ValueError(
                f"key_env = {config.key_env!r}: that environment variable is not set; it has to hold the key"
            )
        # An endpoint that needs no key does not look at the one that the client wants.
        self._client = OpenAI(base_url=config.url, api_key=key, timeout=config.timeout_s, max_retries=0)
        self.config = config
        self.troubles: Counter[str] = Counter()

    def ask(self, state: State, prompt: str, seed: int) -> Reply:
        """The reply to a picture and its rules. Raises `EndpointError` when all tries are used up."""
        import openai
        import tenacity

        tries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.config.tries),
            wait=_wait,
            retry=tenacity.retry_if_exception(self._is_passing),
        )
        try:
            return tries(self._ask_once, state, prompt, seed)
        except tenacity.RetryError as error:
            last = error.last_attempt.exception()
            raise EndpointError(f"{self.config.url}: no reply in {self.config.tries} tries; {_told(last)}") from None
        except openai.APIError as error:
            raise EndpointError(f"{self.config.url}: {_told(error)}") from None

    def _ask_once(self, state: State, prompt: str, seed: int) -> Reply:
        content = [
            {"type": "image_url", "image_url": {"url": data_uri(png_of(state))}},
            {"type": "text", "text": prompt},
        ]
        begun = time.monotonic()
        made = self._client.chat.completions.create(
            model=self.config.model,
            messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
            temperature=self.config.temperature,
            seed=seed % (1 << 31),
            extra_body={self.config.limit: self.config.max_tokens},
        )
        if not made.choices:
            raise _NoChoices
        choice, usage = made.choices[0], made.usage
        return Reply(
            text=choice.message.content or "",
            finish_reason=choice.finish_reason or "",
            prompt_tokens=usage.prompt_tokens if usage else 0,
            tokens=usage.completion_tokens if usage else 0,
            seconds=time.monotonic() - begun,
        )

    def _is_passing(self, error: BaseException) -> bool:
        """Whether to try again; counts it."""
        import openai

        if isinstance(error, openai.APIStatusError):
            self.troubles[str(error.status_code)] += 1
            return error.status_code in (408, 409, 429) or error.status_code >= 500
        names = {
            openai.APITimeoutError: "timed out",
            openai.APIConnectionError: "no connection",
            _NoChoices: "no choices",
        }
        for kind, name in names.items():
            if isinstance(error, kind):
                self.troubles[name] += 1
                return True
        return False


class _NoChoices(Exception):
    """A reply without an answer in it: what some gateways send when the model behind them fails."""


def _wait(state: object) -> float:
    """Seconds until the next try: as the server says, else longer each time and spread at random."""
    import tenacity

    assert isinstance(state, tenacity.RetryCallState) and state.outcome is not None
    response = getattr(state.outcome.exception(), "response", None)
    told = response.headers.get("retry-after", "") if response is not None else ""
    if told.replace(".", "", 1).isdecimal():
        return float(told)
    return tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_S)(state)


def _told(error: BaseException | None) -> str:
    """An error in few words. What the server says may quote the key, so it is left out."""
    status = getattr(error, "status_code", None)
    return f"HTTP status {status} ({type(error).__name__})" if status else type(error).__name__
