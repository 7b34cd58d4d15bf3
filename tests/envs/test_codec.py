"""Prompts and answers: what a careful reader accepts, what is refused and why, and how a description is scored."""

import random
import time
import timeit
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import Codec, Task, game_names
from envs.answers import Cause, Choices
from envs.codec import MAX_CHARS, PerceptionScore
from envs.described import read_table
from envs.wording import CELL_FILLERS, CHOICE_FILLERS, CONNECTIVES, FILLERS, SAME

CODECS = {name: Codec(Task.make(name)) for name in game_names()}
SHISEN, G2048 = CODECS["shisen"], CODECS["2048"]


def board_of(name, seed=0):
    game = Task.make(name).new_game()
    game.reset(seed)
    return game.perception()


@pytest.mark.parametrize("name", game_names())
def test_every_action_is_read_back_as_it_was_written(name):
    codec, board = CODECS[name], board_of(name)
    for action in range(codec.actions.num):
        answer = codec.read(codec.write(board, "because", action))
        assert (answer.action, answer.cause, answer.well_formed) == (action, None, True)
        assert codec.score_perception(answer.perception, board).exact
        assert answer.thinking.strip() == "because"


READABLE = [
    "(0, 1) (0, 2)",
    "\n(0, 1) (0, 2)\n",  # D6: the original played this as (0,0) (0,0)
    "  (0,1)(0,2) ",
    "(0, 1), (0, 2)",
    "(0, 1)\n(0, 2)",
    "(0, 1) and (0, 2)",
    "(0, 1) -> (0, 2)",
    "[0, 1] [0, 2]",
    "[(0, 1), (0, 2)]",
    "((0, 1), (0, 2))",
    "```\n(0, 1) (0, 2)\n```",
    "```text\n(0, 1) (0, 2)\n```",
    "`(0, 1) (0, 2)`",
    "**(0, 1) (0, 2)**",
    "(0, 1) (0, 2).",
    "（０，１）（０，２）",
    "(00, 01) (0, 2)",
    "(0, 2) (0, 1)",
    "(+0, 1) (0, 2)",
    "(0;1) (0;2)",
    "(0, 1)\u00a0(0, 2)",
]


@pytest.mark.parametrize("body", READABLE)
def test_a_careful_reader_reads_it(body):
    for text in (f"<answer>{body}</answer>", f"Sure.\n< Answer >{body}</ ANSWER >\n"):
        assert SHISEN.read(text).action == SHISEN.actions.action(1, 2)


UNREADABLE = {
    Cause.NO_ANSWER: [
        "",
        "(0, 1) (0, 2)",
        "<answer></answer>",
        "<answer> \n </answer>",
        "<think><answer>(0, 1) (0, 2)</answer></think>",
    ],
    Cause.SEVERAL_ANSWERS: ["<answer>(0, 1) (0, 2)</answer><answer>(0, 1) (0, 2)</answer>"],
    Cause.OUT_OF_BOARD: [
        "<answer>(0, 6) (0, 0)</answer>",
        "<answer>(6, 0) (0, 1)</answer>",
        "<answer>(-1, 0) (0, 1)</answer>",
        f"<answer>(0, {10**120}) (0, 1)</answer>",
    ],
    Cause.SAME_CELL: ["<answer>(0, 1) (0, 1)</answer>"],
    Cause.OVER_LONG: [
        "<answer>(0, 1) (0, 2)</answer>" + " " * MAX_CHARS,
        f"<answer>(0, {'1' * 400}) (0, 1)</answer>",
        f"<answer>{' ' * 20000}(0, 1) (0, 2)</answer>",
    ],
    Cause.MALFORMED: [
        "<answer>(0, 1) (0, 2)",
        "<answer>(0, 1)</answer>",
        "<answer>(0, 1) (0, 2) (0, 3)</answer>",
        "<answer>0 1 0 2</answer>",
        "<answer>(0.0, 1) (0, 2)</answer>",
        "<answer>(1e0, 1) (0, 2)</answer>",
        "<answer>(0_0, 1) (0, 2)</answer>",
        "<answer>(٠, ١) (٠, ٢)</answer>",
        "<answer>(0, ①) (0, 2)</answer>",
        "<answer>(0, 1\u200b) (0, 2)</answer>",
        "<answer>\u202e(0, 1) (0, 2)</answer>",
        "<answer>(0, 1)\x00(0, 2)</answer>",
        "<answer><answer>(0, 1) (0, 2)</answer></answer>",
        "<answer>(0, 1) (0, 2)<answer></answer>",
        "<answer>not (0, 1) (0, 2)</answer>",
    ],
}


