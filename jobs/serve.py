"""Serve models, for people to play with and for OpenAI's clients: a page, a game API, /v1/chat/completions."""

import argparse
import ipaddress
import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.options import Parser

if TYPE_CHECKING:
    from g1_ray.serve.config import ServeConfig

NAME = "g1_ray"
"""Of the application."""
EPILOG = """models: as g1-ray evaluate takes them; without any: the tiny model that ships, cold-started
  g1-ray serve                                           # a laptop, no network
  g1-ray serve runs/demo --follow                        # a run that trains: watch it get better
  g1-ray serve cold=tiny-coldstart "rl=runs/demo?temperature=0&engine.kind=vllm"
Off this machine (--host) a token is needed: export G1_RAY_SERVE_TOKEN=$(openssl rand -hex 16); see docs/serving.md"""


def options() -> Parser:
    """What the command takes."""
    parser = Parser("serve", __doc__, EPILOG)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="what is served (default: tiny-coldstart)")
    parser.add_argument("--follow", action="store_true", help="take up each new checkpoint of the runs among them")
    parser.add_argument("--port", type=int, default=8000, help="of the page and the API (default 8000)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1: this machine alone)")
    parser.add_argument("--hosts", nargs="+", default=[], metavar="NAME", help="names that the server is called by")
    parser.add_argument("--folder", default="runs/arena", help="where games and scores are kept (default runs/arena)")
    parser.add_argument("--replicas", type=int, default=1, metavar="N",
                        help="engines of each model, at most (default 1)")  # fmt: skip
    parser.add_argument("--min-replicas", type=int, default=1, metavar="N",
                        help="and at least (default 1); with 2 a model answers on where one of them dies")  # fmt: skip
    parser.add_argument("--rate", type=float, default=100.0, metavar="N",
                        help="requests a second of one client (default 100); behind a proxy all are one")  # fmt: skip
    parser.add_argument("--address", default="", help="Ray cluster to join (default: RAY_ADDRESS, else a local one)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """`g1-ray serve`."""
    args = options().parse_args(argv)
    config = config_in(args)

    from g1_ray.evaluation.named import parse_player

    models = config.served()
    for model in models:
        parse_player(model.spec).check()
    check_place(args)

    from g1_ray.logs import start_logging

    start_logging("serve")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    begun = time.monotonic()
    print(f"starting {', '.join(model.name for model in models)} ...", flush=True)
    bring_up(config, args)
    name = "127.0.0.1" if args.host in ("0.0.0.0", "::") else args.host
    print(f"http://{name}:{args.port}  up after {time.monotonic() - begun:.0f} s; Ctrl-C ends it", flush=True)
    ended.wait()
    print("ending ...", flush=True)
    take_down()
    return 0


def config_in(args: argparse.Namespace) -> "ServeConfig":
    """The options. Raises `ValueError`."""
    from g1_ray.serve.config import config_of

    given = {"models": args.models or ["tiny-coldstart"], "follow": args.follow, "folder": args.folder}
    replicas = {"min_replicas": args.min_replicas, "max_replicas": max(args.replicas, args.min_replicas)}
    return config_of({**given, **replicas, "hosts": args.hosts, "rate": args.rate})


def check_place(args: argparse.Namespace) -> None:
    """Raises `ValueError` where nobody can listen, or anybody could ask."""
    from g1_ray.files import check_writable
    from g1_ray.serve.guard import TOKEN, Rules

    check_writable(Path(args.folder), "folder")
    rules = Rules.from_environment()
    try:
        here = args.host == "localhost" or ipaddress.ip_address(args.host).is_loopback
    except ValueError:
        raise ValueError(
            f"--host {args.host}: expected an address, such as 0.0.0.0 for all of this machine's"
        ) from None
    if not here and not rules.token:
        raise ValueError(
            f"--host {args.host}: others could ask, so a token is needed.\n"
            f"export {TOKEN}=$(openssl rand -hex 16), and give it in the page's form or as Authorization: Bearer TOKEN"
        )
    if not 0 < args.port < 65536:
        raise ValueError(f"--port {args.port}: 1 to 65535")
    with socket.socket(socket.AF_INET6 if ":" in args.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((args.host, args.port))
        except OSError as error:
            raise ValueError(
                f"--port {args.port}: {args.host} can't be listened on ({error.strerror}); give another port"
            ) from None


def bring_up(config: "ServeConfig", args: argparse.Namespace) -> None:
    """Starts or joins Ray and runs the application, until it is healthy. Raises `ValueError` where it is not."""
    os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "g1_ray.serve.guard:proxy_layers"

    from g1_ray.cluster.join import LOCAL, find_cluster, join

    cluster = find_cluster(args.address)
    join(cluster, outlive_signals=True)
    from ray import serve
    from ray.serve.config import ProxyLocation
    from ray.serve.schema import LoggingConfig

    from g1_ray.serve.app import app

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    listening = {"host": args.host, "port": args.port}
    try:
        serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=listening, logging_config=quiet)
        serve.run(app(config), name=NAME, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        take_down()
        raise ValueError(f"the application does not come up: {str(error).strip().splitlines()[-1]}") from error
    if cluster.address != LOCAL and not listens(args.host, args.port):
        take_down()
        raise ValueError(
            f"--port {args.port}: Serve runs on that cluster already, and listens elsewhere; give its port.\n"
            "Where its head is another machine: serve deploy jobs/serve.yaml (docs/serving.md)."
        )


def listens(host: str, port: int) -> bool:
    """Whether anybody does."""
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True


def take_down() -> None:
    """Ends the application, in order, and Ray with it where Ray is our own."""
    import ray
    from ray import serve

    serve.delete(NAME)
    ray.shutdown()


if __name__ == "__main__":
    from jobs.__main__ import run

    raise SystemExit(run("serve", main))
