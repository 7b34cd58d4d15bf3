"""Runs side by side, and what a page has beside curves and rollouts: verdict, grid, clips."""

import re
import shutil

import pytest
from folders import config_in

from envs import PLAYERS
from g1_ray.evaluation.clips import save_clip
from g1_ray.evaluation.moves import file_name
from g1_ray.evaluation.play import play
from g1_ray.evaluation.results import result_of, results_table, write_results
from g1_ray.report.write import write_report
from g1_ray.runs.run_folder import RunFolder
from jobs.__main__ import main


def texts(page, selector):
    return page.locator(selector).all_inner_texts()


@pytest.fixture(scope="module")
def compared(run, tmp_path_factory):
    """The page of the run beside one of another length, with another option and a curve of its own."""
    config = config_in(tmp_path_factory.mktemp("others"), name="other", optimizer={"lr": 1e-3})
    folder = RunFolder.open(config)
    for step in range(1, 11):
        folder.log(step, {"2048/reward": 1.0, "loss": 0.5} | ({"canary_nats": 1e-7} if step == 5 else {}))
    folder.write_report({"issued": 8, "trained": 8, "dropped": 0, "quarantined": 0, "in_flight": 0}, 60.0)
    folder.close()
    shutil.copytree(run / "eval", folder.path / "eval")
    out = tmp_path_factory.mktemp("page") / "both.html"
    assert main(["report", str(run), str(folder.path), "--out", str(out)]) == 0
    return out


def test_runs_lie_over_each_other_each_in_its_colour(compared, open_page):
    page = open_page(compared)
    assert page.inner_text("h1") == "small, other" and texts(page, "#parts a")[:3] == ["Summary", "Curves", "Results"]
    rows = texts(page, "#compared table >> nth=1 >> tbody tr")
    assert ["optimizer.lr", "1e-06", "0.001"] in [re.split(r"\s+", row.strip()) for row in rows]
    charts = dict(zip(texts(page, "#charts h4"), page.locator("#charts figure").all(), strict=True))
    assert {"2048: reward", "moved: reward", "loss"} <= set(charts)
    legends = {title: chart.locator(".legend li").all_inner_texts() for title, chart in charts.items()}
    assert legends["2048: reward"] == ["small 0.895 (0.900)", "other 1"] and len(legends["moved: reward"]) == 1
    canary = charts["canary: engines less learner, nats"]  # of the second run alone, seen once
    assert canary.locator("path.line-1").count() and not canary.locator("path.line-0").count()
    assert canary.locator("circle.mark").count() == 1
    head = texts(page, "#tables table >> nth=0 >> thead th")
    assert head[:3] == ["run", "player", "score"]
    # Equal to the digit in both: one row.
    assert [row.split("\t")[0].strip() for row in texts(page, "#tables table >> nth=0 >> tbody tr")] == [
        "small, other"
    ] * 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_no_comparison_scrolls_sideways_and_no_tick_is_cut_off(compared, page_of_run, open_page, width, scheme):
    for path in (compared, page_of_run):
        page = open_page(path, viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.wait_for_selector("#charts .axis text")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cut = """[...document.querySelectorAll('#charts svg[tabindex]')].flatMap((svg) => {
          const box = svg.getBoundingClientRect();
          return [...svg.querySelectorAll('text')].map((t) => t.getBoundingClientRect())
            .filter((t) => t.left < box.left - 1 || t.right > box.right + 1 || t.bottom > box.bottom + 1);
        }).length"""
        assert page.evaluate(cut) == 0
        marks = "[...document.querySelectorAll('#charts svg[tabindex]')].map((s) => s.querySelectorAll('.grid').length)"
        assert min(page.evaluate(marks)) >= 3  # an axis has ticks to read it by


def test_the_same_folder_twice_is_told(run, capsys):
    assert main(["report", str(run), str(run)]) == 2
    assert "the same folder twice" in capsys.readouterr().err
    assert main(["report", str(run), str(run / "checkpoints")]) == 2
    assert "nothing to report on" in capsys.readouterr().err


def test_clips_a_verdict_and_the_grid_are_on_the_page(tmp_path, open_page):
    config = config_in(tmp_path, eval={"label": "G1", "baselines": {"cold start": "tiny-base"}})
    folder = RunFolder.open(config)
    folder.log(1, {"2048/reward": 0.5})
    task = config.games[0].task()
    results = []
    for game in ("2048", "2048.heldout"):
        for player, choose in (("cold start", "uniform"), ("G1", "oracle")):
            runs = [play(task, player, PLAYERS[choose], seed, 20) for seed in range(8)]
            results.append(result_of(game, player, runs))
            save_clip(runs[0], folder.path / "eval" / file_name(game, player, ".gif"), player)
    write_results(folder.path / "eval", results, results_table(results))
    page = open_page(write_report(folder.path, workers=1), reduced_motion="reduce")
    assert re.match(r"2048: G1 is better than cold start by .+ after ", texts(page, "#verdict li")[0])
    assert texts(page, "#grids thead th") == ["as it is", "heldout"] and len(texts(page, "#grids tbody tr")) == 2
    assert texts(page, "#tables h3") == ["2048"]
    page.click("#tables summary")
    page.wait_for_selector("#tables details h3")  # made once it is open
    assert texts(page, "#tables h3") == ["2048", "2048.heldout"]
    assert texts(page, "#clip-list h3") == ["2048, G1", "2048, cold-start"]  # as the files are called
    page.wait_for_selector("#clip-list canvas:visible")  # as asked for, it stands still
    button = page.locator("#clip-list button").first
    assert button.inner_text() == "Play"
    button.click()
    assert (
        page.locator("#clip-list img").first.get_attribute("alt") == "Clip: 2048, G1" and button.inner_text() == "Stop"
    )
