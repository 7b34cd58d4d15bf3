"""The page of a run and of an evaluation, read and used in a browser."""

import base64
import io
import re

import numpy as np
import pytest
from folders import GAMES, answers, config_in, turn_of
from PIL import Image

from envs import State
from envs.rewards import reward_table
from g1_ray.report.rollouts import read_evaluation, read_training
from g1_ray.report.write import write_report
from g1_ray.rollout.referee import Referee
from g1_ray.runs.run_folder import RunFolder
from g1_ray.types import Group, Rollout, Ticket
from jobs.__main__ import main


def shown(page, at):
    page.wait_for_selector(f'#shown[data-shown="{at}"]')


def picture(page, canvas):
    data = page.evaluate("(at) => document.querySelectorAll('.frame canvas')[at].toDataURL()", canvas)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB"))


def texts(page, selector):
    return page.locator(selector).all_inner_texts()


def count(page):
    return page.inner_text("#count")


def test_the_page_says_what_the_folder_says(run, page_of_run, open_page):
    page = open_page(page_of_run)
    assert page.title() == "small: training run" and page.inner_text("h1") == "small"
    assert texts(page, "#parts a") == [
        "Summary", "Curves", "Results", "Reading the board", "Perception and reasoning lab", "Rollouts"
    ]  # fmt: skip
    facts = dict(zip(texts(page, "#facts dt"), texts(page, "#facts dd"), strict=True))
    assert (
        facts["games"] == "2048, moved"
        and facts["steps"] == "40"
        and facts["groups"] == "8 issued, 8 trained, 0 dropped"
    )
    assert texts(page, "#charts h3") == ["Play", "Training"]
    shown_ = texts(page, "#charts h4")
    assert shown_[0] == "reward" and {"lab true perception", "loss", "tokens a second"} <= set(shown_)
    assert any(title.startswith("informative groups") for title in shown_)
    assert texts(page, "#tables h3") == ["2048", "moved"]
    head, row = (
        texts(page, "#tables table >> nth=1 >> thead th"),
        texts(page, "#tables table >> nth=1 >> tr >> nth=2 >> th, td"),
    )
    rows = (run / "eval" / "table.md").read_text().splitlines()
    assert head == rows[0].strip("| ").split(" | ")[1:] and row[0] == "a, model"  # the terminal's, less the game
    assert page.locator("#interventions table").count() == 2
    assert texts(page, "#interventions tbody tr >> nth=1 >> th, td")[-1] == ""  # NaN is nothing
    assert page.inner_text("#left-out") == "All rollouts of the folder are on this page."


def test_curves_are_read_with_the_pointer_and_with_the_keyboard(page_of_run, open_page):
    page = open_page(page_of_run)
    figure = page.locator("#charts figure").first
    assert figure.locator(".at").inner_text() == "step 40"
    figure.locator("svg").first.hover(position={"x": 20, "y": 80})
    assert figure.locator(".at").inner_text() == "step 1" and "0.515 (0.510)" in figure.locator("li").first.inner_text()
    page.mouse.move(0, 0)
    figure.locator("svg").first.focus()
    page.keyboard.press("ArrowLeft")
    assert figure.locator(".at").inner_text() == "step 39"
    assert figure.locator("svg").first.get_attribute("aria-label").startswith("reward, step 39: 2048 0.")


def test_tiles_taken_for_others_are_in_the_table(page_of_run, open_page):
    page = open_page(page_of_run)
    assert texts(page, "#matrix-of option") == [
        "2048, training", "moved, training", "2048, a, model", "moved, a, model", "2048, a, model in the lab",
        "moved, a, model in the lab",
    ]  # fmt: skip
    assert page.inner_text("#matrix p").startswith("24 boards of the rollouts on this page, 33.3")
    page.select_option("#matrix-of", "5")
    assert texts(page, ".errors li") == ["one told as two, 2 ×", "one told as missing or unknown, 1 ×"]
    assert texts(page, "#matrix table >> nth=1 >> td")[-4:] == ["0.500", "1.000", "0.250", "0.750"]


def test_boards_are_composed_pixel_by_pixel(run, page_of_run, open_page):
    page = open_page(page_of_run)
    played, _ = read_training(run / "trajectories", 1000, True)
    boards, _ = read_evaluation(run / "eval" / "moves", 1000)
    played += boards
    for number in (0, 7, len(played) - 1):
        page.evaluate("(at) => { const list = document.getElementById('list'); list.scrollTop = 74 * at; }", number)
        page.click(f"#line-{number}")
        for step, row in enumerate(played[number].rows[:3]):
            shown(page, f"{number}:{step}")
            truth = State.from_bytes(row["state"]).draw()
            assert np.array_equal(picture(page, 0), truth)
            page.keyboard.press("ArrowRight")
    assert {tuple(State.from_bytes(p.rows[0]["state"]).draw().shape) for p in played} == {(84, 84, 3), (140, 140, 3)}


