"""Links to replays: what was played, signed. The server plays it again and believes nothing else.

A link is base64url of deflated JSON, and before it 16 bytes of HMAC-SHA-256 (RFC 2104): of what is deflated, and of the
states that its games end in, so that a link of other rules than today's is refused as well.
"""

import base64
import binascii
import hashlib
import hmac
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from envs import Task
from g1_ray.serve.session import MAX_MOVES, Refused

MAX_LINK = 32_000
"""Characters."""
_MAX_JSON = 200_000
_SIGNATURE = 16


@dataclass(frozen=True)
class Replay:
    """What a link says."""

    game: str
    task: Task
    seed: int
    players: list[str]
    actions: list[list[int | None]]
    """Of each lane; None: an answer that could not be read."""


def write_link(
    secret: bytes, game: str, task: Task, seed: int, players: Sequence[str], actions: Sequence[Sequence[int | None]]
) -> str:
    """A link to games. Raises `Refused` where they are too long for one."""
    about = {"g": game, "t": task.to_json(), "s": seed, "p": list(players), "a": [list(its) for its in actions]}
    packed = zlib.compress(json.dumps(about, separators=(",", ":")).encode(), 9)
    signed = _signature(secret, packed, Replay(game, task, seed, list(players), [list(its) for its in actions]))
    link = base64.urlsafe_b64encode(signed + packed).decode().rstrip("=")
    if len(link) > MAX_LINK:
        raise Refused(413, "too_long", "these games are too long for a link")
    return link


def read_link(secret: bytes, link: str) -> Replay:
    """What a link says, after it was played again. Raises `Refused` for one that `write_link` did not write."""
    forged = Refused(422, "forged", "this link was not written by this server, or was changed")
    if not isinstance(link, str) or len(link) > MAX_LINK:
        raise forged
    try:
        data = base64.b64decode(link + "=" * (-len(link) % 4), altchars=b"-_", validate=True)
        if base64.urlsafe_b64encode(data).decode().rstrip("=") != link:  # one link, one spelling
            raise forged
        packed = data[_SIGNATURE:]
        # Nothing is unpacked before it is known to be ours.
        if not hmac.compare_digest(data[: _SIGNATURE // 2], _mac(secret, packed)[: _SIGNATURE // 2]):
            raise forged
        about = json.loads(zlib.decompressobj().decompress(packed, _MAX_JSON))
        replay = Replay(about["g"], Task.from_json(about["t"]), about["s"], about["p"], about["a"])
    except (ValueError, zlib.error, binascii.Error, KeyError, TypeError, UnicodeError):
        raise forged from None
    if any(len(its) > MAX_MOVES for its in replay.actions):
        raise forged
    try:
        signed = _signature(secret, packed, replay)
    except RuntimeError:  # a move after the end
        raise forged from None
    if not hmac.compare_digest(data[:_SIGNATURE], signed):
        raise Refused(422, "other_rules", "the games have changed since this link was written")
    return replay


def _mac(secret: bytes, *parts: bytes) -> bytes:
    return hmac.new(secret, b"\0".join(parts), hashlib.sha256).digest()


def _signature(secret: bytes, packed: bytes, replay: Replay) -> bytes:
    """Half of it is of what is packed, half of that and of what its games come to."""
    ends = []
    for actions in replay.actions:
        game = replay.task.new_game()
        game.reset(replay.seed)
        for action in actions:
            game.step(action)
        ends.append(hashlib.sha256(game.snapshot()).digest())
    return _mac(secret, packed)[: _SIGNATURE // 2] + _mac(secret, packed, *ends)[: _SIGNATURE // 2]
