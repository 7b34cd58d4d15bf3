"""All games of a server: made, played, kept on disk, scored. A plain class; what runs it on Ray is in app.py.

    <folder>/sessions/ab/ID.jsonl    a session: its head, then a line for every event, written before it is answered
    <folder>/scores.jsonl            a line for every lane that came to its end
    <folder>/secret                  what replay links are signed with

A session is in memory while it is played, and read from its file when it is asked for again: after a death, too. Its
file is the truth. Scores are derived from it: what a death kept from being scored is scored at the next start.
"""

import re
import secrets
import tempfile
import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs import PLAYERS, Task, game_names
from envs.options import nearest
from g1_ray.evaluation.play import Question
from g1_ray.files import Journal, Lock, read_lines, write_text
from g1_ray.seeds import seed_of
from g1_ray.serve.links import read_link, write_link
from g1_ray.serve.scores import Scores, score_of
from g1_ray.serve.session import MAX_MOVES, PERSON, Event, Lane, Refused, Session, action_of
from g1_ray.serve.views import lane_view, move_view, options_view, replay_view, seen_view, session_view, task_view

LOADED = 256
"""Sessions in memory."""
MAX_LANES = 4
MAX_EVENTS = 5 * MAX_MOVES
"""Of a lane: after so many nothing more is taken."""
MAX_PIXELS = 1 << 20
"""Of the picture of a board."""
NAME = re.compile(r"[^\W_][\w .'-]{0,23}")
_ID = re.compile(r"[A-Za-z0-9_-]{16}")
_RECENT_S = 120.0
"""How long before the last score a session may have ended without one."""


