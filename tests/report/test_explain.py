"""The reward debugger: what it says agrees with what training does, by hand and by comparison."""

import asyncio
import json
import random
import re

import numpy as np
import pytest
from folders import small_config

from envs import PLAYERS, Codec, State, Task
from envs.answers import Cause
from envs.codec import MAX_CHARS
from envs.lookahead import Worth, look_ahead
from envs.rewards import score
from g1_ray.config import GameConfig, RewardConfig
from g1_ray.evaluation.moves import file_name, write_moves
from g1_ray.evaluation.play import Reply, play, play_asked
from g1_ray.report.explain import (
    CAUSES,
    explain_answer,
    explain_group,
    explain_state,
    faults_of_board,
    faults_of_form,
    play_moves,
)
from g1_ray.rollout.referee import Referee
from g1_ray.runs.run_folder import RunFolder
from g1_ray.types import Completion, Fate, Group, Prompt, Request, Rollout, Ticket
from jobs.__main__ import main

TASK = Task.make("2048", reasoning={"size": 3}, perception={"tiles": "numbers", "tile_px": 28})
CODEC = Codec(TASK)
BOARD = np.array([[1, 1, 0], [2, 3, 0], [0, 0, 2]], np.uint8)
"""2 2 - / 4 8 - / - - 4: left and right merge the twos for 4, up and down only slide."""


def state_with(board, task=TASK):
    game = task.new_game()
    game.reset(0)
    return State(task, game.snapshot()[: -board.size] + board.tobytes())


STATE = state_with(BOARD)
GOOD = CODEC.write(BOARD, "merge", 3)


def lines_of(text):
    """The lines of an explanation by their first word."""
    return {line.split(" ")[0]: line.partition(" ")[2].strip() for line in text.splitlines()}


# A state


def test_every_legal_move_has_its_outcome_rewards_and_regret():
    text = explain_state(STATE)
    assert "   0 1 2\n 0 2 2 -\n 1 4 8 -\n 2 - - 4\n" in text and "4 legal moves of 4" in text
    head, *rows = text.splitlines()[-5:]
    assert head.split() == "move gain tiles ends ternary paper score cleared regret (ternary)".split()
    # move, gain, tiles, then ternary, paper, score, cleared and the regret; no move ends the episode
    assert [row.split() for row in rows] == [
        "up 0 0 0 -1 0 0 1".split(),
        "right 4 1 1 1 4 1 0".split(),
        "down 0 0 0 -1 0 0 1".split(),
        "left 4 1 1 1 4 1 0".split(),
    ]
    assert "regret (score)" in explain_state(STATE, Worth("score"))
    assert explain_state(STATE, Worth("score")).splitlines()[-4].split() == "up 0 0 0 -1 0 0 4".split()


def test_a_move_that_ends_the_episode_says_how():
    won = state_with(
        np.array([[3, 3, 0], [0] * 3, [0] * 3], np.uint8), Task.make("2048", reasoning={"size": 3, "goal": 16})
    )
    row = next(line for line in explain_state(won).splitlines() if line.startswith("left"))
    assert row.split() == "left 16 1 won 1 1 16 1 0".split()
    stuck = state_with(np.array([[1, 2, 1], [2, 1, 2], [1, 2, 1]], np.uint8))
    assert explain_state(stuck).endswith("the episode is over: no legal move is left")
    brief = Task.make("2048", reasoning={"size": 3, "horizon": 1})
    state, _ = play_moves(brief, 0, "up")
    assert explain_state(state).endswith("the episode is over: time is up")
    with pytest.raises(ValueError, match="over after 1 moves"):
        explain_answer(state, GOOD)


def test_moves_are_played_one_by_one():
    state, played = play_moves(TASK, 5, "left; up,left")
    game = TASK.new_game()
    game.reset(5)
    for word, line in zip(("left", "up", "left"), played.splitlines()[1:], strict=True):
        outcome = game.step(game.actions.read(word))
        assert line.split()[:3] == [word, "yes" if outcome.legal else "no", f"{outcome.gain:g}"]
    assert state == State.of(TASK, game)
    assert play_moves(TASK, 5)[1] == ""
    shisen = Task.make("shisen", reasoning={"rows": 4, "cols": 4})
    _, played = play_moves(shisen, 0, "(0, 1) (0, 2), (1,1)(2,1); [0, 0] [3, 3]")
    assert [line.split("  ")[0] for line in played.splitlines()[1:]] == [
        "(0, 1) (0, 2)",
        "(1, 1) (2, 1)",
        "(0, 0) (3, 3)",
    ]
    with pytest.raises(ValueError, match=r"--moves: move 2, 'lft', is no move \(malformed\); expected one of up"):
        play_moves(TASK, 5, "up, lft")


