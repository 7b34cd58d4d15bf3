"""Who plays in an evaluation: classic players, a recorded human, models, models behind endpoints.

KINDS["mine"] = MyPlayer    in a module of your own, for `mine:WHAT`, or `module:mine` where that is not imported yet
"""

import asyncio
import contextlib
import functools
import tempfile
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, PrivateAttr, ValidationError, model_validator

from envs import PLAYERS, Game, State, Task
from envs.codec import prompt_of
from envs.options import nearest
from envs.players import Choose
from envs.registry import Registry
from g1_ray.config import EngineConfig
from g1_ray.config_file import Section
from g1_ray.config_text import explain
from g1_ray.engines.base import Engine
from g1_ray.engines.make import check_options, default_kind, make_engine
from g1_ray.evaluation.endpoint import Endpoint, EndpointConfig, EndpointError, Show, check_url, growing
from g1_ray.evaluation.lab import Lab, experiment
from g1_ray.evaluation.play import Question, Reply, Stopped, ask_model, watch_model
from g1_ray.models.find import check_model, is_adapter, merge_adapter, model_path
from g1_ray.types import Sampling

if TYPE_CHECKING:
    from g1_ray.models.chat import Chat

CLASSIC = (*PLAYERS, "teacher")
"""Players that look at the game itself; the teacher is the erring oracle of the cold start."""


class Player(Section):
    """Whoever plays: what all kinds have. A kind of your own is a subclass of `Chooser` or `Asked`."""

    in_lab: ClassVar[bool] = False
    """Whether the lab can begin its answers."""
    stands_first: ClassVar[tuple[str, ...]] = ("name", "kind", "what")
    """Fields that are given before the options."""
    name: str = Field("", description="what it is called in tables; default: what it is")
    kind: str
    what: str = Field(description="a classic player, a file of moves, a model's folder or name, an endpoint's URL")

    @model_validator(mode="after")
    def _named(self) -> "Player":
        if not self.name:
            object.__setattr__(self, "name", self.default_name())
        return self

    def default_name(self) -> str:
        """What it is called where nothing is said."""
        return self.what

    def check(self) -> None:
        """Raises `ValueError` for what only this machine or the network knows: a model that is not to be had."""

    def check_here(self) -> None:
        """The same, where it is to play on this machine and no other: an endpoint that can't be reached."""

    def needs(self, gpus: float) -> dict[str, float]:
        """The resources of a Ray task in which it plays, on a cluster with so many GPUs."""
        return {"num_cpus": 1}

    @property
    def prices(self) -> tuple[float, float]:
        """For a million tokens of prompts, and of answers."""
        return 0.0, 0.0


class Chooser(Player):
    """A player that looks at the game itself."""

    @abstractmethod
    def choose(self, task: Task, seed: int) -> Choose:
        """What plays the run of a seed."""


class Opened(NamedTuple):
    """Asked players of one kind, ready to answer."""

    ask: "Callable[[Asked, Question], Awaitable[Reply]]"
    examine: Callable[[Any, str, Sequence[State]], Awaitable[Lab]] | None = None
    """What the lab finds of a player on a game and states of it, where answers can be begun for them."""
    troubles: Callable[[], dict[str, int]] = dict
    """What went wrong on the way to the replies, and how often."""
    watch: "Callable[[Any, Question], AsyncGenerator[Reply, None]] | None" = None
    """As `ask`, the reply seen as it grows, where it can be."""
    engine: Engine | None = None
    """What answers, where it runs here."""
    chat: "Chat | None" = None
    """How the engine's model is asked."""
    sampling: Sampling | None = None
    """How it answers, where nothing else is said."""
    room: int = 0
    """Tokens of a prompt and its answer together, at most."""
    dtype: str = ""
    """Of the engine's weights."""


