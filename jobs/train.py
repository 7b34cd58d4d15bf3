"""Train a vision-language model on the games of a config, from start to table: rollouts, steps, evaluation, report."""

import contextlib
import itertools
import json
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from g1_ray.tables import visible
from jobs.options import Parser, add_config_options

if TYPE_CHECKING:
    from g1_ray.cluster.join import Cluster
    from g1_ray.config import RunConfig
    from g1_ray.evaluation.evaluation import Evaluation
    from g1_ray.evaluation.job import Entry
    from g1_ray.models.words import Phrases
    from g1_ray.pipeline.run import Pipeline
    from g1_ray.runs.run_folder import RunFolder


WORK = {
    "answer-tokens": "tokens of an answer, in the mean (default: rollout.max_tokens)",
    "engine-rate": "tokens/s that an engine samples, as measured: says how long the run takes",
    "rank-rate": "tokens/s that a rank of the learner trains on, as measured; with --engine-rate",
}
"""What nobody knows before a run, and its work follows from."""


def options() -> Parser:
    """What the command takes."""
    parser = Parser("train", __doc__)
    add_config_options(parser, "jobs/configs/quickstart.toml", "optimizer.lr=1e-5 games.0.ratio=2")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, what it needs, and whether it fits")
    parser.add_argument("--resume", nargs="?", const="yes", default="no", choices=("yes", "no", "auto"),
                        help="go on from the run's newest checkpoint; auto: if there is a run, else start")  # fmt: skip
    parser.add_argument("--address", default="", help="Ray cluster to join (default: RAY_ADDRESS, else a local one)")
    parser.add_argument("--cluster", default="", metavar="YAML", help="its file, where it grows: what it may grow to")
    parser.add_argument("--assume", default="", metavar="GPUS", help="with --dry-run: GPUs that are not there, such "
                        "as 1x24GB, or 8x80GB,4x24GB for two nodes")  # fmt: skip
    for name, what in WORK.items():
        parser.add_argument(f"--{name}", type=float, default=0.0, metavar="N", help=f"with --dry-run: {what}")
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray train`."""
    args = options().parse_intermixed_args(_with_values(sys.argv[1:] if argv is None else argv))
    if args.assume and (args.cluster or not args.dry_run):
        raise ValueError(f"--assume {args.assume}: goes with --dry-run, and without --cluster")

    given = (args.answer_tokens, args.engine_rate, args.rank_rate)
    if (any(given) and not args.dry_run) or min(given) < 0 or (args.engine_rate > 0) != (args.rank_rate > 0):
        raise ValueError("--answer-tokens, and both --engine-rate and --rank-rate, above 0: go with --dry-run")

    from g1_ray.cluster.join import LOCAL, find_cluster
    from g1_ray.cluster.placement import check_run, this_machine
    from g1_ray.config import check_software, load_config
    from g1_ray.engines.make import check_engine
    from g1_ray.models.find import check_model
    from g1_ray.runs.run_folder import RunFolder
    from g1_ray.runs.trackers import check_trackers

    config = load_config(args.config, args.overrides)
    if args.dry_run:
        from g1_ray.cluster.memory import shape_of
        from g1_ray.cluster.placement import dry_run, nodes_assumed, nodes_of_yaml
        from g1_ray.cluster.work import work_table

        nodes = nodes_of_yaml(args.cluster) if args.cluster else nodes_assumed(args.assume) if args.assume else None
        shape = shape_of(config.model.path)
        work = work_table(config, shape, args.answer_tokens, given[1:] if args.engine_rate else ()) if shape else ""
        text, fits = dry_run(config, nodes, work)
        print(text)
        return 0 if fits else 2
    resume = args.resume == "yes" or (args.resume == "auto" and (config.folder / "config.json").is_file())
    RunFolder.check(config, resume)
    cluster = find_cluster(args.address)
    check_software(config)
    check_trackers(config.trackers)
    check_engine(config.engine.kind)
    check_model(config.model.path)
    if cluster.address == LOCAL:
        check_run(config, this_machine())
    for name, path in config.eval.baselines.items():
        check_model(path, f"eval.baselines.{name}")
    return train(config, resume, cluster, args.cluster)


def _with_values(argv: Sequence[str]) -> list[str]:
    """Arguments in which `--resume` takes none but `auto` from what stands after it."""
    after = [*argv[1:], ""][: len(argv)]
    return [f"{a}=yes" if a == "--resume" and b != "auto" else a for a, b in zip(argv, after, strict=True)]


def train(config: "RunConfig", resume: bool = False, cluster: "Cluster | None" = None, cluster_file: str = "") -> int:
    """Runs it all; returns the exit status."""
    folder, words = _open(config, resume, cluster, cluster_file)

    from g1_ray.logs import start_logging

    start_logging("driver", folder.path)
    for look in folder.track():
        print(f"curves as they come: {look}", flush=True)
    with stopping_on_signals() as stop:
        _run(config, words, folder, stop)
    return 0


def _run(config: "RunConfig", words: "Phrases", folder: "RunFolder", stop: threading.Event) -> None:
    """Trains, evaluates and reports, in the folder of the run; training is over early where it is to `stop`."""
    from g1_ray.models.find import model_path
    from g1_ray.pipeline.run import Pipeline
    from g1_ray.runs.progress import Progress

    begun = time.monotonic()
    pipeline = Pipeline(config, model_path(config.model.path), words, folder)
    evaluation = None
    try:
        with Progress(config) as progress:
            progress.note("starting the actors")
            pipeline.start(folder.goes_on_from, progress.note)
            progress.note(f"started in {time.monotonic() - begun:.0f} s")
            progress.note(f"training from step {pipeline.version} on")

            def on_step(step: int, metrics: dict[str, float]) -> None:
                folder.log(step, metrics)
                progress.step(step, metrics)

            pipeline.train(on_step, stop.is_set, progress.note)
        trained_s = time.monotonic() - begun
        trained = str(folder.checkpoint(pipeline.version))
        if config.eval.runs and not stop.is_set():
            evaluation = open_evaluation(config, folder.path, trained)
            if config.eval.engine in ("", config.engine.kind):
                answer_here(pipeline, evaluation, trained, stop)
    except Exception as error:
        folder.note(f"failed: {error}", traceback.format_exc())
        raise
    finally:
        pipeline.close()
    if pipeline.version:
        folder.save_curves()
    results = finish_evaluation(evaluation, config, trained, stop) if evaluation else []
    about = {"training_s": trained_s, "stopped": stop.is_set(), "results": results}
    folder.write_report(pipeline.books, time.monotonic() - begun, **about)
    folder.close()
    if stop.is_set():
        print(f"stopped at step {pipeline.version}; go on with --resume")
    if results:
        say_verdict(config, folder.path, results)
    print(f"{folder.path}: curves.png, {'eval/table.md, eval/*.webp, ' if results else ''}report.json, checkpoints")


def _open(
    config: "RunConfig", resume: bool, cluster: "Cluster | None", cluster_file: str
) -> tuple["RunFolder", "Phrases"]:
    """The run's folder and the words of its prompts, once there is a cluster with room for it.

    Nothing is left behind where there is none, and nothing is started where the model can't be asked.
    """
    from g1_ray.cluster.join import connect
    from g1_ray.models.find import model_path
    from g1_ray.rollout.env_worker import phrases
    from g1_ray.runs.run_folder import RunFolder

    words = phrases(config, model_path(config.model.path))
    folder = RunFolder.open(config, resume=resume)
    for key, change in folder.changed.items():
        print(visible(f"goes on with another {key}: {change}"), flush=True)
    try:
        connect(config, cluster, cluster_file)  # before anything imports ray: it settles how Ray authenticates
    except BaseException:
        folder.discard()
        raise
    return folder, words


def open_evaluation(config: "RunConfig", folder: Path, checkpoint: str) -> "Evaluation":
    """The evaluation at the end: every player on every game."""
    from g1_ray.evaluation.evaluation import Evaluation, entries_of
    from g1_ray.evaluation.folder import Protocol

    entries = entries_of(config, {**config.eval.baselines, config.eval.label: checkpoint})
    protocol = Protocol(config.eval.runs, config.eval.moves, config.eval.seed)
    print(f"evaluating {len(entries)} players, {protocol.runs} runs of {protocol.moves} moves each", flush=True)
    its = folder / "eval" / "config.json"
    if not its.is_file() or json.dumps(checkpoint) not in its.read_text():  # of an earlier checkpoint
        shutil.rmtree(folder / "eval", ignore_errors=True)
    return Evaluation.open(folder / "eval", entries, protocol)


def answer_here(pipeline: "Pipeline", evaluation: "Evaluation", checkpoint: str, stop: threading.Event) -> None:
    """Has the trained model play on the engines that have it already, until it is to stop."""
    from g1_ray.pipeline.outliving import BrokenOff
    from jobs.evaluate import Show

    with Show(evaluation) as show, contextlib.suppress(BrokenOff):
        for job in evaluation.jobs():
            if job.entries[0].player.what == checkpoint:
                for news in itertools.chain.from_iterable(pipeline.checkup.answer(job)):
                    show(evaluation.hear(news))
                    if stop.is_set():
                        return


class Stopped(Exception):
    """The evaluation is to stop: what was answered is kept, and gone on from."""


def finish_evaluation(
    evaluation: "Evaluation", config: "RunConfig", checkpoint: str, stop: threading.Event
) -> list[dict[str, object]]:
    """Has all others play; the table, in the terminal and in the run folder, and a clip of the trained model's.

    No results where it is to stop before that.
    """
    from g1_ray.evaluation.clips import save_clip
    from g1_ray.evaluation.evaluation import play_all
    from g1_ray.evaluation.moves import file_name
    from g1_ray.evaluation.results import as_json, results_table, write_results
    from g1_ray.tables import aligned
    from jobs.evaluate import Show

    with Show(evaluation) as show:

        def tell(entry: "Entry | None") -> None:
            show(entry)
            if stop.is_set():
                raise Stopped

        with contextlib.suppress(Stopped):
            play_all(evaluation, tell, config.eval.timeout_s)
    evaluation.folder.close()
    if stop.is_set():
        return []
    results = evaluation.results()
    rows = results_table(results)
    folder = config.folder / "eval"
    write_results(folder, results, rows)
    for entry in evaluation.entries:
        if entry.player.what == checkpoint:
            path = folder / file_name(*entry.key, ".webp")
            save_clip(evaluation.runs[entry.key][0], path, entry.player.name, 1200, 30)
    print(aligned(rows))
    return as_json(results)


def say_verdict(config: "RunConfig", folder: Path, results: Sequence[Mapping[str, object]]) -> None:
    """What training came to in words, the first picture to look at, and what may be done next."""
    from g1_ray.evaluation.results import verdict
    from g1_ray.models.card import evaluated, played

    before = config.before or "random-legal"
    print("\n" + "\n".join(verdict(results, config.eval.label, before) or [f"{config.eval.label}: see the table"]))
    clips = sorted((folder / "eval").glob("*.webp"))
    print(f"\nfirst picture: {clips[0] if clips else folder / 'curves.png'}\nnext:")
    print(f"  g1-ray report {folder}    # curves, tables, every rollout step by step, in one page")
    games = {game.name: game.task() for game in config.games}
    print(f"  g1-ray play {played(next(iter(games.values())))} --player {folder}")
    others = f"{config.model.path} teacher --out {folder}-eval"
    print(f"  g1-ray evaluate --games {evaluated(games)} --players {folder} {others}\n")


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C or SIGTERM: the step in progress ends, and is saved. The second one ends the process.

    Signals do what they did before, afterwards.
    """
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("\nstopping after this step; once more to stop at once", flush=True)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("train", main))
