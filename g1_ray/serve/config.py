"""The options of the server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError, model_validator

from envs import PLAYERS
from g1_ray.config_file import Section
from g1_ray.config_text import explain
from g1_ray.evaluation.named import parse_player
from g1_ray.evaluation.players import Asked
from g1_ray.grammar import parse_spec
from g1_ray.models.find import SHIPPED
from g1_ray.serve.session import PERSON


class Served(NamedTuple):
    """A model of the server."""

    name: str
    spec: str
    """What `parse_player` takes, the same in any folder."""
    run: str
    """The run whose newest checkpoint it is; '' for none."""


class ServeConfig(Section):
    """What is served, and how. The token is in no config: it is the environment's G1_RAY_SERVE_TOKEN."""

    models: tuple[str, ...] = Field(
        ("tiny-coldstart",),
        min_length=1,
        description="runs, folders, names, adapters, endpoints: [NAME=]WHAT[?OPTION=VALUE&...], as evaluate takes them",
    )
    follow: bool = Field(False, description="take up each new checkpoint of the runs that are served")
    folder: str = Field("runs/arena", description="where games and scores are kept")
    hosts: tuple[str, ...] = Field((), description="names that the server is called by, beside this machine's")
    ingress_replicas: int = Field(2, ge=1, description="processes that speak HTTP")
    min_replicas: int = Field(1, ge=1, description="engines of each model, at least")
    max_replicas: int = Field(1, ge=1, description="and at most, as many as requests ask for")
    max_ongoing: int = Field(32, ge=1, description="answers at once of an engine")
    max_queued: int = Field(128, ge=0, description="answers that may wait for each model; more are told to come again")
    rate: float = Field(100.0, gt=0, description="requests a second of a client, at each process that speaks HTTP")

    @model_validator(mode="after")
    def _check(self) -> "ServeConfig":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas = {self.min_replicas}: more than max_replicas = {self.max_replicas}")
        served = self.served()
        names = [model.name for model in served]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"models: two are called {name}; give one of them another name: NAME={self.models[0]}")
            if name in (PERSON, *PLAYERS):
                raise ValueError(f"models: {name} is a player of every server; give the model another name: NAME=...")
        if self.follow and not any(model.run for model in served):
            raise ValueError(f"follow: none of {', '.join(names)} is the folder of a run")
        return self

    def served(self) -> list[Served]:
        """The models. Raises `ValueError`."""
        return [served(text) for text in self.models]


def served(text: str) -> Served:
    """The model that a text names; the paths in it are as seen from this folder. Raises `ValueError`."""
    player, spec = parse_player(text), parse_spec(text)
    if not isinstance(player, Asked):
        raise ValueError(f"models: {player.name} is no model; the classic players are on every server")
    folder = Path(spec.what).expanduser().absolute()
    if spec.what in SHIPPED or "://" in spec.what or not folder.is_dir():
        return Served(player.name, text, "")
    options = "&".join(f"{key}={value}" for key, value in spec.options.items())
    run = str(folder) if (folder / "checkpoints").is_dir() else ""
    return Served(spec.name or folder.name, f"{folder}?{options}" if options else str(folder), run)


def config_of(args: Mapping[str, Any]) -> ServeConfig:
    """The options from `serve run`'s KEY=VALUE or a deployment file; MODEL is a list, or words apart by spaces."""
    values = {key.lower(): value for key, value in args.items()}
    if "model" in values:
        values["models"] = values.pop("model")
    for key in ("models", "hosts"):
        if isinstance(values.get(key), str):
            values[key] = values[key].split()
    try:
        return ServeConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError(explain(error, ServeConfig, "serve", ())) from None