def test_what_is_told_is_drawn_and_what_is_wrong_is_marked(page_of_run, open_page):
    page = open_page(page_of_run)
    shown(page, "0:0")
    seen, told = picture(page, 0), picture(page, 1)
    times = len(told) // len(seen)
    large = seen.repeat(times, 0).repeat(times, 1)
    assert times > 1 and np.array_equal(told, large)
    page.keyboard.press("/")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")  # its first cell is told as another kind
    shown(page, "1:0")
    marked = (picture(page, 1) != large).any(-1)
    cell = 28 * times
    assert marked[:cell, :cell].mean() > 0.1 and not marked[cell:].any() and not marked[:, cell:].any()
    page.keyboard.press("ArrowDown")
    shown(page, "2:0")
    assert page.inner_text(".board:nth-child(2) .note") == "Lines described: 2; rows of the board: 3."


def test_the_keyboard_goes_through_rollouts_and_steps(page_of_run, open_page):
    page = open_page(page_of_run)
    shown(page, "0:0")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("moved")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "list"
    shown(page, "6:0")
    page.keyboard.press("ArrowRight")
    shown(page, "6:1")
    page.keyboard.press("ArrowRight")  # there are no more
    assert page.inner_text(".place") == "step 2 of 2" and page.locator(".steps button").nth(1).is_disabled()
    page.keyboard.press("ArrowLeft")
    shown(page, "6:0")
    page.keyboard.press("ArrowDown")
    shown(page, "7:0")
    assert page.get_attribute("#list", "aria-activedescendant") == "line-1"
    assert page.get_attribute("#line-1", "aria-selected") == "true"
    page.keyboard.press("ArrowUp")
    shown(page, "6:0")
    page.keyboard.press("End")
    shown(page, "6:1")


def test_each_filter_keeps_what_it_says(run, page_of_run, open_page):
    page = open_page(page_of_run)
    played, _ = read_training(run / "trajectories", 1000, True)
    boards, _ = read_evaluation(run / "eval" / "moves", 1000)
    played += boards
    total = len(played)

    def expect(kept):
        kept = [i for i in range(total) if kept(played[i])]
        assert 0 < len(kept) < total and count(page) == f"{len(kept)} of {total} rollouts"
        page.wait_for_selector(",".join(f'#shown[data-shown^="{i}:"]' for i in kept))
        page.click("#filters button")
        page.wait_for_selector(f"#count:text-is('{total} of {total} rollouts')")

    def pick(name, option):
        page.select_option(name, label=option)

    pick("#game", "moved")
    expect(lambda p: p.game == "moved")
    pick("#player", "a, model")
    expect(lambda p: p.player == "a, model")
    page.fill("#from", "3")
    page.fill("#to", "4")
    expect(lambda p: p.player == "training" and any(3 <= v <= 4 for row in p.rows for v in row["versions"]))
    pick("#outcome", "illegal")
    expect(lambda p: any(row["action"] is not None and not row["legal"] for row in p.rows))
    pick("#outcome", "unreadable")
    expect(lambda p: any(row["action"] is None for row in p.rows))
    pick("#cause", "no answer")
    expect(lambda p: any(row["cause"] == "no answer" for row in p.rows))
    page.check("#misread")
    expect(lambda p: any(row["perception_exact"] is False for row in p.rows))
    page.fill("#search", "group 11 misread")
    expect(lambda p: p.number == 11 and any(row["perception_exact"] is False for row in p.rows))
    page.fill("#search", "nothing like it")
    assert count(page) == f"0 of {total} rollouts" and "No rollout matches" in page.inner_text("#shown")


def test_a_rollout_is_opened_where_the_filters_point(run, page_of_run, open_page):
    page = open_page(page_of_run)
    page.select_option("#player", label="a, model")
    page.check("#misread")
    boards, _ = read_evaluation(run / "eval" / "moves", 1000)
    first = next(i for i, p in enumerate(boards) if any(row["perception_exact"] is False for row in p.rows))
    step = next(i for i, row in enumerate(boards[first].rows) if row["perception_exact"] is False)
    shown(page, f"{48 + first}:{step}")
    assert step == 1 and re.search(r"Row 0, column 0: told .+, is .+\.", page.inner_text(".board:nth-child(2) .note"))


def test_moves_rewards_and_advantages_are_those_of_the_library(run, page_of_run, open_page):
    page = open_page(page_of_run)
    played, _ = read_training(run / "trajectories", 1000, True)
    for number in (0, 4, 9):
        page.click("#filters button")
        page.fill("#search", f"group {played[number].number}, rollout {played[number].place}")
        shown(page, f"{number}:0")
        row = played[number].rows[0]
        game = State.from_bytes(row["state"]).game()
        expected = reward_table(game)
        listed = [
            cells.split("\t")
            for cells in texts(page, "#shown section:has(h4:text('Legal moves')) tbody tr:not(.other)")
        ]
        told = {re.sub(r"\s*played$", "", name): (number_of(a), number_of(b)) for name, a, b in listed}
        assert told == {
            game.actions.write(action): (reward, regret)
            for action, reward, regret in zip(expected.actions, expected.rewards, expected.regrets, strict=True)
        }
        facts = dict(zip(texts(page, "#shown dt"), texts(page, "#shown dd"), strict=True))
        assert number_of(facts["regret"]) == expected.rewards.max() - row["reward_game"]
        assert number_of(facts["advantage in its group"]) == pytest.approx(played[number].advantage, abs=0.01)
        assert number_of(facts["reward"]) == pytest.approx(row["reward"], abs=0.01)
    assert sum(p.advantage for p in played[:6]) == pytest.approx(0, abs=1e-4)


