"""The arena's page in a browser, on the real arena, model and routes: played, watched, raced, shared, looked at."""

import json
import re
import shutil
import subprocess
import tarfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("playwright")

from in_process import served  # noqa: E402
from playwright.sync_api import expect  # noqa: E402

from g1_ray.serve.routes import PAGE  # noqa: E402

pytestmark = pytest.mark.xdist_group("page")
WIDTHS = (360, 800, 1400)
SERIOUS = ("serious", "critical")
LOST = "Failed to load resource"
"""What Chromium logs of an answer that is no success."""


@pytest.fixture(scope="module")
def arena(browser, tmp_path_factory):
    """Where the arena is; the model is the tiny one that ships."""
    with served(tmp_path_factory.mktemp("arena"), ["tiny-coldstart"]) as (address, _):
        yield address


@pytest.fixture
def open_page(browser, arena):
    """Opens the page; at the end, nothing may have been logged but `allowed`, and nothing asked for from outside."""
    contexts, faults = [], []

    def open_(hash="", width=1400, allowed="", speed="2", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        context.add_init_script(f"localStorage.setItem('g1_ray.speed', '{speed}')")
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda m: faults.append(m.text) if not (allowed and allowed in m.text) else None)
        page.on("pageerror", lambda error: faults.append(f"{error} {error.stack}"))
        page.on("request", lambda r: None if r.url.startswith((arena, "data:")) else faults.append(r.url))
        page.goto(arena + "/" + hash)
        page.locator(".lane:visible .frame img, #score-tables, #note:not(:empty)").first.wait_for(state="attached")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not faults


def asked(page, path="", body=None):
    """What the API says of the session that a page shows."""
    while "/#s=" not in (url := page.evaluate("location.href")):  # the board is drawn a moment before
        page.wait_for_timeout(50)
    base, _, hash = url.partition("/#s=")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{base}/api/sessions/{hash}{path}", data, {"content-type": "application/json"})
    return json.load(urllib.request.urlopen(request))


def lane_of(page, number=0):
    return asked(page)["lanes"][number]


def count(page, moves, lane=0):
    """Waits until a lane has so many moves."""
    page.locator(".count").nth(lane).filter(has_text=re.compile(rf"\b{moves} moves?\b")).wait_for()


def until(page, holds, tries=400):
    """Waits for what the server says."""
    for _ in range(tries):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not come to that")


def begin(page, game, level="0", seats=("person", ""), **options):
    """Begins a game from the form with everything."""
    page.locator("#more").evaluate(
        "(node) => { for (const one of [node, ...node.querySelectorAll('details')]) one.open = true; }"
    )
    page.select_option("#all-games", game)
    page.select_option("#level", level)
    for number, seat in enumerate(seats):
        page.select_option(f"#seat-{number}", seat)
    for name, value in options.items():
        page.locator(f"#options [name={name}]").fill(str(value))
    with other_game(page):
        page.get_by_role("button", name="Start this game").click()
    page.locator("#more").evaluate("(node) => (node.open = false)")


def result(page, lane=0):
    return page.locator(".result").nth(lane)


@contextmanager
def other_game(page):
    """Waits for the session that is begun within."""
    before = page.evaluate("location.href")  # page.url lags behind it
    yield
    page.wait_for_function("(before) => location.href !== before", arg=before)


def scrolls(page):
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


# Playing


def test_a_game_of_2048_is_played_to_its_end_by_keyboard(open_page):
    page = open_page()
    page.get_by_role("table", name="The board in words").wait_for(state="attached")
    for number in range(600):
        page.keyboard.press(("ArrowLeft", "ArrowDown", "ArrowRight", "ArrowUp")[number % 4])
        page.wait_for_timeout(15)
        if "game is over" in result(page).inner_text():
            break
    lane = lane_of(page)
    assert lane["over"] and not lane["helped"] and lane["moves"] > 5
    assert result(page).inner_text().endswith(f"over: {lane['score']:,.0f} points in {lane['moves']} moves.")
    expect(page.locator("#said")).to_contain_text("The game is over")
    page.get_by_role("link", name="Scores").click()
    row = page.get_by_role("row", name=re.compile("anonymous"))
    expect(row.first).to_contain_text(f"{lane['score']:,.0f}")
    page.get_by_role("link", name="Play", exact=True).click()
    expect(result(page)).to_contain_text("The game is over")