# An answer


def test_a_right_answer_and_its_total():
    told = lines_of(explain_answer(STATE, GOOD, weights=RewardConfig(game=1, format=0.5, perception=2)))
    assert told["blocks"] == "perception, think, answer" and told["move"] == "'left' is read as left"
    assert told["form"] == "well formed" and told["perception"] == "the board is told right"
    assert told["outcome"] == "legal; gain 4, 1 tiles cleared"
    assert told["rewards"] == "ternary 1, paper 1, score 4, cleared 1; regret 0 (ternary)"
    assert told["reward"] == "1 x 1 (game) + 0.5 x 1 (format) + 2 x 1 (perception) = 3.5"
    assert lines_of(explain_answer(STATE, GOOD, Worth("score")))["parts"] == "game 4, format 1, perception 1"


def test_what_looks_ahead_is_explained_as_training_has_it():
    its = {"game": "2048", "reasoning": {"size": 3}, "reward": "score", "lookahead": 4}
    referee = Referee(GameConfig.model_validate(its), RewardConfig())
    state, worth = State.start(referee.task, 5), Worth("score", 4)
    game = state.game()
    best = max(look_ahead(game, 4, score).values())
    no = np.zeros(0, np.int32)
    asked, answered = Request(Prompt(no, (state,)), 1, 0), Completion(no, no.astype(np.float32), no, "stop")
    for action in range(4):
        text, move = referee.codec.write(game.perception(), "so", action), game.actions.write(action)
        turn = referee.turn(state, asked, answered, text)
        told = lines_of(explain_answer(state, text, worth, RewardConfig(game=1, format=0, perception=0)))
        earned = turn.rewards["game"]
        assert told["reward"].endswith(f"= {earned:.4g}")
        assert told["rewards"].endswith(f"regret {best - earned:.6g} (score, 4 ahead)")
        assert f"{earned:.4g}" in play_moves(referee.task, 5, move, worth)[1].split()
        if turn.legal:
            row = next(line for line in explain_state(state, worth).splitlines() if line.startswith(move))
            assert row.split()[-2:] == [f"{earned:.4g}", f"{best - earned:.6g}"]


@pytest.mark.parametrize(
    "text, cause, words",
    [
        ("left", Cause.NO_ANSWER, "there is no <answer>"),
        ("<answer> </answer>", Cause.NO_ANSWER, "there is no <answer>"),
        ("<answer>left</answer><answer>up</answer>", Cause.SEVERAL_ANSWERS, "more than one answer"),
        (
            "<answer>not left</answer>",
            Cause.MALFORMED,
            "'not left' is no move: malformed; that is not written like a move",
        ),
        ("<answer>left", Cause.MALFORMED, "opened and never closed"),
        ("<answer><think>left</think></answer>", Cause.MALFORMED, "there is another tag in it"),
        ("<answer>7</answer>", Cause.OUT_OF_BOARD, "'7' is no move"),
        (f"<answer>{'left ' * 100}</answer>", Cause.OVER_LONG, "nobody reads on after 256 characters"),
        ("x" * (MAX_CHARS + 1), Cause.OVER_LONG, f"or {MAX_CHARS} of an answer"),
    ],
)
def test_every_cause_is_told_with_the_body_and_what_was_expected(text, cause, words):
    assert CODEC.read(text).cause == cause
    told = lines_of(explain_answer(STATE, text))
    assert words in told["move"] and f"{cause}; " in told["move"]
    assert told["move"].endswith("expected one of up, right, down, left") and len(told["move"]) < 300
    assert told["form"].startswith(f"not well formed: it gives no move ({cause})")
    assert told["outcome"].startswith("unreadable, a move lost") and "regret 2" in told["rewards"]


