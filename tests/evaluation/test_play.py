"""Runs of players, how they are counted, and the files they are kept in."""

import asyncio
import dataclasses

import numpy as np
import pytest

from envs import PLAYERS, Codec, Task, game_names, reward_table
from g1_ray.evaluation.moves import SCHEMA, file_name, move_rows, read_runs, write_moves
from g1_ray.evaluation.named import parse_game
from g1_ray.evaluation.play import CUT_OFF, Move, Question, Reply, Run, Stopped, play, play_asked
from g1_ray.evaluation.results import PAPER_SCORES, result_of, results_table
from jobs.evaluate import is_the_papers

SHISEN = Task.make("shisen", reasoning={"rows": 4, "cols": 4}, perception={"tile_px": 28})


@pytest.mark.parametrize("name", game_names())
@pytest.mark.parametrize("player", PLAYERS)
def test_a_run_is_decided_by_its_seed(name, player):
    task = Task.make(name)
    run = play(task, player, PLAYERS[player], 3, moves=30)
    assert run == play(task, player, PLAYERS[player], 3, moves=30) and len(run.moves) == 30
    assert run.score == sum(move.gain for move in run.moves)
    for move, following in zip(run.moves, run.moves[1:], strict=False):
        game = move.state.game()
        outcome = game.step(move.action)
        assert (move.legal, move.gain, move.over) == (outcome.legal, outcome.gain, game.over)
        if not move.over:  # else a fresh board follows
            assert following.state.data == game.snapshot()


def test_an_episode_ends_with_its_board():
    run = play(Task.make("2048", reasoning={"horizon": 20}), "oracle", PLAYERS["oracle"], 0)
    assert len(run.moves) == 20 and [move.over for move in run.moves].index(True) == 19 and run.boards == 1
    cleared = play(SHISEN, "oracle", PLAYERS["oracle"], 0)
    assert cleared.successes == 1 and len(cleared.moves) == 8 and cleared.scoring == 1


def test_boards_that_end_are_followed_by_fresh_ones():
    run = play(SHISEN, "oracle", PLAYERS["oracle"], 0, moves=20)
    assert run.successes == 2 and run.boards == 3
    starts = [move.state.data for move, before in zip(run.moves[1:], run.moves, strict=False) if before.over]
    assert len(set(starts)) == 2


def test_regret_is_what_the_best_move_would_have_earned_more():
    run = play(SHISEN, "uniform", PLAYERS["uniform"], 1, moves=40)
    for move in run.moves:
        assert move.regret == reward_table(move.state.game()).rewards.max() - move.reward
    assert {move.regret for move in run.moves} == {0.0, 2.0}  # right, or illegal where a pair could be taken
    assert all(move.regret == 0 for move in play(SHISEN, "oracle", PLAYERS["oracle"], 1, moves=40).moves)


def good_answer(question: Question) -> Reply:
    game = question.state.game()
    text = Codec(question.state.task).write(game.perception(), "so", game.oracle())
    return Reply(text, "stop", 100, 20, 0.5)


async def asked(question: Question) -> Reply:
    return good_answer(question)


def test_who_answers_as_the_oracle_scores_as_the_oracle():
    """Both see the same boards: equal moves give equal runs, and what is counted is counted alike."""
    told = [asyncio.run(play_asked(SHISEN, "s", "oracle", asked, seed, 12)) for seed in (1, 2, 3)]
    seen = [play(SHISEN, "oracle", PLAYERS["oracle"], seed, 12) for seed in (1, 2, 3)]
    assert [run.score for run in told] == [run.score for run in seen]
    assert [[move.state for move in run.moves] for run in told] == [[move.state for move in run.moves] for run in seen]
    result = result_of("s", "oracle", told)
    assert result.p_acc == result.cell_acc == result.r_acc == result.scoring.mean / 100 == 1
    assert result.unreadable == 0 and result.tokens == 20 and result.seconds == 0.5 and result.difference is None


