"""What a module of one's own can add: a loss, an engine, a player, a reward, each by one definition and one line."""

import asyncio
import sys
import textwrap

import numpy as np
import pytest
import toys
from pydantic import ValidationError

from envs import State
from envs.rewards import REWARDS
from g1_ray.config import AlgorithmConfig, EngineConfig, GameConfig
from g1_ray.engines.make import ENGINES, check_engine, make_engine
from g1_ray.engines.weight_sync import SyncReport
from g1_ray.evaluation.job import Answered, Entry, Job, RunOver, work
from g1_ray.evaluation.named import parse_game, parse_player
from g1_ray.evaluation.players import KINDS, Chooser
from g1_ray.learner.learner import Learner
from g1_ray.learner.loss import LOSSES
from g1_ray.learner.samples import batch_of
from g1_ray.models.chat import Chat
from g1_ray.models.find import model_path
from g1_ray.types import Request, Sampling

TABLES = (LOSSES, ENGINES, KINDS, REWARDS)
GAME = "2048?size=3&tile_px=28"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes modules of one's own; what they register goes again at the end."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written, before = [], [set(table) for table in TABLES]

    def write(name, text):
        assert name not in sys.modules
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)
    for table, names in zip(TABLES, before, strict=True):
        for name in set(table) - names:
            del table[name]


def played(game, player, moves=4):
    """The news of one run."""
    job = Job((Entry(parse_game(game) if isinstance(game, str) else game, player),), (3,), moves)
    return [item for news in work(job) for item in news]


# Losses

LOSS = """
    import torch
    from g1_ray.learner.loss import LOSSES, Losses

    def mine(tokens, config):
        ratios = (tokens.logprobs - tokens.inference_logprobs).exp().detach()
        never = torch.zeros_like(ratios, dtype=torch.bool)
        return Losses(-3 * tokens.advantages * tokens.logprobs, ratios, never, never, ratios)

    LOSSES["mine"] = mine
"""


def test_a_loss_of_ones_own_is_what_is_reported_and_followed(module):
    module("my_losses", LOSS)
    config = toys.config(algorithm={"loss": "my_losses:mine"}, optimizer={"lr": 1e-3})
    groups = [toys.group(number) for number in (1, 2)]
    turns = [rollout.turns[0] for group in groups for rollout in group.rollouts]
    batch = batch_of(groups, 0, config)
    learner = Learner(config)
    learner.setup(toys.free_address())
    try:
        before = learner.weights()
        scored = learner.logprobs([(turn.prompt, turn.completion.token_ids) for turn in turns])
        reports = [learner.step(batch) for _ in range(3)]
        after = learner.weights()
    finally:
        learner.close()
    advantages = np.concatenate([sample.advantages[sample.loss_mask] for sample in batch.samples])
    expected = np.mean(-3 * advantages * np.concatenate(scored))  # over all tokens of the batch
    assert reports[0].metrics["loss"] == pytest.approx(expected, abs=1e-5) and abs(expected) > 1e-3
    assert reports[-1].metrics["loss"] < reports[0].metrics["loss"]
    moved = [name for name in before if not np.array_equal(before[name].numpy(), after[name].numpy())]
    assert len(moved) > 10 and not any(report.skipped for report in reports)


def test_a_loss_that_is_none_is_refused(module):
    module("my_losses", LOSS)
    with pytest.raises(ValidationError, match="there is no module 'nomodule' on the Python path"):
        AlgorithmConfig(loss="nomodule:x")
    with pytest.raises(ValidationError, match="loss"):
        AlgorithmConfig(loss="mien")
    learner = Learner(toys.config(algorithm={"loss": "my_losses:mien"}))
    try:
        with pytest.raises(ValueError, match="unknown algorithm.loss 'mien'; did you mean 'mine'"):
            learner.setup(toys.free_address())
    finally:
        learner.close()


# Engines

ENGINE = """
    import numpy as np
    from g1_ray.engines.make import ENGINES, EngineKind
    from g1_ray.engines.weight_sync import SyncReport
    from g1_ray.models.chat import Chat
    from g1_ray.types import Completion

    class Echo:
        def __init__(self, path, engine, dtype, sampling, freeze_vision=True):
            self.path, self.version = path, 0

        async def start(self):
            words = Chat(self.path).tokenizer("<answer>up</answer>").input_ids
            self.words = np.asarray(words, np.int32)

        async def generate(self, requests, sampling=None):
            versions = np.full_like(self.words, self.version)
            answer = Completion(self.words, np.zeros(len(self.words), np.float32), versions, "stop")
            return [(answer,) * request.num_answers for request in requests]

        async def logprobs(self, sequences):
            return [np.zeros(len(completion), np.float32) for _, completion in sequences]

        async def load_policy(self, weights, version):
            self.version = version
            return SyncReport(version, weights.nbytes, 0.0, 0.0)

        async def stop(self):
            self.words = None

    ENGINES["echo"] = EngineKind(load=lambda: Echo)
"""


