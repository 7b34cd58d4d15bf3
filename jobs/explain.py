"""Explain rewards: the moves of a board, what became of an answer, and how a group's returns turned into advantages."""

import importlib.util
import sys
from pathlib import Path

from g1_ray.files import read_text
from g1_ray.tables import visible
from jobs.options import Parser, add_task_options, add_trust_options, check_numbers, task_of, trust

WHAT = """what to explain:
  GAME                           a board, by --seed, --moves and the options of its task, and with --answer an answer
  RUN:GROUP                      a group of a training run, such as runs/quickstart:12
  RUN:GAME/PLAYER/SEED/MOVE      a move of an evaluation, such as runs/quickstart:2048/oracle/1000000/3
"""


def options() -> Parser:
    """What the command takes."""
    parser = Parser("explain", __doc__, WHAT)
    parser.add_argument("what", help="GAME, RUN:GROUP or RUN:GAME/PLAYER/SEED/MOVE")
    add_task_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="which board (default 0)")
    parser.add_argument("--moves", default="", help="moves to play first: 'up, left' or '(0, 1) (0, 2); (1, 1) (2, 1)'")
    parser.add_argument("--reward", default="ternary", help="reward that regrets are counted in (default ternary)")
    parser.add_argument(
        "--lookahead", type=int, default=0, help="random moves after each, as games.N.lookahead has it (default 0)"
    )
    answer = parser.add_mutually_exclusive_group()
    answer.add_argument("--answer", metavar="TEXT", help="an answer to that board, whole")
    answer.add_argument("--answer-file", metavar="FILE", help="a file with one; - for the standard input")
    add_trust_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray explain WHAT`."""
    args = options().parse_args(argv)
    trust(args)
    folder, _, part = args.what.partition(":")
    if part and Path(folder).is_dir():
        print(visible(explain_run(Path(folder), part)))
        return 0
    if part and ("/" in folder or importlib.util.find_spec(folder.partition(".")[0]) is None):
        raise ValueError(f"{args.what}: {folder!r} is neither a folder nor a module; give GAME, RUN:GROUP or "
                         "RUN:GAME/PLAYER/SEED/MOVE")  # fmt: skip
    check_numbers(args, seed=0, lookahead=0)
    text = args.answer if args.answer_file is None else read(args.answer_file)

    from envs.lookahead import Worth
    from g1_ray.report.explain import explain_answer, explain_state, play_moves

    task = task_of(args.what, args.preset, args.reasoning, args.perception)
    worth = Worth(args.reward, args.lookahead)
    state, played = play_moves(task, args.seed, args.moves, worth)
    print(*([played, ""] if played else []), explain_state(state, worth), sep="\n")
    if text is not None:
        print(f"\n{visible(explain_answer(state, text, worth))}")
    return 0


def explain_run(folder: Path, part: str) -> str:
    """A group, or a move, of what is in a folder."""
    from g1_ray.report.explain import explain_group, explain_move

    if part.isdecimal():
        return explain_group(folder, int(part))
    game, _, rest = part.partition("/")
    player, *numbers = rest.rsplit("/", 2)  # a player may be called org/model
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{folder}:{part}: expected the number of a group, or GAME/PLAYER/SEED/MOVE")
    return explain_move(folder, game, player, *map(int, numbers))


def read(path: str) -> str:
    """The text of a file, or of the standard input."""
    if path == "-":
        return sys.stdin.read()
    return read_text(Path(path))


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("explain", main))
