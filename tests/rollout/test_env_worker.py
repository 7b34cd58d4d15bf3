import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from envs import Codec, State, Task
from envs.lookahead import look_ahead
from envs.players import PLAYERS
from envs.rewards import score
from g1_ray.config import RunConfig
from g1_ray.learner.samples import trained_on
from g1_ray.learner.tally import tally_of
from g1_ray.models.chat import Chat
from g1_ray.models.find import MODELS
from g1_ray.report.explain import explain_answer
from g1_ray.rollout import env_worker
from g1_ray.rollout.env_worker import EnvWorker, phrases
from g1_ray.types import Completion, Spoiled, Ticket

MODEL = str(MODELS / "tiny-base")


def config(**rollout) -> RunConfig:
    return RunConfig(
        name="t",
        model={"path": MODEL},
        games=[
            {
                "game": "2048",
                "reasoning": {"size": 3},
                "perception": {"tile_px": 28, "tiles": "numbers"},
                "states": {"open_only": True},
            },
            {"game": "shisen", "reasoning": {"rows": 4, "cols": 4}, "perception": {"tile_px": 28}},
        ],
        rollout={"group_size": 3, **rollout},
        reward={"game": 1.0, "format": 0.5, "perception": 2.0},
    )


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(MODEL)


def worker_of(config: RunConfig, path: str = MODEL) -> EnvWorker:
    return EnvWorker(config, phrases(config, path))


def completion(chat: Chat, text: str) -> Completion:
    ids = np.array([*chat.tokenizer(text, add_special_tokens=False)["input_ids"], chat.eos_token_id], np.int32)
    return Completion(ids, np.zeros(len(ids), np.float32), np.zeros(len(ids), np.int32), "stop")


def good_answer(state, player: str = "greedy") -> str:
    game = state.game()
    action = PLAYERS[player](game, np.random.default_rng(0))
    return Codec(state.task).write(game.perception(), "so", action)


def test_prompts_are_what_the_processor_makes(chat):
    worker = worker_of(config())
    (play,) = worker.observe([Ticket(0, "2048", 7, 0)])
    (request,) = play.requests
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": Codec(play.start.task).prompt()}]},
    ]
    text = chat.processor.apply_chat_template(messages, add_generation_prompt=True)
    made = chat.processor(text=[text], images=[play.start.draw()], return_tensors="np")
    assert request.prompt.token_ids.tolist() == made["input_ids"][0].tolist()
    pixels, grid = chat.pixel_values(request.prompt.states)
    np.testing.assert_array_equal(pixels, made["pixel_values"])
    np.testing.assert_array_equal(grid, made["image_grid_thw"])
    assert request.num_answers == 3 and play.waiting == (0, 1, 2)


AS_A_WORKER = """
import pickle, sys
from g1_ray.rollout.env_worker import EnvWorker
config, words, ticket, text = pickle.load(sys.stdin.buffer)
worker = EnvWorker(config, words)
(group,) = worker.observe([ticket])
made = group.requests[0].prompt.token_ids.tolist(), worker.words.decode(worker.words.ids(text))
heavy = {"torch", "transformers"} & set(sys.modules)
pickle.dump((made, heavy), sys.stdout.buffer)
"""


def test_a_worker_has_the_same_words_without_the_libraries_that_made_them(chat):
    its, text, ticket = config(turns=2), good_answer(State.start(Task.make("2048"), 0)), Ticket(0, "2048", 7, 0)
    given = pickle.dumps((its, phrases(its, MODEL), ticket, text))
    done = subprocess.run([sys.executable, "-c", AS_A_WORKER], input=given, stdout=subprocess.PIPE, check=True)
    (prompt, said), heavy = pickle.loads(done.stdout)
    (group,) = worker_of(its).observe([ticket])
    assert prompt == group.requests[0].prompt.token_ids.tolist()
    assert said == text and not heavy
    whole = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert chat.ids(text).tolist() == whole and chat.tokenizer.decode(whole, skip_special_tokens=True) == text


@pytest.mark.parametrize("wrong", [0, 3])
def test_answers_go_on_from_a_description_that_is_given(chat, wrong):
    worker = worker_of(config(perception="given", wrong_cells=wrong))
    plays = worker.observe([Ticket(0, "2048", 7, 0), Ticket(1, "shisen", 8, 0)])
    own = worker_of(config()).observe([play.ticket for play in plays])
    answers = []
    for play, without in zip(plays, own, strict=True):
        begun, whole = len(without.requests[0].prompt.token_ids), play.requests[0].prompt.token_ids
        np.testing.assert_array_equal(whole[:begun], without.requests[0].prompt.token_ids)
        said = chat.decode(whole[begun:])
        assert said.startswith("<perception>\n") and said.endswith("</perception>\n<think>\n")
        rest = good_answer(play.start).partition("<think>\n")[2]
        answers.append([[completion(chat, rest), completion(chat, "no idea"), completion(chat, rest)]])
    for group in worker.finish(worker.score(plays, answers)):
        cells = group.start.game().perception().size
        for rollout in (group.rollouts[0], group.rollouts[2]):
            (turn,) = rollout.turns
            assert turn.rewards == {"game": 1.0, "format": 1.0, "perception": (cells - wrong) / cells}
            assert turn.text.startswith("<perception>") and turn.perception_exact is (not wrong)
        assert group.rollouts[1].turns[0].action is None