def test_there_are_words_for_every_cause():
    assert set(CAUSES) == set(Cause)
    shisen = Task.make("shisen", reasoning={"rows": 4, "cols": 4})
    state, _ = play_moves(shisen, 0)
    told = lines_of(explain_answer(state, "<answer>(0, 1) (0, 1)</answer>"))
    assert "'(0, 1) (0, 1)' is no move: same cell twice; it names one cell twice" in told["move"]
    assert "expected two cells as (row, column)" in told["move"]


FORMS = {
    GOOD: [],
    GOOD + "\nBye": ["text around the blocks: 'Bye'"],
    GOOD.replace("merge", " "): ["<think> is empty"],
    "<think>a</think><perception>b</perception><answer>up</answer>": [
        "the order is think, perception, answer; expected perception, think, answer"
    ],
    "<think>a</think><think>b</think><answer>up</answer>": ["<perception> is missing", "2 <think> blocks"],
    "hm <answer>UP</answer>": ["<perception> is missing", "<think> is missing", "text around the blocks: 'hm'"],
}


@pytest.mark.parametrize("text", FORMS)
def test_the_rules_of_form_that_fail(text):
    assert faults_of_form(text, CODEC.read(text)) == FORMS[text]


def test_form_has_faults_exactly_where_the_codec_says_so():
    rng = random.Random(0)
    parts = ["<perception>", "</perception>", "<think>", "</think>", "<answer>", "</answer>", "up", "a", " ", "\n"]
    whole = ["<perception>a</perception>", "<think>b</think>", "<answer>up</answer>", "<answer>x</answer>", " ", "hm"]
    formed = 0
    for _ in range(4000):
        torn = "".join(rng.choice(parts) for _ in range(rng.randrange(2, 12)))
        text = torn if rng.random() < 0.3 else "".join(rng.sample(whole, rng.randrange(2, 6)))
        answer = CODEC.read(text)
        formed += answer.well_formed
        assert (faults_of_form(text, answer) == []) == answer.well_formed, text
    assert formed > 5


DESCRIBED = {
    "2 | 2 | -\n4 | 8 | -\n- | - | 4": [],
    "2 | 4 | -\n4 | 8 | -\n- | - | 2": ["row 0: column 1 told '4', it is '2'", "row 2: column 2 told '2', it is '4'"],
    "2 | 2 | -\n4 | -\n- | - | 4": ["row 1: column 1 is missing, it is '8'"],
    "2 | 2 | - | 8\n4 | 8 | -\n- | - | 4": ["row 0: after column 2 '8' is too many"],
    "2 | 2 | -\n- | - | 4": ["row 1: missing, 3 cells"],
    "8 | 8\n2 | 2 | -\n4 | 8 | -\n- | - | 4": ["at the top: 2 cells of a row too many"],
    "": ["row 0: missing, 3 cells", "row 1: missing, 3 cells", "row 2: missing, 3 cells"],
}


@pytest.mark.parametrize("text", DESCRIBED)
def test_the_wrong_cells_of_a_description(text):
    assert faults_of_board(CODEC, text, BOARD) == DESCRIBED[text]


def test_faults_of_the_board_add_up_to_the_perception_score():
    rng = random.Random(1)
    for _ in range(600):
        rows = [line.split(" | ") for line in CODEC.describe(BOARD).splitlines()]
        for _ in range(rng.randrange(5)):
            row = rng.randrange(len(rows)) if rows else 0
            change = rng.randrange(5)
            if change == 0:
                rows.insert(row, [rng.choice("-248") for _ in range(rng.randrange(1, 20))])
            elif rows and change == 1:
                rows.pop(row)
            elif rows and change == 2:
                rows[row].insert(rng.randrange(len(rows[row]) + 1), rng.choice("-248"))
            elif rows and len(rows[row]) > 1:
                rows[row].pop(rng.randrange(len(rows[row]))) if change == 3 else rows[row].__setitem__(0, "64")
        text = "\n".join(" | ".join(row) for row in rows)
        told = "\n".join(faults_of_board(CODEC, text, BOARD))
        score = CODEC.score_perception(text, BOARD)
        assert told.count(" told ") == score.wrong, text
        assert told.count(" is missing") + 3 * told.count(": missing, 3 cells") == score.missing, text
        more = re.findall(r"(\d+) cells (?:of a row )?too many", told)
        assert told.count(" is too many") + sum(map(int, more)) == score.extra, text