class Arena:
    """The games in a folder. Its methods may be called from several threads; views are JSON (`views.py`).

    `models`: the names of the models that can sit down. Raises `ValueError` where another process has the folder.
    """

    def __init__(self, folder: Path, models: Sequence[str]) -> None:
        self._lock = Lock(folder)
        self.folder, self.models = folder, tuple(models)
        (folder / "sessions").mkdir(exist_ok=True)
        self._secret = _secret(folder / "secret")
        self._loaded: OrderedDict[str, tuple[Session, threading.RLock]] = OrderedDict()
        self._guard = threading.Lock()
        self.scores = Scores(folder / "scores.jsonl")
        for path in self._unscored():
            self._open(path.stem)

    def close(self) -> None:
        """Lets another process have the folder."""
        self._lock.release()

    # Sessions

    def create(
        self,
        game: str,
        seats: Sequence[str],
        name: str = "",
        seed: int | None = None,
        preset: str = "",
        reasoning: int | Mapping[str, Any] | None = None,
        perception: int | Mapping[str, Any] | None = None,
        label: str = "",
    ) -> dict[str, Any]:
        """A new session. Raises `Refused`."""
        task = task_of(game, preset, reasoning, perception)
        if not 1 <= len(seats) <= MAX_LANES:
            raise Refused(422, "seats", f"{len(seats)} seats: give 1 to {MAX_LANES}")
        for seat in seats:
            self._check_seat(seat)
        name = self._checked_name(name) if PERSON in seats or name else ""
        seed = secrets.randbelow(1 << 31) if seed is None else seed
        if not 0 <= seed < 1 << 53:
            raise Refused(422, "seed", f"seed {seed}: 0 to 2^53 - 1")
        session = Session(secrets.token_urlsafe(12), label or game, task, seed, tuple(seats), name, time.time())
        path = self._path(session.id)
        path.parent.mkdir(exist_ok=True)
        self._write(path, session.head())
        with self._guard:
            self._remember(session)
        return session_view(session, self.models)

    def session(self, id: str) -> dict[str, Any]:
        """A session as it stands. Raises `Refused`."""
        session, lock = self._open(id)
        with lock:
            return session_view(session, self.models)

    def move(self, id: str, lane: int, revision: int, action: int | None = None, text: str = "") -> dict[str, Any]:
        """A person's move, by its number or in words. Raises `Refused`."""
        session, _ = self._open(id)
        if (action is None) == (not text):
            raise Refused(422, "move", "give the move's action, or its text")
        action = action_of(session.task, text) if action is None else action
        return self._take(id, lane, lambda its: Event(revision, "move", PERSON, action, at=time.time()))

    def classic(self, id: str, lane: int, revision: int) -> dict[str, Any]:
        """A move of the classic player that sits there. Raises `Refused`."""

        def moved(its: Lane) -> Event:
            if revision < its.revision and its.events[revision].kind == "move":
                return its.events[revision]  # was asked for before
            if its.seat not in PLAYERS:
                raise Refused(409, "not_your_turn", f"{its.seat} plays here, and is no classic player")
            if its.over or revision != its.revision:
                return Event(revision, "move", its.seat, 0)  # refused with its reason
            rng = np.random.default_rng(seed_of("player", its.seat, its.table.seed, len(its.table.moves)))
            action = PLAYERS[its.seat](its.table.game, rng)
            return Event(revision, "move", its.seat, action, at=time.time())

        return self._take(id, lane, moved)

    def question_or_move(self, id: str, lane: int, revision: int) -> Question | dict[str, Any]:
        """Has the one who sits there move: what a model is to be asked, or the view after a classic player's move."""
        session, lock = self._open(id)
        with lock:
            its = session.lane(lane)
            seat = its.events[revision].by if revision < its.revision else its.seat
        return self.classic(id, lane, revision) if seat in PLAYERS else self.question(id, lane, revision)

    def question(self, id: str, lane: int, revision: int) -> Question | dict[str, Any]:
        """What the model that sits there is to be asked; the lane's view where it has answered already."""
        session, lock = self._open(id)
        with lock:
            its = session.lane(lane)
            if revision < its.revision and its.events[revision].kind == "move":
                return self._view(session, lane, its.events[revision])
            if its.seat not in self.models:
                raise Refused(409, "not_your_turn", f"{its.seat} plays here, and is no model of this server")
            event = Event(revision, "move", its.seat, None, {})
            its.known(event)
            its.check(event)
            return its.question()

    def answer(self, id: str, lane: int, revision: int, model: str, reply: Mapping[str, Any]) -> dict[str, Any]:
        """A model's answer; one that came before is kept."""

        def answered(its: Lane) -> Event:
            before = its.events[revision] if revision < its.revision else None
            if before is not None and before.kind == "move" and before.by == model:
                return before
            return Event(revision, "move", model, None, reply, time.time())

        return self._take(id, lane, answered)

    def undo(self, id: str, lane: int, revision: int) -> dict[str, Any]:
        """Takes the last move back. Raises `Refused`."""
        return self._take(id, lane, lambda its: Event(revision, "undo", its.seat, at=time.time()))

    def sit(self, id: str, lane: int, revision: int, seat: str) -> dict[str, Any]:
        """Another one plays from here on. Raises `Refused`."""
        self._check_seat(seat)
        return self._take(id, lane, lambda its: Event(revision, "seat", seat, at=time.time()))

    def hint(self, id: str, lane: int, revision: int) -> dict[str, Any]:
        """What every legal move earns, and the oracle's move. Raises `Refused`."""
        view = self._take(id, lane, lambda its: Event(revision, "hint", its.seat, at=time.time()))
        session, lock = self._open(id)
        with lock:
            its = session.lane(lane)
            action = its.table.game.fork().oracle()
            options = options_view(session.task, its.ahead)
        oracle = next(option for option in options if option["action"] == action)
        return {"lane": view, "oracle": oracle, "options": options}

    def told(self, id: str, lane: int, number: int) -> dict[str, Any]:
        """A move of a lane, with the board that it was made on and what every legal move would have earned."""
        from envs import reward_table

        session, lock = self._open(id)
        with lock:
            its = session.lane(lane)
            if not 0 <= number < len(its.table.moves):
                raise Refused(404, "no_move", f"move {number}: there are {len(its.table.moves)}")
            move, event = its.table.moves[number], its.played[number]
            game = move.state.game()
            shown = move_view(move, event, number, reward_table(game))
            return {**shown, **seen_view(session.task, game)}

    # Replays, scores, records

    def link(self, id: str) -> dict[str, Any]:
        """A link to the games of a session as they stand, signed. Raises `Refused`."""
        session, lock = self._open(id)
        with lock:
            players = [
                session.name if lane.credited == PERSON else lane.credited or " and ".join(dict.fromkeys(lane.movers))
                for lane in session.lanes
            ]
            actions = [[move.action for move in lane.table.moves] for lane in session.lanes]
            return {"link": write_link(self._secret, session.game, session.task, session.seed, players, actions)}

    def replay(self, link: str, lane: int = 0, start: int = 0, count: int = 100) -> dict[str, Any]:
        """The boards of a link, played again here. Raises `Refused` for one that this server did not write."""
        replay = read_link(self._secret, link)
        if not 0 <= lane < len(replay.actions):
            raise Refused(404, "no_lane", f"lane {lane}: there are {len(replay.actions)}")
        frames = replay_view(replay.task, replay.seed, replay.actions[lane], start, start + min(count, 200))
        return {
            "game": replay.game,
            "task": task_view(replay.task),
            "seed": replay.seed,
            "players": replay.players,
            "moves": [len(its) for its in replay.actions],
            "lane": lane,
            "frames": frames,
        }

    def scoreboard(self) -> list[dict[str, Any]]:
        """Every task that was played to an end, and who played it: means with intervals."""
        return self.scores.boards()

    def recordings(self, game: str, name: str) -> bytes:
        """The games that a person of that name played to the end without help, as `g1-ray play --save` writes them.

        Raises `Refused` where there are none. Of several on one seed the last is kept.
        """
        from g1_ray.evaluation.moves import write_moves

        runs = {}
        for line in self.scores.of(game, name):
            session, lock = self._open(line["session"])
            with lock:
                runs[session.seed] = session.lane(line["lane"]).table.run()
        if not runs:
            raise Refused(
                404, "no_games", f"no game of {game[:60]!r} that {name[:60]!r} played to its end by themselves"
            )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "moves.parquet"
            write_moves(path, game, name, list(runs.values()))
            return path.read_bytes()

    # What they stand on

    def _take(self, id: str, lane: int, make: Callable[[Lane], Event]) -> dict[str, Any]:
        """Has an event happen, on disk first, if it has not happened before; the lane's view."""
        session, lock = self._open(id)
        with lock:
            its = session.lane(lane)
            event = make(its)
            if not its.known(event):
                its.check(event)
                if its.revision >= MAX_EVENTS:
                    raise Refused(409, "too_long", f"{MAX_EVENTS} events: begin another game")
                self._write(self._path(id), {"lane": lane, **event.to_json()})
                its.apply(event)
                self._score(session, lane)
            return self._view(session, lane, event)

    def _view(self, session: Session, lane: int, event: Event) -> dict[str, Any]:
        """Of a lane, told with the move that an event was, where it stands."""
        played = session.lanes[lane].played
        at = next((i for i in range(len(played) - 1, -1, -1) if played[i].revision == event.revision), None)
        return lane_view(session, lane, self.models, at)

    def _score(self, session: Session, lane: int) -> None:
        its = session.lanes[lane]
        if its.over and its.credited and (session.id, lane) not in self.scores:
            self.scores.add(score_of(session, lane, its, self.models))

    def _open(self, id: str) -> tuple[Session, threading.RLock]:
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise Refused(404, "no_session", "no such session")
        with self._guard:
            if id in self._loaded:
                self._loaded.move_to_end(id)
                return self._loaded[id]
            path = self._path(id)
            if not path.is_file():
                raise Refused(404, "no_session", "no such session")
            session = read_session(path)
            opened = self._remember(session)
            for lane in range(len(session.lanes)):
                self._score(session, lane)
            return opened

    def _remember(self, session: Session) -> tuple[Session, threading.RLock]:
        opened = self._loaded[session.id] = session, threading.RLock()
        while len(self._loaded) > LOADED:
            oldest, (_, lock) = next(iter(self._loaded.items()))
            if not lock.acquire(blocking=False):
                break  # it is being played in this moment
            lock.release()
            del self._loaded[oldest]
        return opened

    def _path(self, id: str) -> Path:
        return self.folder / "sessions" / id[:2] / f"{id}.jsonl"

    def _write(self, path: Path, line: Mapping[str, Any]) -> None:
        journal = Journal(path)
        journal.append(line)
        journal.close()

    def _unscored(self) -> Iterator[Path]:
        """Sessions that may have ended without a score."""
        since = self.scores.written_at - _RECENT_S
        for path in (self.folder / "sessions").glob("*/*.jsonl"):
            if path.stat().st_mtime >= since:
                yield path

    def _check_seat(self, seat: str) -> None:
        known = (PERSON, *PLAYERS, *self.models)
        if seat not in known:
            raise Refused(422, "seat", f"no player {seat[:60]!r}{nearest(seat[:60], known)}")

    def _checked_name(self, name: str) -> str:
        name = " ".join(unicodedata.normalize("NFC", name).split()) or "anonymous"
        if not NAME.fullmatch(name):
            raise Refused(422, "name", "a name has up to 24 letters, digits, spaces and . ' -, and begins with one")
        if name.casefold() in {other.casefold() for other in (PERSON, *PLAYERS, *self.models)}:
            raise Refused(422, "name", f"{name} is a player of this server; take another name")
        return name


