"""The OpenAI protocol: `/v1/models` and `/v1/chat/completions`, streaming and not, for the models that are loaded here.

    body (ingress) -> Chat -> answered (at the engine) -> Delta, Delta, ... -> a completion, or its chunks

Pictures come as data URIs; no address is ever fetched. What is asked for and can't be done is refused, not ignored.
"""

import asyncio
import base64
import binascii
import contextlib
import io
import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image, PngImagePlugin
from pydantic import BaseModel, ConfigDict, Field

from g1_ray.evaluation.players import Opened
from g1_ray.serve.session import Refused
from g1_ray.types import Completion, Picture, Sampling
from g1_ray.types import Request as Asked

MAX_PICTURES = 8
MAX_PIXELS = 1 << 21
"""Of a picture."""
MAX_SCANS = 32
"""Passes over a progressive JPEG: each costs as much as the whole picture, and a file can say as many as it likes."""
MAX_BYTES = 4 << 20
"""Of a picture as a file."""
FORMATS = ("PNG", "JPEG", "WEBP")
PngImagePlugin.MAX_TEXT_MEMORY = 1 << 20  # Pillow unpacks all texts of a PNG, up to 64 MB, though nobody reads them
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": (None, {}),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
    "n": (1, None),
    "stop": (None, []),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "parallel_tool_calls": (None, True, False),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
}
"""Options of the protocol that can't be had, with what they may be given as: as if they were not there."""
_URI = re.compile(r"data:image/(?:png|jpeg|webp);base64,([A-Za-z0-9+/=\s]+)")

router = APIRouter()


@dataclass(frozen=True)
class Chat:
    """What is asked."""

    messages: tuple[Mapping[str, Any], ...]
    """As chat templates take them; where a picture stands there is {"type": "image"}."""
    pictures: tuple[Picture, ...]
    sampling: Mapping[str, Any]
    """The fields of `Sampling` that were given."""
    seed: int


@dataclass(frozen=True)
class Delta:
    """A piece of an answer."""

    text: str
    finish_reason: str = ""
    """'' while more is to come."""
    prompt_tokens: int = 0
    tokens: int = 0
    """Of the answer, up to here."""
    version: int | None = None
    """The policy version of the answer, with its last piece."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Options(_Strict):
    include_usage: bool = False


class Body(_Strict):
    """A request for a completion. What is not named here is in `NEUTRAL`, or unknown."""

    model: str = Field(max_length=200)
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=64)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stream: bool | None = False
    stream_options: _Options | None = None
    user: str | None = Field(None, max_length=500)
    metadata: dict[str, Any] | None = None


async def answered(chat: Chat, opened: Opened) -> AsyncGenerator[Delta, None]:
    """The answer in pieces, from the model that is open. Raises `Refused` for what it can't answer."""
    assert opened.chat is not None and opened.engine is not None and opened.sampling is not None
    try:
        prompt = opened.chat.conversation(chat.messages, chat.pictures)
    except ValueError as error:
        raise Refused(400, "messages", str(error).splitlines()[0][:300]) from None
    longest = opened.room - len(prompt.token_ids)
    if longest < 1:
        raise Refused(400, "context_length_exceeded", f"{len(prompt.token_ids)} tokens: up to {opened.room - 1} here")
    usual = opened.sampling
    sampling = Sampling(
        temperature=chat.sampling.get("temperature", usual.temperature),
        top_p=chat.sampling.get("top_p", usual.top_p),
        max_tokens=min(longest, chat.sampling.get("max_tokens", usual.max_tokens)),
    )
    sent, request = 0, Asked(prompt, 1, chat.seed)
    async with contextlib.aclosing(opened.engine.stream(request, sampling)) as pieces:
        async for piece in pieces:
            done = isinstance(piece, Completion)
            token_ids = piece.token_ids if isinstance(piece, Completion) else piece
            text = opened.chat.decode(token_ids)
            until = len(text) if done else len(text.rstrip("\ufffd"))  # half a letter waits for its other half
            if done or until > sent:
                yield Delta(
                    text=text[sent:until],
                    finish_reason=piece.finish_reason if isinstance(piece, Completion) else "",
                    prompt_tokens=len(prompt.token_ids),
                    tokens=len(token_ids),
                    version=int(piece.versions[-1]) if isinstance(piece, Completion) and len(token_ids) else None,
                )
                sent = max(sent, until)