def test_a_game_of_shisen_is_played_to_its_end_by_mouse(open_page):
    page = open_page()
    with other_game(page):
        page.get_by_role("radio", name=re.compile("Shisen")).check(force=True)
    cells = page.locator(".cells button")
    legal = {frozenset(move["cells"]) for move in lane_of(page)["legal"]}
    wrong = next((i, j) for i in range(16) for j in range(i) if frozenset((i, j)) not in legal)
    for cell in wrong:
        cells.nth(cell).click()
    expect(result(page)).to_contain_text("don't go together")
    assert page.locator(".cells [aria-pressed=true]").count() == 0
    moves = 0
    while (lane := lane_of(page))["legal"] and not lane["over"]:
        one, other = lane["legal"][0]["cells"]
        cells.nth(one).click()
        assert cells.nth(one).get_attribute("aria-pressed") == "true"
        cells.nth(other).click()
        moves += 1
        count(page, moves)
    assert lane["over"]
    expect(result(page)).to_contain_text(re.compile("You won|The game is over"))


def test_a_game_of_swap_is_played_to_its_end_by_touch(open_page):
    page = open_page(width=360, has_touch=True)
    begin(page, "swap", horizon=6)
    cells = page.locator(".cells button")
    for number in range(1, 7):
        for cell in lane_of(page)["legal"][0]["cells"]:
            cells.nth(cell).tap()
        count(page, number)
    assert lane_of(page)["over"]
    expect(result(page)).to_contain_text("game is over")


@pytest.mark.slow
def test_cells_are_picked_by_keyboard_and_dragged_by_mouse(open_page):
    page = open_page()
    begin(page, "swap")
    lane = lane_of(page)
    one, other = lane["legal"][0]["cells"]
    cells = page.locator(".cells button")
    assert cells.evaluate_all("(all) => all.filter((cell) => cell.tabIndex === 0).length") == 1
    cells.nth(0).focus()
    for cell, start in ((one, 0), (other, one)):
        down, right = cell // 6 - start // 6, cell % 6 - start % 6
        for key, times in (("ArrowDown", down), ("ArrowUp", -down), ("ArrowRight", right), ("ArrowLeft", -right)):
            for _ in range(times):
                page.keyboard.press(key)
        page.keyboard.press("Enter" if cell == one else " ")
    count(page, 1)
    one, other = lane_of(page)["legal"][0]["cells"]
    cells.nth(one).drag_to(cells.nth(other))
    count(page, 2)
    assert page.get_by_role("grid").count() == 1


@pytest.mark.slow
def test_a_swipe_is_a_move(open_page):
    page = open_page()
    word = lane_of(page)["legal"][0]["text"]
    box = page.locator(".frame img").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    across, down = {"left": (-90, 0), "right": (90, 0), "up": (0, -90), "down": (0, 90)}[word]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + across, y + down, steps=3)
    page.mouse.up()
    count(page, 1)
    assert lane_of(page)["last"]["text"] == word


def test_a_hint_is_shown_a_move_is_taken_back_and_both_count_as_help(open_page):
    page = open_page()
    page.get_by_role("button", name="Hint").click()
    page.locator(".marks .hint").wait_for(state="attached")
    expect(result(page)).to_contain_text("Try ")
    word = re.match(r"Try (\w+)", result(page).inner_text())[1]
    page.get_by_role("button", name=word, exact=True).click()
    count(page, 1)
    page.get_by_role("button", name="Undo").click()
    count(page, 0)
    assert lane_of(page)["helped"]
    expect(page.locator(".count")).to_contain_text("with help")


def test_a_name_and_a_game_are_kept_and_a_name_of_a_player_is_refused(open_page):
    page = open_page(allowed=LOST)
    name = page.get_by_label("Your name")
    with other_game(page):
        name.fill("Ada")
        name.blur()
    assert asked(page)["name"] == "Ada"
    page.get_by_role("button", name=lane_of(page)["legal"][0]["text"], exact=True).click()
    count(page, 1)
    page.reload()
    count(page, 1)
    assert name.input_value() == "Ada"
    name.fill("oracle")
    name.blur()
    page.get_by_role("button", name="New game").click()
    page.locator("#name[aria-invalid]").wait_for()
    expect(page.locator("#note")).to_contain_text("is a player of this server")


