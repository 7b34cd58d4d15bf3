"""Model cards: what the folder of a trained model says of itself, as the Hugging Face Hub shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from envs import Task
from g1_ray.models.find import is_hub_name

CARD = "README.md"
_USE = """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained("FOLDER")
    processor = AutoProcessor.from_pretrained("FOLDER")

FOLDER is where this file is, or its name on the Hub. Games are played, and scored beside other players, by g1_ray:
"""


@dataclass(frozen=True)
class Card:
    """What is told of a model, whatever its step."""

    name: str
    base: str
    """What it was trained from, as the run was given it: a folder or a name; '': from scratch."""
    how: str
    """The training, e.g. "reinforcement learning (grpo)"."""
    games: Mapping[str, Task]
    """What it was trained on, by the names in metrics."""

    def write(self, folder: Path, reached: str) -> None:
        """Writes README.md into the folder of the model; `reached` is how far it was trained, e.g. "step 40"."""
        from huggingface_hub import ModelCardData

        about = ModelCardData(
            base_model=self.base if is_hub_name(self.base) else None,
            library_name="transformers",
            pipeline_tag="image-text-to-text",
            tags=["g1_ray", "games", *dict.fromkeys(task.name for task in self.games.values())],
        )
        start = f"`{self.base}`" if self.base else "A model from scratch"
        games = ", ".join(self.games)
        lines = [
            f"---\n{about.to_yaml()}\n---\n\n# {self.name}\n",
            f"{start}, trained by {self.how} on {games}: {reached}.",
            "It is shown a picture of a board, describes it, thinks, and answers with a move.",
            _USE,
            *(f"    g1-ray play {played(task)} --player FOLDER" for task in self.games.values()),
            f"    g1-ray evaluate --games {evaluated(self.games)} --players FOLDER oracle",
        ]
        (folder / CARD).write_text("\n".join(lines) + "\n")


def _options(task: Task) -> dict[str, dict[str, object]]:
    """What is not as the game has it by itself, by axis."""
    usual = Task.make(task.name)
    axes = {"reasoning": (task.reasoning, usual.reasoning), "perception": (task.perception, usual.perception)}
    return {
        axis: {key: value for key, value in its.as_dict().items() if value != others.as_dict()[key]}
        for axis, (its, others) in axes.items()
    }


def played(task: Task) -> str:
    """The task as `g1-ray play` takes it."""
    pairs = {axis: ",".join(f"{key}={value}" for key, value in its.items()) for axis, its in _options(task).items()}
    return " ".join([task.name, *(f'--{axis} "{text}"' for axis, text in pairs.items() if text)])


def evaluated(games: Mapping[str, Task]) -> str:
    """The tasks as `g1-ray evaluate` takes them."""
    specs = []
    for name, task in games.items():
        options = "&".join(f"{key}={value}" for its in _options(task).values() for key, value in its.items())
        specs.append(f'"{name}={task.name}{"?" if options else ""}{options}"')
    return " ".join(specs)