class Asked(Player):
    """A player that is shown pictures and answers in text."""

    def shared(self) -> object:
        """Equal for players that answer from one engine or one client."""
        return self.name

    @classmethod
    @abstractmethod
    def opened(
        cls, players: Sequence[Any], tasks: Sequence[Task], gpus: float
    ) -> contextlib.AbstractAsyncContextManager[Opened]:
        """Opens what `shared` players answer from; `tasks` are the games that they will be asked about."""


class Classic(Chooser):
    """One of the players that come with the games."""

    kind: Literal["classic"] = "classic"

    @model_validator(mode="after")
    def _check(self) -> "Classic":
        if self.what not in CLASSIC:
            raise ValueError(f"what = {self.what!r} is no classic player{nearest(self.what, CLASSIC)}")
        return self

    def choose(self, task: Task, seed: int) -> Choose:
        if self.what != "teacher":
            return PLAYERS[self.what]
        from envs.teacher import Oracle

        return Oracle(task)


class Human(Chooser):
    """A person whose moves `g1-ray play --save` has kept."""

    kind: Literal["human"] = "human"
    _path: Path = PrivateAttr(Path())
    """From the folder that the player was named in."""

    @model_validator(mode="after")
    def _check(self) -> "Human":
        self._path = Path(self.what).expanduser().absolute()
        if not self._path.is_file():
            raise ValueError(f"what = {self.what!r}: no such file; g1-ray play GAME --save FILE.parquet makes one")
        return self

    def check(self) -> None:
        from g1_ray.evaluation.moves import read_runs

        read_runs(Path(self.what))

    def choose(self, task: Task, seed: int) -> Choose:
        """Plays the run again. Raises `ValueError` where there is none, or the boards are other ones."""
        from g1_ray.evaluation.moves import read_runs

        runs = {run.seed: run for run in read_runs(self._path)}
        if seed not in runs:
            raise ValueError(f"{self.what}: no run of seed {seed}; it has {', '.join(map(str, sorted(runs)))}")
        moves = iter(runs[seed].moves)

        def choose(game: Game, rng: np.random.Generator) -> int:
            move = next(moves, None)
            if move is None:
                raise Stopped
            if not np.array_equal(move.state.game().perception(), game.perception()):
                raise ValueError(f"{self.what}: seed {seed} was played on another game, or under another protocol")
            assert move.action is not None, "a person's move is always one"
            return move.action

        return choose