# The ingress's side


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The models."""
    return {"object": "list", "data": [_about(told) for told in await _chatting(request)]}


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """One of them."""
    for told in await _chatting(request):
        if told["name"] == name:
            return _about(told)
    raise Refused(404, "model_not_found", f"no model {name[:100]!r}: see /v1/models")


@router.post("/v1/chat/completions")
async def complete(request: Request, body: Body) -> Response:
    """A completion, whole or in chunks."""
    backend = request.app.state.backend
    if body.model not in {told["name"] for told in await _chatting(request)}:
        raise Refused(404, "model_not_found", f"no model {body.model[:100]!r}: see /v1/models")
    chat = await asyncio.to_thread(read_chat, body)
    pieces = backend.chat(body.model, chat)
    about = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
    if not body.stream:
        async with contextlib.aclosing(pieces):
            deltas = [piece async for piece in pieces]
        return JSONResponse(_whole(about, deltas))
    first = await anext(pieces)  # what is refused is refused with its status, before anything is sent
    usage = bool(body.stream_options and body.stream_options.include_usage)
    return StreamingResponse(_chunks(about, first, pieces, usage), media_type="text/event-stream")


def read_chat(body: Body) -> Chat:
    """What a body asks. Raises `Refused`."""
    for name, value in (body.model_extra or {}).items():
        if name not in NEUTRAL:
            raise Refused(400, "unknown_parameter", f"unknown parameter {name[:60]!r}")
        if value not in NEUTRAL[name]:
            raise Refused(400, "unsupported_parameter", f"{name} = {json.dumps(value)[:60]}: not to be had here")
    messages: list[dict[str, Any]] = []
    pictures: list[Picture] = []
    for number, message in enumerate(body.messages):
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "developer", "user", "assistant"):
            raise Refused(400, "messages", f"messages.{number}.role: {str(role)[:40]!r}, not system, user or assistant")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise Refused(400, "messages", f"messages.{number}.content: expected text, or a list of parts")
        shown = [_part(part, f"messages.{number}.content.{i}", pictures) for i, part in enumerate(parts)]
        messages.append({"role": "system" if role == "developer" else role, "content": shown})
    longest = body.max_completion_tokens or body.max_tokens
    given = {"temperature": body.temperature, "top_p": body.top_p, "max_tokens": longest}
    sampling = {name: value for name, value in given.items() if value is not None}
    seed = secrets.randbits(62) if body.seed is None else body.seed % (1 << 62)
    return Chat(tuple(messages), tuple(pictures), sampling, seed)


def _part(part: Any, where: str, pictures: list[Picture]) -> dict[str, Any]:
    """A part of a message; its picture goes to the others."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        if re.search(r"<\|[a-z_]+\|>", part["text"]):
            raise Refused(400, "messages", f"{where}: control tokens such as <|im_end|> can't be in a text")
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        given = part.get("image_url")
        uri = given.get("url") if isinstance(given, Mapping) else given
        if len(pictures) == MAX_PICTURES:
            raise Refused(400, "too_many_images", f"{where}: up to {MAX_PICTURES} pictures")
        pictures.append(read_picture(uri, where))
        return {"type": "image"}
    raise Refused(400, "messages", f"{where}: expected a part of type text or image_url")


def read_picture(uri: Any, where: str = "image_url") -> Picture:
    """The picture of a data URI. Raises `Refused`; sizes are looked at before anything is unpacked."""
    found = _URI.fullmatch(uri) if isinstance(uri, str) and len(uri) < 2 * MAX_BYTES else None
    if not found:
        raise Refused(
            400, "invalid_image", f"{where}: expected data:image/png;base64,... (or jpeg, webp); no addresses"
        )
    try:
        data = base64.b64decode(found[1])
        if len(data) > MAX_BYTES:
            raise Refused(400, "image_too_large", f"{where}: {len(data):,} bytes, up to {MAX_BYTES:,}")
        if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
            raise Refused(400, "image_too_large", f"{where}: a JPEG of more than {MAX_SCANS} scans")
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS or max(image.size) > 100 * min(image.size):
            raise Refused(400, "image_too_large", f"{where}: {image.width}x{image.height}, up to {MAX_PIXELS:,} pixels")
        flat = image.convert("RGB")
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Refused(400, "invalid_image", f"{where}: no picture ({str(error)[:80]})") from None
    return Picture(flat.tobytes(), flat.height, flat.width)


async def _chatting(request: Request) -> list[dict[str, Any]]:
    backend = request.app.state.backend
    told = [await backend.told(name) for name in backend.models]
    return [its for its in told if its["chats"]]


def _about(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": told["name"], "object": "model", "created": 0, "owned_by": "g1_ray", "version": told["version"]}


def _usage(last: Delta) -> dict[str, int]:
    asked, told = last.prompt_tokens, last.tokens
    return {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}


def _whole(about: Mapping[str, Any], deltas: list[Delta]) -> dict[str, Any]:
    last = deltas[-1]
    message = {"role": "assistant", "content": "".join(delta.text for delta in deltas), "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": last.finish_reason, "logprobs": None}
    fingerprint = {"system_fingerprint": f"policy-{last.version}"}
    return {**about, "object": "chat.completion", "choices": [choice], "usage": _usage(last), **fingerprint}


async def _chunks(
    about: Mapping[str, Any], first: Delta, pieces: AsyncGenerator[Delta, None], usage: bool
) -> AsyncIterator[str]:
    """The chunks of an answer as server-sent events."""

    def chunk(delta: Mapping[str, Any], finish: Literal["stop", "length"] | str | None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish or None, "logprobs": None}
        return _event({**about, "object": "chat.completion.chunk", "choices": [choice], **more})

    last = first
    async with contextlib.aclosing(pieces):
        try:
            yield chunk({"role": "assistant", "content": first.text}, first.finish_reason)
            async for last in pieces:
                more = {"system_fingerprint": f"policy-{last.version}"} if last.finish_reason else {}
                yield chunk({"content": last.text} if last.text else {}, last.finish_reason, **more)
            if usage:
                yield _event({**about, "object": "chat.completion.chunk", "choices": [], "usage": _usage(last)})
        except Refused as refused:
            yield _event({"error": {"message": refused.message, "type": "server_error", "code": refused.code}})
    yield "data: [DONE]\n\n"


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"