# Watching


def test_the_model_is_watched_paused_stepped_taken_over_and_looked_back_at(open_page):
    page = open_page(speed="5")
    with other_game(page):
        page.get_by_role("button", name="Watch").click()
    until(page, lambda: lane_of(page)["moves"] >= 2)
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Go on").wait_for()
    page.get_by_role("row", name=re.compile("played")).wait_for()
    page.get_by_text("tiny-coldstart played").first.wait_for()  # what was begun is heard to its end
    moves = lane_of(page)["moves"]
    page.get_by_role("button", name="Step").click()
    count(page, moves + 1)
    page.wait_for_timeout(500)
    lane = lane_of(page)
    last = lane["last"]
    assert lane["moves"] == moves + 1
    told = page.locator(".told canvas")
    assert told.is_visible() and last["answer"]["told"][0][0] in told.get_attribute("aria-label")
    assert page.locator(".thinking pre").inner_text().strip() == last["answer"]["thinking"].strip()
    options = asked(page, f"/lanes/0/moves/{last['number']}")["options"]
    assert page.locator(".options tbody tr").count() == len(options)
    page.get_by_text("How well it sees so far").click()
    expect(page.locator(".lane dl")).to_contain_text("P_acc")
    page.get_by_role("button", name="The move before").click()
    page.get_by_role("button", name="The move before").click()
    page.locator(".result").filter(has_text="tiny-coldstart played").wait_for()
    page.get_by_role("button", name="Take over").click()
    page.get_by_role("heading", name="You").wait_for()
    page.get_by_role("button", name=lane_of(page)["legal"][0]["text"], exact=True).click()
    count(page, lane["moves"] + 1)
    page.get_by_role("button", name="Let tiny-coldstart play").click()
    until(page, lambda: lane_of(page)["last"]["by"] == "tiny-coldstart" and lane_of(page)["helped"])


def test_words_are_shown_as_they_come_and_wrong_cells_are_marked_and_named(open_page):
    page = open_page(speed="0")

    def answered(route):
        """The model's answer, told in three events, the board of it wrong in one cell."""
        lane = route.fetch(headers={**route.request.headers, "accept": "application/json"}).json()
        lane["last"]["answer"] |= {"wrong": [[0, 0]], "right": 8, "exact": False}
        lane["last"]["answer"]["told"][0][0] = "<img src=x>"
        words = {
            "type": "words",
            "tokens": 1,
            "answer": {**lane["last"]["answer"], "thinking": None, "text": "<think>half"},
        }
        del words["answer"]["exact"]
        events = [words, {"type": "lane", **lane}]
        body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        route.fulfill(body=body, headers={"content-type": "text/event-stream"})

    page.route(re.compile("/moves$"), answered)
    page.get_by_role("button", name="Watch").click()
    page.locator(".reading.misread").filter(has_text="It read 8 of 9 cells right.").wait_for()
    expect(page.locator(".reading")).to_contain_text("Row 1, column 1: it says <img src=x>, it is")
    assert page.locator(".told").evaluate("(node) => node.querySelectorAll('img').length") == 0
    crossed = """(canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return data.some((red, i) => i % 4 === 0 && red === 192 && data[i + 1] === 20 && data[i + 2] === 60);
    }"""
    assert page.locator(".told canvas").evaluate(crossed)


def test_nothing_that_others_wrote_is_taken_for_html():
    for path in PAGE.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", path.read_text()), path


# Racing


def test_a_race_begins_on_one_board_the_model_follows_and_it_has_an_outcome(open_page):
    page = open_page(speed="5")
    begin(page, "2048", seats=("person", "tiny-coldstart"), horizon=2, tile_px=28)
    one, other = asked(page)["lanes"]
    assert one["board"] == other["board"] and other["moves"] == 0
    for number in (1, 2):
        page.get_by_role("button", name=lane_of(page)["legal"][0]["text"], exact=True).click()
        count(page, number)
        count(page, number, lane=1)
    page.locator("#outcome:not([hidden])").wait_for()
    one, other = asked(page)["lanes"]
    assert one["over"] and other["over"]
    expected = (
        "draw"
        if one["score"] == other["score"]
        else "You win"
        if one["score"] > other["score"]
        else "tiny-coldstart wins"
    )
    expect(page.locator("#outcome")).to_contain_text(expected)