# A group


def group_with(number, referee, state, texts, turns=1):
    """Rollouts of these answers, one for each, that go on with the same answer."""
    rollouts = []
    for text in texts:
        now, made = state, []
        for _ in range(turns):
            prompt = Prompt(np.arange(7, dtype=np.int32), (now,))
            tokens = np.arange(len(text) % 50 + 1, dtype=np.int32)
            logprobs = np.full(len(tokens), -0.5, np.float32)
            answer = Completion(tokens, logprobs, np.full(len(tokens), 3, np.int32), "stop")
            made.append(referee.turn(now, Request(prompt, 1, 0), answer, text))
            now = made[-1].next_state
        rollouts.append(Rollout(tuple(made)))
    return Group(Ticket(number, "2048", 1, 3), state, tuple(rollouts))


@pytest.fixture
def run(tmp_path):
    """A run with a group that is not flat, a flat one, and one of two turns; its weights are 1, 0.5 and 2."""
    folder = RunFolder.open(small_config(tmp_path, reward={"game": 1.0, "format": 0.5, "perception": 2.0}))
    referee = Referee(folder.config.games[0], folder.config.reward)
    up, hm = GOOD.replace(">left<", ">up<"), "hm"
    for number, texts, turns in ((4, [GOOD, GOOD, up, hm], 1), (5, [hm, hm], 1), (6, [GOOD, hm], 2)):
        folder.keep_group(group_with(number, referee, STATE, texts, turns))
    folder.log_fate(Fate(4, "2048", "trained", "", 1, 2))
    folder.log_fate(Fate(5, "2048", "dropped", "flat", 1, 0))
    folder.log_fate(Fate(9, "2048", "dropped", "stale", 1, 3))
    folder.close()
    return folder.path


def test_a_groups_returns_and_advantages_by_hand(run):
    text = explain_group(run, 4)
    assert text.startswith(f"group 4 of {run}: 2048, 4 rollouts, policy version 3; trained, staleness 2\n")
    table = [line.split() for line in text.splitlines() if re.match(r"[0-3] +\d", line)]
    # game + 0.5 x format + 2 x perception: left 1 + 0.5 + 2, up 0 + 0.5 + 2, unreadable -1
    returns = [3.5, 3.5, 2.5, -1.0]
    assert [float(row[5]) for row in table] == returns and [row[8] for row in table] == ["left", "left", "up", "(no"]
    mean, std = 2.125, np.sqrt((1.375**2 * 2 + 0.375**2 + 3.125**2) / 3)
    assert [float(row[7]) for row in table] == pytest.approx([1.375, 1.375, 0.375, -3.125])
    assert [float(row[6]) for row in table] == pytest.approx([(r - mean) / (std + 1e-4) for r in returns], rel=1e-3)
    assert "return = 1 x game + 0.5 x format + 2 x perception, summed over the turns" in text
    assert f"mean 2.125, standard deviation {std:.4g}" in text and "this run uses grpo" in text
    assert "not flat" in text and "stored" not in text
    assert "--- rollouts 0, 1\n" in text and "--- rollout 2\n" in text and "--- rollout 3\n" in text
    assert "1 x 0 (game) + 0.5 x 1 (format) + 2 x 1 (perception) = 2.5" in text


def test_a_flat_group_is_left_out_and_says_so(run):
    text = explain_group(run, 5)
    assert "; dropped flat, staleness 0" in text and "standard deviation 0;" in text
    assert "left out of training (algorithm.skip_flat_groups = true)" in text
    config = json.loads((run / "config.json").read_text())
    config["algorithm"] |= {"skip_flat_groups": False, "advantage": "dr-grpo"}
    (run / "config.json").write_text(json.dumps(config))
    text = explain_group(run, 5)
    assert "trained on all the same, with advantages of 0" in text and "this run uses dr-grpo" in text


def test_rollouts_of_several_turns_show_every_board(run):
    text = explain_group(run, 6)
    assert "left, left" in text and "--- rollout 0\n" in text and "--- rollout 0 turn 1\n2048: move" in text