class Model(Asked):
    """A model that is loaded here, by an engine."""

    in_lab = True
    kind: Literal["model"] = "model"
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(4096, ge=1, description="longest answer")
    dtype: Literal["", "float32", "bfloat16"] = Field("", description="default: bfloat16 on a GPU")
    engine: dict[str, Any] = Field({}, description="options of EngineConfig; the rest is as fits the cluster")
    _path: str = PrivateAttr("")
    """What `from_pretrained` takes, from the folder that the player was named in."""

    @model_validator(mode="after")
    def _check(self) -> "Model":
        path = self.what if is_adapter(self.what) else model_path(self.what, "what")
        folder = Path(path).expanduser()
        self._path = str(folder.absolute()) if folder.is_dir() else path
        try:
            checked = EngineConfig(**self.engine)
        except ValidationError as error:
            raise ValueError(explain(error, EngineConfig, "engine", ())) from None
        object.__setattr__(self, "engine", {key: getattr(checked, key) for key in self.engine})
        return self

    def check(self) -> None:
        check_model(self.what, f"player {self.name!r}")

    def needs(self, gpus: float) -> dict[str, float]:
        engine = self.resolved_engine(gpus, 1)
        return {"num_cpus": engine.cpus, "num_gpus": engine.gpus}

    def shared(self) -> object:
        return self._path, sorted(self.engine.items()), self.dtype

    @property
    def sampling(self) -> Sampling:
        """How it answers."""
        return Sampling(self.temperature, self.top_p, self.max_tokens)

    def resolved_engine(self, cluster_gpus: float, max_model_len: int) -> EngineConfig:
        """Its engine: vLLM on a GPU where the cluster has one, else transformers. Raises for options it won't read."""
        gpus = self.engine.get("gpus", min(cluster_gpus, 1))
        chosen = {"kind": default_kind(gpus), "gpus": gpus, "max_model_len": max_model_len, **self.engine}
        check_options(self.engine, chosen["kind"], gpus, f"player {self.name!r}")
        return EngineConfig(**chosen)

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, players: "Sequence[Model]", tasks: Sequence[Task], gpus: float) -> AsyncIterator[Opened]:
        """An engine for them alone. A LoRA adapter is merged into its model first."""
        from transformers import AutoConfig

        from g1_ray.models.chat import Chat

        player = players[0]
        with tempfile.TemporaryDirectory() as folder:
            path = merge_adapter(player._path, folder) if is_adapter(player._path) else model_path(player._path)
            chat = Chat(path)
            longest = max(len(chat.prompt([(State.start(task, 0), None)]).token_ids) for task in tasks)
            most = AutoConfig.from_pretrained(path).get_text_config().max_position_embeddings
            room = min(most, longest + max(player.max_tokens for player in players))
            config = player.resolved_engine(gpus, room)
            dtype = player.dtype or ("bfloat16" if config.gpus else "float32")
            engine = make_engine(path, config, dtype, Sampling())
            await engine.start()
            asks = {player.name: ask_model(chat, engine.generate, player.sampling) for player in players}

            async def examine(player: "Model", game: str, states: Sequence[State]) -> Lab:
                return await experiment(game, player.name, states, chat, engine.generate, player.sampling)

            try:
                yield Opened(
                    lambda player, question: asks[player.name](question),
                    examine,
                    watch=lambda player, question: watch_model(chat, engine.stream, player.sampling)(question),
                    engine=engine,
                    chat=chat,
                    sampling=player.sampling,
                    room=config.max_model_len,
                    dtype=dtype,
                )
            finally:
                await engine.stop()


class EndpointPlayer(EndpointConfig, Asked):
    """A model behind an endpoint; `what` is its URL."""

    stands_first: ClassVar[tuple[str, ...]] = (*Player.stands_first, "url")
    kind: Literal["endpoint"] = "endpoint"
    price_in: float = Field(0.0, ge=0, description="for a million tokens of prompts")
    price_out: float = Field(0.0, ge=0, description="for a million tokens of answers")

    @model_validator(mode="after")
    def _check(self) -> "EndpointPlayer":
        if not self.model:
            raise ValueError("an endpoint needs the name of its model: URL?model=NAME")
        check_url(self.what)
        assert self.key is not None  # or it raises
        object.__setattr__(self, "url", self.what)
        return self

    def default_name(self) -> str:
        return self.model

    def check_here(self) -> None:
        try:
            Endpoint(self).meet()
        except EndpointError as error:
            raise ValueError(f"player {self.name!r}: {error}") from None

    def needs(self, gpus: float) -> dict[str, float]:
        return {"num_cpus": 0.1}

    @property
    def prices(self) -> tuple[float, float]:
        return self.price_in, self.price_out

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls, players: "Sequence[EndpointPlayer]", tasks: Sequence[Task], gpus: float
    ) -> AsyncIterator[Opened]:
        """As many requests at a time as it is to get."""
        endpoint, loop = Endpoint(players[0]), asyncio.get_running_loop()
        with ThreadPoolExecutor(players[0].concurrency) as pool:

            def put(question: Question, show: Show | None = None) -> asyncio.Future[Reply]:
                about = question.state, prompt_of(question.state.task), question.sampling_seed
                return loop.run_in_executor(pool, endpoint.ask, *about, show)

            try:
                yield Opened(
                    lambda player, question: put(question),
                    troubles=lambda: dict(endpoint.troubles),
                    watch=lambda player, question: growing(functools.partial(put, question)),
                )
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                endpoint.close()


KINDS: Registry[type[Player]] = Registry("kind of player", classic=Classic, human=Human, model=Model)
KINDS["endpoint"] = EndpointPlayer
