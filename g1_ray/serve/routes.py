"""The game API and the page: FastAPI routes over a backend. docs/serving-api.md tells them to whoever uses them."""

import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from envs import PLAYERS, State, Task, game_names, game_spec
from envs.options import bounds
from g1_ray.serve.backend import Backend, reply_fields
from g1_ray.serve.guard import Guard, Rules
from g1_ray.serve.session import PERSON, Refused
from g1_ray.serve.views import answer_view

PAGE = Path(str(resources.files("g1_ray.serve"))) / "page"
SHARED = Path(str(resources.files("g1_ray.report"))) / "page"
"""Where the report's scripts are: the drawing of boards is the same."""
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
WORDS_S = 0.03
"""Least time between two events of words that come."""

router = APIRouter()


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Axis = int | dict[str, Any] | None
Revision = Annotated[int, Field(ge=0, le=1 << 31)]


class NewSession(_Given):
    """What a session is made of."""

    game: str = Field(max_length=60)
    label: str = Field("", max_length=60, pattern=r"^[\w .=x-]*$")
    preset: str = Field("", max_length=60)
    reasoning: Axis = None
    perception: Axis = None
    seed: int | None = Field(None, ge=0, lt=1 << 53)
    seats: list[Annotated[str, Field(max_length=120)]] = Field([PERSON], min_length=1, max_length=4)
    name: str = Field("", max_length=60)


class NewMove(_Given):
    """A move: by its number or in words, or neither where a model or a classic player sits."""

    revision: Revision
    action: int | None = Field(None, ge=0, le=1 << 31)
    text: str = Field("", max_length=300)


class At(_Given):
    """The revision that something is done at."""

    revision: Revision


class NewSeat(At):
    """Who is to play."""

    seat: str = Field(max_length=120)


class Link(_Given):
    """A replay, and which of its boards are wanted."""

    link: str = Field(max_length=40_000)
    lane: int = Field(0, ge=0, lt=4)
    start: int = Field(0, ge=0, le=10_000)
    count: int = Field(100, ge=1, le=200)


def backend_of(request: Request) -> Backend:
    """What the routes stand on."""
    backend: Backend = request.app.state.backend
    return backend


@router.get("/api/catalog")
async def catalog(request: Request) -> dict[str, Any]:
    """Games with their options, who can play, and what the models were trained on."""
    backend = backend_of(request)
    return {"games": games_view(), "classic": list(PLAYERS), "models": [await backend.told(m) for m in backend.models]}


@router.post("/api/sessions")
async def create(request: Request, given: NewSession) -> dict[str, Any]:
    """Begins a session."""
    view: dict[str, Any] = await backend_of(request).games("create", **given.model_dump())
    return view


@router.get("/api/sessions/{id}")
async def session(request: Request, id: str) -> Any:
    """A session as it stands."""
    return await backend_of(request).games("session", id)


@router.post("/api/sessions/{id}/lanes/{lane}/moves")
async def move(request: Request, id: str, lane: int, given: NewMove) -> Any:
    """A move; of a model, where the client takes events, as its words come."""
    backend = backend_of(request)
    if given.action is not None or given.text:
        return await backend.games("move", id, lane, given.revision, given.action, given.text)
    question = await backend.games("question_or_move", id, lane, given.revision)
    if isinstance(question, dict):
        return question
    if "text/event-stream" in request.headers.get("accept", ""):
        events = _watched(backend, id, lane, given.revision, question)
        return StreamingResponse(_sse(events), media_type="text/event-stream", headers={"x-accel-buffering": "no"})
    async with contextlib.aclosing(backend.answer(question)) as growing:
        reply = [each async for each in growing][-1]
    return await backend.games("answer", id, lane, given.revision, question.player, reply_fields(reply))


@router.get("/api/sessions/{id}/lanes/{lane}/moves/{number}")
async def told(request: Request, id: str, lane: int, number: int) -> Any:
    """A move that was made, whole: the answer, the board before it, what every legal move would have earned."""
    return await backend_of(request).games("told", id, lane, number)


@router.post("/api/sessions/{id}/lanes/{lane}/undo")
async def undo(request: Request, id: str, lane: int, given: At) -> Any:
    """Takes the last move back."""
    return await backend_of(request).games("undo", id, lane, given.revision)


@router.post("/api/sessions/{id}/lanes/{lane}/seat")
async def sit(request: Request, id: str, lane: int, given: NewSeat) -> Any:
    """Another one plays from here on."""
    return await backend_of(request).games("sit", id, lane, given.revision, given.seat)


@router.post("/api/sessions/{id}/lanes/{lane}/hint")
async def hint(request: Request, id: str, lane: int, given: At) -> Any:
    """What every legal move earns, and the oracle's."""
    return await backend_of(request).games("hint", id, lane, given.revision)