@pytest.mark.slow
def test_classic_players_race_by_themselves(open_page):
    page = open_page(speed="5")
    begin(page, "shisen", seats=("oracle", "greedy"))
    page.locator("#outcome:not([hidden])").wait_for()
    assert all(lane["over"] for lane in asked(page)["lanes"])


# Sharing


def test_a_game_is_shared_and_its_replay_scrubbed_in_another_window(open_page):
    page = open_page()
    moved = []
    while len(moved) < 4:
        moved.append(lane_of(page)["legal"][0]["text"])
        page.get_by_role("button", name=moved[-1], exact=True).click()
        count(page, len(moved))
    score = lane_of(page)["score"]
    page.get_by_role("button", name="Share").click()
    link = page.locator("#share-link")
    link.and_(page.locator(":visible")).wait_for()
    url = link.input_value()
    assert url.partition("/#")[0] == page.url.partition("/#")[0]
    replay = open_page("#" + url.partition("#")[2])
    replay.get_by_role("heading", name="2048 · 3 × 3, played by anonymous").wait_for()
    expect(replay.locator("#replay .result")).to_contain_text(f"Next: {moved[0]}")
    slider = replay.get_by_role("slider", name="Move")
    slider.focus()
    replay.keyboard.press("End")
    replay.locator("#replay .count").filter(has_text="4 moves").wait_for()
    expect(replay.locator("#replay .count")).to_contain_text(f"{score:,.0f} point")
    replay.keyboard.press("ArrowLeft")
    replay.locator("#replay .count").filter(has_text="3 moves").wait_for()
    replay.get_by_role("button", name="Play", exact=True).click()
    replay.locator("#replay .count").filter(has_text="4 moves").wait_for()
    forged = open_page("#r=" + url.partition("#r=")[2][:-6] + "AAAAAA", allowed=LOST)
    expect(forged.locator("#note")).to_contain_text("was not written by this server")


# What goes wrong


def test_a_busy_model_and_a_lost_answer_are_asked_again_and_nothing_is_doubled(open_page):
    page = open_page(allowed=LOST)
    tries = []

    def trouble(route):
        tries.append(route.request.post_data_json)
        if len(tries) == 1:
            route.fulfill(status=429, json={"error": {"code": "full", "message": "busy"}})
        elif len(tries) == 2:
            route.fetch()
            route.abort()
        else:
            route.continue_()

    page.route(re.compile("/moves$"), trouble)
    page.get_by_role("button", name=lane_of(page)["legal"][0]["text"], exact=True).click()
    page.locator("#note").filter(has_text="busy").wait_for()
    page.locator("#note").filter(has_text="Reconnecting").wait_for()
    count(page, 1)
    assert lane_of(page)["moves"] == 1 and len(tries) == 3 and tries[0] == tries[1] == tries[2]
    assert page.locator("#note").inner_text() == ""


def test_a_game_that_went_on_in_another_window_is_shown_as_it_stands(open_page):
    page = open_page(allowed=LOST)
    lane = lane_of(page)
    asked(page, "/lanes/0/moves", {"revision": 0, "action": lane["legal"][0]["action"]})
    page.get_by_role("button", name=lane["legal"][-1]["text"], exact=True).click()
    page.get_by_text("Here is how the game stands now.").first.wait_for()
    count(page, 1)
    assert lane_of(page)["moves"] == 1


@pytest.mark.slow
def test_an_address_of_a_game_that_is_gone_begins_another(open_page):
    page = open_page("#s=AAAAAAAAAAAAAAAA", allowed=LOST)
    page.locator("#note").filter(has_text="not here any more").wait_for()
    assert lane_of(page)["moves"] == 0


# How it looks

PARTS = ("start", "options", "watch", "race", "scores", "replay")