@pytest.mark.parametrize("cause, text", [(cause, text) for cause, texts in UNREADABLE.items() for text in texts])
def test_the_rest_has_a_named_cause(cause, text):
    answer = SHISEN.read(text)
    assert (answer.action, answer.cause) == (None, cause)
    assert not answer.well_formed


ANSWERS = tomllib.loads((Path(__file__).parent / "answers.toml").read_text())["answers"]


@pytest.mark.parametrize(
    "group", ANSWERS, ids=[f"{group['game']}, {group['style']}: {group['read']}" for group in ANSWERS]
)
def test_answers_in_the_styles_of_models(group):
    codec = CODECS[group["game"]]
    wrong = {}
    for text in group["texts"]:
        answer = codec.read(f"<answer>{text}</answer>")
        read = answer.cause if answer.action is None else codec.actions.write(answer.action)
        if read != group["read"]:
            wrong[text] = read
    assert not wrong


def test_every_form_of_the_page_is_read():
    page = (Path(__file__).parents[2] / "docs" / "answers.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        for codec, cell in zip((G2048, SHISEN), row[1:], strict=True):
            body = cell.strip().removeprefix("`").removesuffix("`")
            action = 0 if codec is G2048 else codec.actions.action(1, 2)
            assert not body or codec.read(f"<answer>{body}</answer>").action == action, body


def test_there_are_hundreds_of_them_and_every_word_of_the_tables_may_stand_in_one():
    assert sum(len(group["texts"]) for group in ANSWERS) >= 300
    for word in {*FILLERS, *CHOICE_FILLERS} - {"left", "right"}:
        assert G2048.read(f"<answer>{word}: down</answer>").action == 2, word
    for word in {*FILLERS, *CELL_FILLERS}:
        if word not in CONNECTIVES:
            assert SHISEN.read(f"<answer>{word} (0, 1) (0, 2)</answer>").action == SHISEN.actions.action(1, 2), word
    for word in CONNECTIVES:
        assert SHISEN.read(f"<answer>(0, 1) {word} (0, 2)</answer>").action == SHISEN.actions.action(1, 2), word
    for number, action in enumerate(SAME):
        for word in SAME[action].split():
            assert G2048.read(f"<answer>{word}</answer>").action == number, word


@pytest.mark.parametrize("word", ["not", "never", "down", "except", "up", "foo", "不", "¬", "or", "left or"])
@pytest.mark.parametrize("fence", ["```{}```", "```{}\n```", "```\n{}\n```", "``` {} ```", "Answer:\n```text\n{}\n```"])
def test_a_fence_swallows_no_word(word, fence):
    assert G2048.read(f"<answer>{fence.format(f'{word} right')}</answer>").cause == Cause.MALFORMED
    broken = fence.format(f"{word}\nright")  # the word where a language may stand
    assert G2048.read(f"<answer>{broken}</answer>").cause == Cause.MALFORMED


def test_no_word_of_a_game_is_taken_for_a_filler_or_for_another_games():
    walk = Choices("move", "pick up", "up", "stay", "a")
    cases = {"move": 0, "I pick up": 1, "pick up": 1, "go up": 2, "1: pick up": 1, "The answer is a": 4, "Stay!": 3}
    cases |= {body: Cause.MALFORMED for body in ("move up", "pick up or up", "a move", "↓", "left", "0: up")}
    assert {body: walk.read(body) for body in cases} == cases


def test_directions_are_words_or_their_numbers():
    for body, action in [("up", 0), (" RIGHT ", 1), ("**Down**", 2), ("3", 3), ("３", 3), ("left.", 3), ('"up"', 0)]:
        assert G2048.read(f"<answer>{body}</answer>").action == action
    causes = {
        "4": Cause.OUT_OF_BOARD,
        "-1": Cause.OUT_OF_BOARD,
        "9" * 200: Cause.OUT_OF_BOARD,
        "up down": Cause.MALFORMED,
    }
    causes |= {"upp": Cause.MALFORMED, "1.0": Cause.MALFORMED, "²": Cause.MALFORMED, "up\u200d": Cause.MALFORMED}
    for body, cause in causes.items():
        assert G2048.read(f"<answer>{body}</answer>").cause == cause


def test_the_format_is_right_only_in_order_once_each_and_not_empty():
    """D15: the original gave its format reward to empty tags and to tags in any order."""
    p, t, a = "<perception>x</perception>", "<think>x</think>", "<answer>up</answer>"
    assert G2048.read(f"{p}\n{t}\n{a}").well_formed
    for text in (t + p + a, p + t + t + a, p + a, a, "so: " + p + t + a, p + t + a + "!", p + "<think> </think>" + a):
        answer = G2048.read(text)
        assert answer.action == 0 and not answer.well_formed
    assert not G2048.read(p + t + "<answer></answer>").well_formed
    assert not G2048.read("<perception></perception><think></think><answer></answer>").well_formed


def test_what_the_model_thinks_is_not_its_answer():
    answer = G2048.read("<think>maybe <answer>up</answer>?</think><answer>down</answer>")
    assert answer.action == 2 and answer.thinking == "maybe <answer>up</answer>?"


TRUTH = np.array([[1, 0, 2, 3], [0, 0, 0, 0], [4, 4, 0, 1], [2, 0, 0, 5]], np.uint8)
WORDS = "2 | - | 4 | 8\n- | - | - | -\n16 | 16 | - | 2\n4 | - | - | 32"


@pytest.mark.parametrize(
    "text, score",
    [
        (WORDS, (16, 0, 0, 0)),
        (WORDS.replace(" ", "").upper(), (16, 0, 0, 0)),
        ("```\n\n" + WORDS + "\n```", (16, 0, 0, 0)),
        ("\n".join(f"| {line} |" for line in WORDS.split("\n")), (16, 0, 0, 0)),
        ("| a |\n".replace("a", "---|---|---|---") + WORDS, (16, 0, 0, 0)),
        (WORDS.replace("32", "64"), (15, 1, 0, 0)),
        (WORDS.replace("16 | 16", "16"), (15, 0, 1, 0)),  # a missing cell, not four wrong ones
        (WORDS.replace("16 | 16", "16 | 16 | 16"), (16, 0, 0, 1)),  # a doubled one
        (WORDS.replace("2 | - | 4 | 8", "- | 2 | 4 | 8"), (14, 2, 0, 0)),  # by position
        (WORDS.replace("- | - | - | -\n", ""), (12, 0, 4, 0)),  # a missing row
        (WORDS + "\n" + WORDS, (16, 0, 0, 16)),
        ("", (0, 0, 16, 0)),
        (None, (0, 0, 16, 0)),
        ("I see a board.", (0, 1, 15, 0)),
    ],
)
def test_perception_is_scored_cell_by_cell(text, score):
    result = G2048.score_perception(text, TRUTH)
    assert result == PerceptionScore(*score)
    assert result.exact == (score == (16, 0, 0, 0))
    assert result.share == score[0] / sum(score)


BLANK = WORDS.replace("-", " ")
BORDERED = [f"| {line} |" for line in WORDS.split("\n")]
RULED = "|---|---|---|---|"


@pytest.mark.parametrize(
    "text",
    [
        *(
            WORDS.replace("-", word)
            for word in ("0", ".", "_", "—", "null", "None", "empty", "[ ]", "`-`", "--", "blank")
        ),
        BLANK,
        BLANK.replace(" | ", "|"),
        "\n".join(line.strip() for line in BLANK.split("\n")),
        WORDS.replace("- | - | - | -", " |  |  | "),
        "\n".join(f"|{line}|" for line in BLANK.split("\n")),
        "\n".join(f"Row {row}: {line}" for row, line in enumerate(WORDS.split("\n"))),
        "\n".join(f"**Row {row}:** {line}" for row, line in enumerate(WORDS.split("\n"), 1)),
        "\n".join(f"{row}: {line}" for row, line in enumerate(WORDS.split("\n"))),
        "\n".join(f"R{row} | {line}" for row, line in enumerate(WORDS.split("\n"))),
        "\n".join(f"| Row {row} {line}" for row, line in enumerate(BORDERED)),
        "\n".join(["|   | 0 | 1 | 2 | 3 |", "|---" + RULED, *(f"| {row} {line}" for row, line in enumerate(BORDERED))]),
        "\n".join(
            ["| Row | Col 0 | Col 1 | Col 2 | Col 3 |", *(f"| {row} {line}" for row, line in enumerate(BORDERED))]
        ),
        "Col 0 | Col 1 | Col 2 | Col 3\n" + WORDS,
        "c1 | c2 | c3 | c4\n" + WORDS,
        "0 | 1 | 2 | 3\n" + WORDS,
        "\n".join(["| A | B | C | D |", RULED, *BORDERED]),
        "\n".join(["|  |  |  |  |", RULED, *BORDERED]),
        "\n".join([BORDERED[0], RULED, *BORDERED[1:]]),
        WORDS.replace("16", "**16**").replace("2", "2"),
        WORDS.replace("4", "`4`"),
        WORDS.replace("8", "_8_").replace("32", '"32"'),
    ],
)
def test_a_description_is_read_as_a_careful_reader_would(text):
    assert G2048.score_perception(text, TRUTH) == (16, 0, 0, 0)


def test_blank_cells_at_the_edges_are_cells():
    assert G2048.table(" | 2 |   | 4") == [["-", "2", "-", "4"]]
    assert G2048.table("2 | 4 |  | ") == [["2", "4", "-", "-"]]
    assert G2048.table(" | 2 | 4 | \n2 | 2 | 4 | 8") == [["-", "2", "4", "-"], ["2", "2", "4", "8"]]
    assert G2048.table("|  | 2 |  | 4 |") == [["-", "2", "-", "4"]]


def test_what_may_be_another_board_is_not_read_as_this_one():
    short = "\n".join(["| - | 2 |", "| 4 | 8 |", "| - | 4 |", "| 2 | 2 |"])  # two cells a row and a frame
    assert {len(row) for row in G2048.table(short)} == {2}
    assert [len(row) for row in G2048.table("| 2 | 4 |\n| 2 | 4 | 8 | 16 |")] == [2, 4]
    labels = "\n".join(f"Row {row}: 2 | 4 | 8 | 16" for row in (2, 0, 1, 3))
    assert G2048.table(labels)[0][0] == "row 2: 2"
    assert len(G2048.table("2 | 4 | 8 | 16\n" + WORDS)) == 5  # five rows, none of them a header
    digits = ["-", "0", "1", "2", "_", "null"]
    assert read_table("0 | _ | null | .", digits, 2, 4) == [["0", "_", "null", "-"]]
    assert read_table("0 | 1 | 2\n0 | 1 | 2\n1 | 1 | 2", digits, 2, 3)[0] == ["0", "1", "2"]
    assert read_table("0 | A", ["-", "A", "3"], 2, 2) == [["0", "a"]]  # a letter or a digit, misread


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_description_adds_up(text):
    score = G2048.score_perception(text, TRUTH)
    assert score.right + score.wrong + score.missing == 16 and score.extra >= 0


@given(st.text(max_size=400) | st.text("<>/answerthinkpcio (0,123)[]-`*.", max_size=400))
@settings(max_examples=500, deadline=None)
def test_any_text_gives_an_action_or_a_cause(text):
    for codec in CODECS.values():
        answer = codec.read(text)
        assert (answer.action is None) != (answer.cause is None)
        assert answer.action is None or 0 <= answer.action < codec.actions.num


HOSTILE = [
    "<answer>(0, " + "9" * 10**6 + ") (0, 1)</answer>",
    "<answer>" * 10**5,
    "<answer>" * 7000,
    "<think><perception><answer>" * 2400,
    "</answer>" * 7000,
    "<answer>" + "(" * 60000 + "</answer>",
    "<answer>" + "`" * 60000 + "</answer>",
    "<answer>```" + "a" * 60000 + "</answer>",
    "<answer>" + "(0, 1) " * 8000 + "</answer>",
    "< " * 32000,
    "<\t\t\t\t" * 13000,
    "\0" * 10**6,
    "\0" * 65000,
    "\u202e" * 65000,
    "\u200b" * 65000,
    "a" * 10**6,
    "<perception>" + "|" * 65000 + "</perception>",
    "<perception>" + "|\n" * 32000 + "</perception>",
    "<perception>" + "--|" * 21000 + "</perception>",
    "<perception>" + "2 | - | 4\n" * 6000 + "</perception>",
    "<perception>" + ("2|" * 300 + "\n") * 100 + "</perception>",
    "<perception>" + "row 0: " * 9000 + "</perception>",
    "<perception>" + "| " * 3000 + "\n" + "[(*`" * 9000 + "</perception>",
    *(
        f"<answer>{piece * (250 // len(piece))}</answer>"
        for piece in (
            "the ",
            "- ",
            "\\",
            "<b>",
            "``` ",
            '"reason":"',
            "tile 1",
            "(0,1)",
            "0,1 ",
            "first ",
            "row 1",
            "&",
            "上?",
        )
    ),
]


@pytest.mark.parametrize("name", ["2048", "shisen"])
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_take_less_than_50_ms(name, text):
    codec, board = CODECS[name], board_of(name)
    best = float("inf")
    for _ in range(3):  # of the processor, the best of three: the machine may be busy
        start = time.process_time()
        answer = codec.read(text)
        codec.score_perception(answer.perception, board)
        best = min(best, time.process_time() - start)
    assert answer.action is None
    assert best < 0.05


SPICE = [
    "<answer>",
    "</answer>",
    "<think>",
    "</think>",
    "<perception>",
    "</perception>",
    "```",
    "**",
    "\n",
    "\0",
    "\u200b",
]
SPICE += [
    "\u202e",
    "０",
    "（",
    "|",
    "(",
    ")",
    ",",
    "9" * 400,
    "-",
    "(0, 1)",
    "up",
    " ",
    "1e9",
    "²",
    "٣",
    "\ud800",
    "<answer",
]


def mutated_answers(num, seed):
    """Answers with cuts, doublings, swaps and strange characters put in; all parsed, timed, and played if they read."""
    rng = random.Random(seed)
    games = {name: Task.make(name).new_game() for name in CODECS}
    for game in games.values():
        game.reset(0)
    worst, read = 0.0, 0
    seeds = {name: [CODECS[name].write(board_of(name), "think", a) for a in (0, 1, 3)] for name in CODECS}
    names = list(CODECS)
    for i in range(num):
        name = names[i % len(names)]
        codec, game, text = CODECS[name], games[name], rng.choice(seeds[name])
        for _ in range(rng.randint(1, 6)):
            near = max(0, len(text) - 50) if rng.random() < 0.7 else 0  # mostly the answer itself
            a, b = sorted((rng.randint(near, len(text)), rng.randint(near, len(text))))
            match rng.randrange(5):
                case 0:
                    text = text[:a] + rng.choice(SPICE) + text[a:]
                case 1:
                    text = text[:a] + text[min(b, a + 12) :]
                case 2:
                    text = text[:b] + text[a:b] + text[b:] if len(text) < 4000 else text[:a]
                case 3:
                    text = text[:a] + chr(rng.randrange(0x3000)) + text[a + 1 :]
                case 4:
                    text = text.swapcase()
        start = time.perf_counter()
        answer = codec.read(text)
        took = time.perf_counter() - start
        if took > 0.01:  # its own time, or the machine's, busy with something else?
            took = min(timeit.repeat(lambda: codec.read(text), number=1, repeat=5))  # noqa: B023
        worst = max(worst, took)
        assert (answer.action is None) != (answer.cause is None)
        if answer.action is None:
            continue
        read += 1
        legal = game.legal_actions()
        board = game.perception()
        outcome = game.step(answer.action)
        assert outcome.legal == (answer.action in legal)
        if not outcome.legal:
            assert (game.perception() == board).all()
        if game.over:
            game.reset(i)
    return worst, read


def test_mutated_answers_never_raise_nor_move_illegally():
    worst, read = mutated_answers(20_000, 0)
    assert read > 1000
    assert worst < 0.5  # the true bound is measured by `make fuzz` on a quiet machine


@pytest.mark.fuzz
@pytest.mark.timeout(3000)
def test_a_million_mutated_answers():
    worst, read = mutated_answers(1_000_000, 1)
    print(f"worst case {1e3 * worst:.1f} ms, {read} read as moves")
    assert 50_000 < read < 800_000
    assert worst < 0.05