def test_a_group_is_scored_on_forks_of_one_state(chat):
    worker = worker_of(config())
    plays = worker.observe([Ticket(0, "2048", 7, 0), Ticket(1, "shisen", 8, 0)])
    answers = []
    for play in plays:
        good = completion(chat, good_answer(play.start))
        answers.append([[good, completion(chat, "no idea"), good]])
    groups = worker.finish(worker.score(plays, answers))
    for group in groups:
        first, second, third = (rollout.turns[0] for rollout in group.rollouts)
        assert first.next_state == third.next_state and first.reward == third.reward == 1 + 0.5 + 2
        assert first.rewards == {"game": 1.0, "format": 1.0, "perception": 1.0} and first.perception_exact
        assert second.action is None and second.cause == "no answer" and second.reward == -1
        assert group.start == first.prompt.states[0]
        assert group.start.game().moves + 1 == first.next_state.game().moves


def test_only_a_group_whose_first_answers_differ_is_asked_for_the_rest(chat):
    settings = config(group_size=5, screen_size=2)
    assert settings.rollout.passes == 2
    worker = worker_of(settings)
    groups = worker.observe([Ticket(0, "2048", 7, 0), Ticket(1, "2048", 8, 0)])
    assert [group.requests[0].num_answers for group in groups] == [2, 2]
    good, nothing = (completion(chat, text) for text in (good_answer(groups[0].start), "no answer"))
    flat, open_group = worker.score(groups[::-1], [[[nothing] * 2], [[nothing, good]]])
    assert not flat.requests and len(flat.rollouts) == 2
    (rest,) = open_group.requests
    assert rest.num_answers == 3 and open_group.waiting == (2, 3, 4) and rest.seed != groups[0].requests[0].seed
    assert rest.prompt == groups[0].requests[0].prompt
    done = worker.finish(worker.score([flat, open_group], [[], [[good, good, nothing]]]))
    returns = [[rollout.total for rollout in group.rollouts] for group in done]
    best = returns[1][1]
    assert returns == [[-1.0, -1.0], [-1.0, best, best, best, -1.0]] and best > 0
    samples = trained_on(done[1], settings.algorithm)
    assert len(samples) == 5 and not trained_on(done[0], settings.algorithm)
    tally = tally_of(done[1], samples, 2)
    assert tally.num_samples == 5 and tally.totals == [-1.0, best]  # what is told of all groups, of each alike


@pytest.mark.parametrize("wrong", [{"screen_size": 1}, {"screen_size": 3}, {"screen_size": 2, "turns": 2}])
def test_a_screen_that_says_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="screen_size = .*(turns = 1|all answers at once)"):
        config(**wrong)


def test_a_legal_move_earns_what_play_after_it_does_where_a_run_looks_ahead(chat):
    its = config().model_dump(mode="json")
    its["games"][0] |= {"lookahead": 5, "reward": "score"}
    worker = worker_of(RunConfig.model_validate(its))
    plays = worker.observe([Ticket(0, "2048", 7, 0)])
    start = plays[0].start
    legal = start.game().legal_actions()
    wrote = [Codec(start.task).write(start.game().perception(), "so", action) for action in (legal[0], legal[-1])]
    (group,) = worker.score(plays, [[[completion(chat, text) for text in (*wrote, "no idea")]]])
    values = look_ahead(start.game(), 5, score)
    turns = [rollout.turns[0] for rollout in group.rollouts]
    assert [turn.rewards["game"] for turn in turns] == [values[legal[0]], values[legal[-1]], 0]  # unreadable: no gain
    assert turns[0].gain == start.game().step(legal[0]).gain


def test_the_same_ticket_asks_the_same(chat):
    one, two = worker_of(config()), worker_of(config())
    ticket = Ticket(5, "2048", 99, 0)
    a, b = one.observe([ticket])[0], two.observe([ticket])[0]
    assert a.start == b.start and a.requests[0].seed == b.requests[0].seed
    assert a.requests[0].prompt.token_ids.tolist() == b.requests[0].prompt.token_ids.tolist()
    assert one.observe([Ticket(6, "2048", 100, 0)])[0].start != a.start