def number_of(text):
    return float(text.replace("−", "-").replace("+", ""))


def test_answers_are_text_whatever_they_say(page_of_run, open_page):
    page = open_page(page_of_run)
    page.fill("#search", "group 11, rollout 1")
    shown(page, "7:0")
    assert page.inner_text("pre[aria-label=Thinking]") == "<b>not bold</b>"
    page.fill("#search", "group 11, rollout 5")
    shown(page, "11:0")
    page.click("#shown details:has(pre[aria-label='The whole answer']) summary")
    assert "<script>alert(1)</script>" in page.inner_text("pre[aria-label='The whole answer']")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_no_width_scrolls_sideways(page_of_run, open_page, width, scheme):
    page = open_page(page_of_run, viewport={"width": width, "height": 800}, color_scheme=scheme)
    shown(page, "0:0")
    for matrix in range(page.locator("#matrix-of option").count()):
        page.select_option("#matrix-of", str(matrix))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", paper)[0]) < 80) == (scheme == "dark")
    # Everything that is operated has a name, and nothing is operated by the pointer alone.
    assert page.evaluate("[...document.querySelectorAll('canvas, svg[tabindex], .scroll')].every(e => e.ariaLabel)")


def test_an_evaluation_folder_has_a_page_of_its_own(run, tmp_path, open_page):
    path = write_report(run / "eval", tmp_path / "page.html", workers=1)
    page = open_page(path)
    assert page.inner_text("#kind") == "Evaluation" and texts(page, "#parts a")[0] == "Results"
    assert page.locator("#versions").is_hidden() and texts(page, "#player option") == ["any", "a, model", "oracle"]
    page.select_option("#player", label="oracle")
    page.wait_for_selector(".board:nth-child(2)", state="hidden")  # it describes no board
    assert page.inner_text("#shown h3").startswith("2048, oracle, seed 5")


def test_the_page_is_written_by_the_command(run, tmp_path, capsys):
    assert (
        main(["report", str(run), "--out", str(tmp_path / "deep" / "page.html"), "--rollouts", "12", "--workers", "1"])
        == 0
    )
    assert "page.html" in capsys.readouterr().out
    html = (tmp_path / "deep" / "page.html").read_text()
    assert "6 of 48 rollouts of training, drawn evenly over the run" in html and "6 of 10 boards of the eval" in html
    assert not re.search(r'(src|href)="(?!#|data:)', html)
    assert main(["report", str(tmp_path / "deep")]) == 2
    assert "nothing to report on; give the folder of a run" in capsys.readouterr().err
    assert main(["report", str(run), "--rollouts", "0"]) == 2
    assert "--rollouts 0" in capsys.readouterr().err


def test_a_run_that_has_only_begun_has_a_page(tmp_path, open_page):
    folder = RunFolder.open(config_in(tmp_path))
    folder.log(1, {"2048/reward": 0.5})
    folder.close()
    page = open_page(write_report(folder.path, workers=1))
    assert texts(page, "#parts a") == ["Summary", "Curves"] and texts(page, "#charts h4") == ["reward"]


@pytest.mark.slow
def test_ten_thousand_rollouts_open_in_two_seconds(tmp_path, open_page):
    config = config_in(tmp_path, games=GAMES[:1])
    folder, referee = RunFolder.open(config), Referee(config.games[0], config.reward)
    game = referee.task.new_game()
    for number in range(1250):
        game.reset(number)
        start = State.of(referee.task, game)
        turns = [turn_of(referee, start, text, number // 20) for text in answers(referee, start)[:4]]
        rollouts = tuple(Rollout((turns[i % 4],)) for i in range(8))
        folder.keep_group(Group(Ticket(number, "2048", number, 0), start, rollouts))
    folder.close()
    path = write_report(folder.path, workers=1)
    assert path.stat().st_size < 10e6
    page = open_page(path)
    processor = page.context.new_cdp_session(page)
    processor.send("Performance.enable")
    page.reload()
    shown(page, "0:0")
    page.click("#line-1")
    shown(page, "1:0")
    measured = {metric["name"]: metric["value"] for metric in processor.send("Performance.getMetrics")["metrics"]}
    assert measured["ProcessTime"] < 2  # seconds of processor time for two loads: the machine may be busy
    page.keyboard.press("/")
    page.keyboard.type("group 1249, rollout 7")
    shown(page, "9999:0")
    page.fill("#search", "")
    assert page.locator(".line[role=option]").count() < 40