def read_session(path: Path) -> Session:
    """A session from its file; a last line that a death cut off is left out."""
    head, *lines = read_lines(path)
    session = Session.from_head(head)
    for line in lines:
        session.lanes[line["lane"]].apply(Event.from_json(line))
    return session


def task_of(
    game: str,
    preset: str = "",
    reasoning: int | Mapping[str, Any] | None = None,
    perception: int | Mapping[str, Any] | None = None,
) -> Task:
    """A task as a client may ask for it. Raises `Refused`."""
    if game not in game_names():
        raise Refused(422, "game", f"no game {game[:60]!r}{nearest(game[:60], game_names())}")
    if isinstance(perception, Mapping) and (perception.get("path") or perception.get("tiles") in ("folder", "cifar10")):
        raise Refused(422, "perception", "tiles of the server's own files are not to be had")
    try:
        task = Task.make(game, preset=preset, reasoning=reasoning, perception=perception)
    except (ValueError, TypeError) as error:
        raise Refused(422, "options", str(error).splitlines()[0][:300]) from None
    if not 1 <= task.reasoning.horizon <= MAX_MOVES:
        raise Refused(422, "options", f"horizon = {task.reasoning.horizon}: 1 to {MAX_MOVES} here")
    height, width, _ = task.renderer.shape
    if height * width > MAX_PIXELS:
        raise Refused(422, "options", f"a board of {width}x{height} pixels: up to {MAX_PIXELS:,} in all; smaller tiles")
    return task


def _secret(path: Path) -> bytes:
    if not path.is_file():
        write_text(path, secrets.token_hex(32))
        path.chmod(0o600)
    return bytes.fromhex(path.read_text().strip())