@router.get("/api/sessions/{id}/link")
async def link(request: Request, id: str) -> Any:
    """A link to the games as they stand."""
    return await backend_of(request).games("link", id)


@router.post("/api/replay")
async def replay(request: Request, given: Link) -> Any:
    """The boards of a link."""
    return await backend_of(request).games("replay", given.link, given.lane, given.start, given.count)


@router.get("/api/scoreboard")
async def scoreboard(request: Request) -> Any:
    """Who came to what."""
    return await backend_of(request).games("scoreboard")


@router.get("/api/recordings")
async def recordings(
    request: Request, game: Annotated[str, Query(max_length=60)], name: Annotated[str, Query(max_length=60)]
) -> Response:
    """A person's games as a parquet file: the player human:FILE of g1-ray evaluate."""
    data = await backend_of(request).games("recordings", game, name)
    return Response(data, media_type="application/vnd.apache.parquet")


@router.get("/")
async def page() -> HTMLResponse:
    """The page."""
    return HTMLResponse(_file(PAGE / "index.html"))


@router.get("/page/{name}")
async def part(name: str) -> Response:
    """A script or a style of the page."""
    path = next((path for folder in (PAGE, SHARED) for path in folder.iterdir() if path.name == name), None)
    if path is None or path.suffix not in TYPES:
        raise Refused(404, "no_file", "no such file")
    return Response(_file(path), media_type=TYPES[path.suffix], headers={"cache-control": "max-age=300"})


@lru_cache
def _file(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@lru_cache
def games_view() -> list[dict[str, Any]]:
    """Every game with its options, levels and presets."""
    return [
        {
            "name": name,
            "summary": game_spec(name).summary,
            "levels": [dict(level) for level in game_spec(name).levels],
            "presets": list(game_spec(name).presets),
            "reasoning": _options_view(Task.make(name).reasoning),
            "perception": _options_view(Task.make(name).perception),
        }
        for name in game_names()
        if ":" not in name
    ]


def _options_view(options: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": field.name,
            "value": getattr(options, field.name),
            "help": field.metadata["help"],
            "bounds": bounds(field),
            **{key: field.metadata[key] for key in ("low", "high", "choices")},
        }
        for field in dataclasses.fields(options)
        if field.name != "path"
    ]


async def _watched(
    backend: Backend, id: str, lane: int, revision: int, question: Any
) -> AsyncGenerator[dict[str, Any], None]:
    """What a model says as it comes, then the lane after its move."""
    state: State = question.state
    reply, shown = None, 0.0
    async with contextlib.aclosing(backend.answer(question)) as growing:
        async for reply in growing:
            if not reply.finish_reason and (now := time.monotonic()) - shown > WORDS_S:
                shown = now
                yield {"type": "words", "tokens": reply.tokens, "answer": answer_view(state, reply.text)}
    assert reply is not None
    view = await backend.games("answer", id, lane, revision, question.player, reply_fields(reply))
    yield {"type": "lane", **view}


async def _sse(events: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[str]:
    """Events in the wire format of server-sent events; a refusal is the last one."""
    async with contextlib.aclosing(events):
        try:
            async for event in events:
                yield f"data: {json.dumps(event, separators=(',', ':'))}\n\n"
        except Refused as refused:
            last = {**error_of(refused)["error"], "type": "error", "status": refused.status}
            yield f"data: {json.dumps(last)}\n\n"


def error_of(refused: Refused) -> dict[str, Any]:
    """An error as OpenAI's clients know it."""
    kind = "server_error" if refused.status >= 500 else "rate_limit_error" if refused.status == 429 else None
    kind = kind or "invalid_request_error"
    return {"error": {"message": refused.message, "type": kind, "param": None, "code": refused.code}}


def _answer(refused: Refused) -> JSONResponse:
    headers = {"retry-after": "2"} if refused.status in (429, 503) else None
    return JSONResponse(error_of(refused), refused.status, headers)


def build(backend: Backend, rules: Rules) -> FastAPI:
    """The ASGI application."""
    from g1_ray.serve.openai import router as openai

    api = FastAPI(title="g1_ray", docs_url=None, redoc_url=None, openapi_url=None)
    api.state.backend = backend
    api.include_router(router)
    api.include_router(openai)
    api.add_middleware(Guard, rules=rules)

    @api.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return _answer(error)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return _answer(Refused(422, "invalid", f"{where or 'the body'}: {first['msg']}"[:300]))

    @api.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        return _answer(Refused(error.status_code, "http", str(error.detail)))

    @api.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return _answer(Refused(500, "fault", "a fault of the server; its logs have it"))

    return api