def test_rewards_that_the_weights_do_not_make_are_pointed_out(run):
    config = json.loads((run / "config.json").read_text())
    config["reward"]["format"] = 0.25
    (run / "config.json").write_text(json.dumps(config))
    told = [line for line in explain_group(run, 4).splitlines() if "the stored reward is" in line]
    assert len(told) == 3  # not of the one without form
    assert told[0].startswith("rollout 0, turn 0: the stored reward is 3.5, but") and told[0].endswith("make 3.25")


# A move of an evaluation


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    async def ask(question):
        return Reply(CODEC.write(question.state.game().perception(), "", 0), tokens=9, seconds=0.25)

    folder = tmp_path_factory.mktemp("evaluation")
    asked = asyncio.run(play_asked(TASK, "2048", "org/model, T=1", ask, 3, 4))
    write_moves(folder / "moves" / file_name("2048", "org/model, T=1"), "2048", "org/model, T=1", [asked])
    oracle = play(TASK, "oracle", PLAYERS["oracle"], 3, 4)
    write_moves(folder / "moves" / file_name("2048", "oracle"), "2048", "oracle", [oracle])
    return folder, asked, oracle


def test_a_move_of_an_evaluation_as_stored_and_as_it_comes_out_now(evaluation, capsys):
    folder, asked, oracle = evaluation
    assert main(["explain", f"{folder}:2048/org/model, T=1/3/2"]) == 0
    text, move = capsys.readouterr().out, asked.moves[2]
    told = lines_of(text)
    assert text.startswith("2048, org/model, T=1: seed 3, board 0, move 2\n")
    stored = f"up; gain {move.gain:g}, game reward {move.reward:g}, regret {move.regret:g}, 9 tokens in 0.25 s"
    assert told["stored"] == stored
    assert told["form"] == "not well formed: <think> is empty" and f"regret {move.regret:g} (" in told["rewards"]
    assert main(["explain", f"{folder}:2048/oracle/3/0"]) == 0
    text = capsys.readouterr().out
    assert "no answer in words" in text and f"gain {oracle.moves[0].gain:g}, " in lines_of(text)["outcome"]


# The command


def test_the_command_explains_a_board_and_an_answer(tmp_path, capsys):
    (tmp_path / "answer.txt").write_text("<answer>left</answer>")
    size = ["--reasoning", "size=3", "--seed", "4"]
    assert main(["explain", "2048", *size, "--moves", "up", "--answer-file", str(tmp_path / "answer.txt")]) == 0
    text = capsys.readouterr().out
    assert "played" in text and "2048: move 1, score" in text and "'left' is read as left" in text
    assert main(["explain", "2048", *size, "--answer", "no", "--reward", "score"]) == 0
    assert "no answer; there is no <answer>" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, message",
    [
        (["2049"], "did you mean '2048'"),
        (["nowhere/run:4"], "is neither a folder nor a module"),
        (["no_such_module:4"], "is neither a folder nor a module"),
        (["{run}:7"], "no group 7 among its trajectories; groups 4 to 6 are there"),
        (["{run}:9"], "no group 9 among its trajectories; it was dropped: stale"),
        (["{run}:2048"], "no group 2048"),
        (["{run}:2048/oracle/3"], "expected the number of a group, or GAME/PLAYER/SEED/MOVE"),
        (["{run}:2048/oracle/3/0"], "no evaluation"),
        (["{evaluation}:4"], "is not the folder of a run"),
        (["{evaluation}:2048/oracl/3/0"], "did you mean '2048/oracle'"),
        (["{evaluation}:2048/oracle/3/4"], "has no move 4 of seed 3; there are seeds 3 to 3, up to 4 moves of each"),
        (["2048", "--moves", "up,lft"], "'lft', is no move"),
        (["2048", "--reward", "scor"], "did you mean 'score'"),
        (["2048", "--answer-file", "nowhere.txt"], "nowhere.txt: No such file"),
        (["2048", "--seed", "-1"], "must be 0 or more"),
    ],
)
def test_mistakes_are_answered_in_a_line(run, evaluation, capsys, argv, message):
    assert main(["explain", *(word.format(run=run, evaluation=evaluation[0]) for word in argv)]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