def show(page, part):
    """Brings a part of the page up, from any other."""
    if not page.locator("#play").is_visible():
        page.get_by_role("link", name="Play", exact=True).click()
    if part in ("watch", "replay"):
        page.get_by_role("button", name="Watch").click()
        page.get_by_role("row", name=re.compile("played")).wait_for()
        page.get_by_role("button", name="Pause").click()
    if part == "replay":
        page.get_by_role("button", name="Share").click()
        page.get_by_role("link", name="Look at it").click()
        page.locator("#again").wait_for()
    if part == "race":
        with other_game(page):
            page.get_by_role("button", name="Race").click()
        page.get_by_role("button", name=lane_of(page)["legal"][0]["text"], exact=True).click()
        count(page, 1, lane=1)
    if part == "options":
        page.locator("#more").evaluate(
            "(node) => { for (const one of [node, ...node.querySelectorAll('details')]) one.open = true; }"
        )
    if part == "scores":
        page.get_by_role("link", name="Scores").click()
        page.locator("#scores").wait_for()
    page.wait_for_timeout(350)  # what moves has come to rest


OVERLAPS = """() => {
  const nodes = document.querySelectorAll(
    "button, input, select, summary, a, h1, h2, h3, .count, .result, .board, #note");
  const boxes = [...nodes]
    .filter((node) => node.checkVisibility() && !node.closest(".cells"))
    .filter((node) => !node.matches(".unseen, .unseen *, .skip, .chip input"))
    .map((node) => [node, node.getBoundingClientRect()]).filter(([, box]) => box.width && box.height);
  const meet = (a, b) => a.left + 1 < b.right && b.left + 1 < a.right && a.top + 1 < b.bottom && b.top + 1 < a.bottom;
  const apart = (one, other) => !one.contains(other) && !other.contains(one);
  return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([other, b]) => apart(one, other) && meet(a, b))
    .map(([other]) => `${one.outerHTML.slice(0, 60)} on ${other.outerHTML.slice(0, 60)}`));
}"""
SMALL = """() => [...document.querySelectorAll("button, input, select, summary, a")]
  .filter((node) => node.checkVisibility() && !node.matches(".skip, input[type=checkbox]"))
  .map((node) => [node.outerHTML.slice(0, 80), node.getBoundingClientRect()])
  .filter(([, box]) => box.height < 44 || box.width < 44).map(([node, box]) => `${node} ${box.width}x${box.height}`)"""


def test_nothing_overlaps_or_scrolls_sideways_and_fingers_find_what_they_touch(open_page):
    page = open_page(width=360, speed="0")
    faults = []
    for part in PARTS:
        show(page, part)
        for width in reversed(WIDTHS):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(100)
            faults += [(part, width, "scrolls")] if scrolls(page) else []
            faults += [(part, width, overlap) for overlap in page.evaluate(OVERLAPS)]
        faults += [(part, "too small", small) for small in page.evaluate(SMALL)]
    assert faults == []


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The source of axe-core, from npm."""
    if not shutil.which("npm"):
        pytest.skip("no npm: axe-core is fetched with it")
    folder = tmp_path_factory.mktemp("axe")
    packed = subprocess.run(
        ["npm", "pack", "axe-core@4", "--silent"], cwd=folder, capture_output=True, text=True, timeout=120
    )
    if packed.returncode:
        pytest.skip(f"npm can't fetch axe-core: {packed.stderr.strip()[-200:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as tar:
        return tar.extractfile("package/axe.min.js").read().decode()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing_serious(open_page, axe, scheme):
    page = open_page(width=360 if scheme == "dark" else 1400, color_scheme=scheme, speed="0")
    page.evaluate(axe)
    bad = []
    for part in PARTS:
        show(page, part)
        found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
        bad += [(part, one["id"], one["nodes"][0]["html"][:120]) for one in found if one["impact"] in SERIOUS]
    assert bad == []


@pytest.mark.slow
def test_motion_stops_where_less_is_asked_for(open_page):
    page = open_page(reduced_motion="reduce")
    page.get_by_role("button", name="Hint").click()
    arrow = page.locator(".marks .arrow")
    arrow.wait_for(state="attached")
    assert arrow.evaluate("(node) => getComputedStyle(node).animationName") == "none"


def test_focus_goes_from_the_skip_link_to_the_board(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.pad') !== null")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_page_is_packed():
    text = Path("pyproject.toml").read_text()
    assert '"serve/page/*"' in text and '"report/page/*"' in text