def test_an_engine_of_ones_own_is_made_and_answers(module):
    module("my_engines", ENGINE)
    config = EngineConfig(kind="my_engines:echo", gpus=0)
    path = model_path("tiny-base")
    engine, chat = make_engine(path, config, "float32", Sampling()), Chat(path)
    assert type(engine).__module__ == "my_engines"
    task = parse_game(GAME).task()
    prompt = chat.prompt([(State.start(task, 0), None)])

    async def asked():
        await engine.start()
        synced = await engine.load_policy(np.zeros(8, np.uint8), 2)
        answers = await engine.generate([Request(prompt, 3, 0), Request(prompt, 1, 1)])
        (scored,) = await engine.logprobs([(prompt, answers[0][0].token_ids)])
        await engine.stop()
        return synced, answers, scored

    synced, answers, scored = asyncio.run(asked())
    assert synced == SyncReport(2, 8, 0.0, 0.0) and [len(its) for its in answers] == [3, 1]
    answer = answers[0][2]
    assert chat.decode(answer.token_ids) == "<answer>up</answer>" and set(answer.versions) == {2}
    assert len(scored) == len(answer.token_ids)


def test_an_engine_of_ones_own_plays_in_an_evaluation(module):
    module("my_engines", ENGINE)
    news = played(GAME, parse_player("tiny-base?engine.kind=my_engines:echo"))
    (run,) = [item.run for item in news if isinstance(item, RunOver)]
    assert [move.text for move in run.moves] == ["<answer>up</answer>"] * 4
    assert all(move.action == run.moves[0].action is not None for move in run.moves)
    assert sum(isinstance(item, Answered) for item in news) == 4


def test_an_engine_that_is_none_is_refused(module):
    module("my_engines", ENGINE)
    with pytest.raises(ValidationError, match="there is no module 'nomodule' on the Python path"):
        EngineConfig(kind="nomodule:x")
    with pytest.raises(ValueError, match="unknown engine.kind 'ecko'; did you mean 'echo'"):
        make_engine(model_path("tiny-base"), EngineConfig(kind="my_engines:ecko"), "float32", Sampling())


# Players

PLAYER = """
    from typing import Literal
    from g1_ray.evaluation.players import KINDS, Chooser

    class Mirror(Chooser):
        kind: Literal["mirror"] = "mirror"
        last: bool = True

        def choose(self, task, seed):
            return lambda game, rng: game.legal_actions()[-1 if self.last else 0]

    KINDS["mirror"] = Mirror
"""


def test_a_player_of_ones_own_is_named_on_the_command_line_and_plays(module):
    module("my_players", PLAYER)
    by_module = parse_player("my_players:mirror")
    assert (by_module.name, by_module.kind, by_module.what) == ("mirror", "mirror", "mirror")
    named, first = parse_player("a=mirror:x"), parse_player("b=mirror:x?last=false")
    assert (named.name, named.kind, named.what, named.last, first.last) == ("a", "mirror", "x", True, False)
    with pytest.raises(ValueError, match="unknown option 'lst'; did you mean 'last'"):
        parse_player("mirror:x?lst=1")
    for player, index in ((by_module, -1), (named, -1), (first, 0)):
        (over,) = played(GAME, player)
        assert isinstance(over, RunOver) and over.key[1] == player.name and len(over.run.moves) == 4
        assert [move.action for move in over.run.moves] == [
            move.state.game().legal_actions()[index] for move in over.run.moves
        ]


# Rewards


def test_a_reward_of_ones_own_is_what_moves_earn(module):
    module(
        "my_rewards",
        """
        from envs.rewards import REWARDS

        def mine(outcome):
            return 10.0 * outcome.legal + outcome.gain

        REWARDS["mine"] = mine
        """,
    )
    entry = GameConfig(game="2048", reasoning={"size": 3}, reward="my_rewards:mine")
    (over,) = played(entry, parse_player("oracle"), moves=8)
    assert [move.reward for move in over.run.moves] == [10.0 + move.gain for move in over.run.moves]
    assert any(move.gain for move in over.run.moves)
    with pytest.raises(ValidationError, match="unknown reward 'mien'; did you mean 'mine'"):
        GameConfig(game="2048", reward="my_rewards:mien")


@pytest.mark.parametrize(
    "find",
    [
        lambda: GameConfig(game="2048", reward="nomodule:x"),
        lambda: parse_game("nomodule:x"),
        lambda: parse_game("2048?reward=nomodule:x"),
        lambda: parse_player("numpy.nothing:x"),
        lambda: check_engine("numpy.nothing:x"),
    ],
)
def test_a_module_that_is_not_there_is_named_in_a_line(find):
    with pytest.raises(ValueError, match="there is no module '(nomodule|numpy.nothing)' on the Python path"):
        find()


def test_a_name_of_ones_own_is_not_taken_for_the_one_that_ships(module, monkeypatch):
    monkeypatch.setitem(REWARDS, "score", REWARDS["score"])  # to be put back
    module("my_scores", "from envs.rewards import REWARDS\nREWARDS['score'] = lambda outcome: 42.0\n")
    ships = REWARDS.find("score")
    assert REWARDS.find("my_scores:score") is not ships and REWARDS.find("my_scores:score")(None) == 42.0
    with pytest.raises(TypeError, match="abstract.*choose"):
        Chooser(kind="mine", what="x")