def test_unreadable_answers_lose_a_move_and_are_counted_by_cause():
    replies = iter([Reply("hm"), Reply("hm", "length"), Reply("<answer>up up</answer>"), Reply(""), Reply("hm")])

    async def mute(question: Question) -> Reply:
        return next(replies)

    run = asyncio.run(play_asked(SHISEN, "s", "mute", mute, 1, 5))
    assert [move.cause for move in run.moves] == ["no answer", CUT_OFF, "malformed", "no answer", "no answer"]
    assert len({move.state.data for move in run.moves}) == 5 and run.score == 0  # the counter of moves goes on
    result = result_of("s", "mute", [run], prices=(3, 5))
    assert result.unreadable == 1 and result.causes == {"no answer": 0.6, CUT_OFF: 0.2, "malformed": 0.2}
    assert result.p_acc == 0 and np.isnan(result.r_acc)


def test_differences_are_taken_seed_by_seed():
    runs = [[play(SHISEN, name, PLAYERS[name], seed, 12) for seed in range(6)] for name in ("uniform", "oracle")]
    result = result_of("s", "oracle", runs[1], reference=runs[0])
    gaps = [b.score - a.score for a, b in zip(*runs, strict=True)]
    assert result.difference is not None and result.difference.mean == pytest.approx(np.mean(gaps))
    assert result_of("s", "oracle", runs[1], reference=runs[1]).difference == (0, 0, 0)
    rows = results_table([result], "uniform")
    assert "score less uniform's" in rows[0] and str(result.difference) in rows[1]


def test_published_results_stand_below_their_game_and_are_marked():
    run = play(Task.make("2048"), "uniform", PLAYERS["uniform"], 0, 10)
    rows = results_table([result_of("2048", "uniform", [run])], published=["2048"])
    assert [row[1] for row in rows[1:]][0] == "uniform" and all("(published)" in row[1] for row in rows[2:])
    assert dict(zip(rows[0], rows[-1], strict=True))["score"] == "1070"
    assert len(results_table([result_of("2048", "uniform", [run])], published=["swap"])) == 2


@pytest.mark.parametrize("game", PAPER_SCORES)
def test_published_scores_are_numbers_in_the_unit_of_the_rows_above_them(game):
    scores = {name: float(told) for name, told in PAPER_SCORES[game].items()}
    assert max(scores, key=lambda name: scores[name]) == "G1-7B"
    assert game == "2048" or all(score <= 18 for score in scores.values())  # moves that score, in a run of 100


def test_published_results_are_shown_beside_boards_like_the_papers_only():
    shown = {text: is_the_papers(parse_game(text)) for text in ("2048", "swap", "2048=2048?size=3", "x=2048")}
    assert shown == {"2048": True, "swap": True, "2048=2048?size=3": False, "x=2048": False}


def test_moves_are_read_as_they_were_written(tmp_path):
    runs = [play(SHISEN, "uniform", PLAYERS["uniform"], seed, 9) for seed in (4, 2)]
    runs.append(asyncio.run(play_asked(SHISEN, "s", "asked", asked, 5, 9)))
    path = tmp_path / "moves" / file_name("s", "a model, T=1")
    write_moves(path, "s", "a model, T=1", runs)
    assert path.name == "s--a-model-T-1.parquet" and read_runs(path) == runs
    assert set(SCHEMA.names) == set(next(move_rows("s", "x", runs)))
    (tmp_path / "other.parquet").write_bytes(path.read_bytes())
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(path).drop_columns(["regret"]), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="no column 'regret'"):
        read_runs(tmp_path / "other.parquet")


def test_a_player_may_stop():
    def twice(game, rng):
        if game.moves == 2:
            raise Stopped
        return game.oracle()

    assert len(play(SHISEN, "tired", twice, 0).moves) == 2


def test_a_run_counts_its_moves():
    state = play(SHISEN, "oracle", PLAYERS["oracle"], 0).moves[0].state
    move = Move(state, 0, True, 2.0, 1.0, 0.0, False, False)
    run = Run(0, (move, dataclasses.replace(move, legal=False, gain=0.0, over=True, success=True)))
    assert (run.score, run.scoring, run.legal, run.successes, run.boards) == (2.0, 0.5, 0.5, 1, 1)
