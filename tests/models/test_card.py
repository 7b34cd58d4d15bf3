"""Cards, read as the Hub reads them, and the commands in them, read as `g1-ray` reads them."""

import argparse
import shlex

import pytest

from envs import Task
from g1_ray.evaluation.named import parse_game
from g1_ray.models.card import CARD, Card
from g1_ray.models.find import MODELS, SHIPPED
from jobs.options import add_task_options, task_of

hub = pytest.importorskip("huggingface_hub")
GAMES = {
    "small": Task.make("2048", reasoning={"size": 3}, perception={"tiles": "numbers", "tile_px": 28}),
    "shisen": Task.make("shisen", preset="paper"),
    "hard": Task.make("swap", perception=2, reasoning=1),
    "2048": Task.make("2048"),
}


@pytest.mark.parametrize("base", ["Qwen/Qwen2.5-VL-3B-Instruct", "tiny-base", "./some/folder", "g1_ray/models", ""])
def test_a_card_is_one_as_the_hub_takes_it(tmp_path, base):
    Card("mine", base, "a way", GAMES).write(tmp_path, "step 40")
    card = hub.ModelCard.load(tmp_path / CARD)
    assert card.data.base_model == (base if base.startswith("Qwen/") else None)
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-text-to-text")
    assert {"2048", "shisen", "swap"} < set(card.data.tags) and card.data.license is None
    start = f"`{base}`" if base else "A model from scratch"
    assert f"{start}, trained by a way on small, shisen, hard, 2048: step 40." in card.text


def test_the_commands_of_a_card_ask_for_its_games(tmp_path):
    Card("mine", "", "a way", GAMES).write(tmp_path, "step 40")
    commands = [shlex.split(line) for line in (tmp_path / CARD).read_text().splitlines() if "    g1-ray " in line]
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--player")
    add_task_options(parser)
    for command, task in zip(commands, GAMES.values(), strict=False):
        args = parser.parse_args(command[2:])
        assert task_of(args.name, args.preset, args.reasoning, args.perception) == task
    evaluated = commands[-1]
    games = [parse_game(text) for text in evaluated[3 : evaluated.index("--players")]]
    assert {game.name: game.task() for game in games} == GAMES and len(commands) == len(GAMES) + 1


@pytest.mark.parametrize("name", SHIPPED)
def test_the_models_that_ship_have_cards(name):
    assert hub.ModelCard.load(MODELS / name / CARD).data.library_name == "transformers"