def test_turns_follow_each_other_within_their_window(chat):
    worker = worker_of(config(turns=3, window=1, group_size=2))
    (play,) = worker.observe([Ticket(0, "2048", 7, 0)])
    first_prompt = play.requests[0].prompt
    for number in range(3):
        answers = [
            [completion(chat, good_answer(request.prompt.states[-1])) for _ in range(request.num_answers)]
            for request in play.requests
        ]
        shown = [request.prompt for request in play.requests]
        (play,) = worker.score([play], [answers])
        if number < 2:
            assert len(play.requests) == 2 and len({request.seed for request in play.requests}) == 2
            for request, rollout in zip(play.requests, play.rollouts, strict=True):
                last = rollout.turns[-1]
                assert request.prompt.states == (last.prompt.states[-1], last.next_state)  # a window of one
                begun = np.concatenate([shown[0].token_ids, last.completion.token_ids]) if number == 0 else None
                if begun is not None:  # nothing was tokenised anew
                    assert request.prompt.token_ids[: len(begun)].tolist() == begun.tolist()
                pads = (request.prompt.token_ids == chat.image_token_id).sum()
                assert pads == 2 * (first_prompt.token_ids == chat.image_token_id).sum()
    (group,) = worker.finish([play])
    assert [len(rollout.turns) for rollout in group.rollouts] == [3, 3]
    assert group.rollouts[0].total == sum(turn.reward for turn in group.rollouts[0].turns)


@pytest.mark.parametrize(
    "opens, wrote, format",
    [
        ("", "{perception}{think}{answer}", 1.0),
        ("", "{think}{perception}{answer}", 0.0),
        ("", "so</think>{perception}{answer}", 0.0),
        ("<think>\n", "so</think>{perception}{answer}", 1.0),  # the block that the template opened is the first one
        ("<think>\n", "{perception}{think}{answer}", 1.0),  # it opened its own, as after a cold start
        ("<think>\n", "</think>{perception}{answer}", 0.0),  # and has thought nothing
        ("<think>\n", "{perception}so</think>{answer}", 0.0),
        ("<think>\n", "so</think>{answer}{perception}", 0.0),
        ("<think>\n", "{perception}{answer}", 0.0),
    ],
)
def test_an_answer_is_judged_with_what_the_template_has_opened(chat, tmp_path, opens, wrote, format):
    shutil.copytree(MODEL, tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    begin = "<|im_start|>assistant\n{% endif %}"
    text = template.read_text()
    assert begin in text
    template.write_text(text.replace(begin, begin.replace("{%", opens + "{%")))
    worker = worker_of(config(), str(tmp_path / "model"))
    (group,) = worker.observe([Ticket(0, "2048", 7, 0)])
    (request,) = group.requests
    whole = good_answer(group.start)
    parts = {name: whole[whole.index(f"<{name}>") : whole.index(f"</{name}>") + len(name) + 3]
             for name in ("perception", "think", "answer")}  # fmt: skip
    given = completion(chat, wrote.format(**parts))
    (scored,) = worker.score([group], [[[given] * 3]])
    (turn,) = scored.rollouts[0].turns
    assert turn.rewards["format"] == format
    assert turn.text.startswith(opens) or wrote.startswith("{perception}{think}")
    told = explain_answer(group.start, turn.text, thinks_first=turn.rewards["format"] == 1)
    assert ("form        well formed" in told) is (format == 1)


@pytest.mark.parametrize("what", ["raises", "hangs"])
def test_a_game_that_raises_or_hangs_spoils_its_group_alone(chat, monkeypatch, what):
    worker = worker_of(config())
    monkeypatch.setattr(env_worker, "GAME_S", 0.5)
    tickets = [Ticket(number, "2048", number, 0) for number in range(3)]
    start = worker._start

    def _start(ticket):
        if ticket.group == 1:
            while what == "hangs":
                pass
            raise ZeroDivisionError("division by zero\nand more")
        return start(ticket)

    monkeypatch.setattr(worker, "_start", _start)
    plays = worker.observe(tickets)
    reason = {"raises": "ZeroDivisionError: division by zero", "hangs": "TimeoutError: no end after 0.5 s"}[what]
    assert plays[1] == Spoiled(tickets[1], f"start: {reason}") and plays[1].requests == ()
    answers = [[[completion(chat, good_answer(play.start))] * 3] if play.requests else [] for play in plays]
    groups = worker.finish(worker.score(plays, answers))
    assert groups[1] == plays[1] and [len(group.rollouts) for group in (groups[0], groups[2])] == [3, 3]
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
