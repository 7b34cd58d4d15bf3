"""The arena in this process: the real games, model and routes under uvicorn, without Ray Serve between them.

python tests/serve/in_process.py [PORT [FOLDER [MODEL ...]]]    to work on the page; its files are read at each request
"""

import asyncio
import contextlib
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from g1_ray.serve import routes
from g1_ray.serve.arena import Arena
from g1_ray.serve.backend import Backend
from g1_ray.serve.config import served as served_model
from g1_ray.serve.guard import Rules
from g1_ray.serve.models import Model


class LocalBackend(Backend):
    """Calls what Serve's handles would call."""

    def __init__(self, arena: Arena, models: list[Model]) -> None:
        super().__init__([model.player.name for model in models])
        self.arena, self.opened = arena, dict(zip(self.models, models, strict=True))

    async def games(self, call, /, *args, **options):
        return await asyncio.to_thread(getattr(self.arena, call), *args, **options)

    async def told(self, model):
        return self.opened[model].about()

    async def answer(self, question):
        async with contextlib.aclosing(self.opened[question.player].answer(question)) as growing:
            async for reply in growing:
                yield reply


@contextlib.contextmanager
def served(folder: Path, specs: list[str], port: int = 0) -> Iterator[tuple[str, LocalBackend]]:
    """The address of an arena and what it stands on, until it is left."""
    models = [Model(model.name, model.spec) for model in map(served_model, specs)]
    backend = LocalBackend(Arena(folder, [model.player.name for model in models]), models)
    api = routes.build(backend, Rules(rate=1000, burst=3000))
    server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="warning"))
    ready = threading.Event()

    async def run() -> None:
        for model in models:
            await model.open(0)
        serving = asyncio.create_task(server.serve())
        while not (server.started or serving.done()):
            await asyncio.sleep(0.01)
        ready.set()
        await serving
        for model in models:
            await model.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(120) and server.started
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", backend
    finally:
        server.should_exit = True
        thread.join(30)
        backend.arena.close()


if __name__ == "__main__":
    port, folder, *specs = [*sys.argv[1:], *("8130", tempfile.mkdtemp())[len(sys.argv[1:]) :]]
    routes._file = routes._file.__wrapped__
    with served(Path(folder), specs or ["tiny-coldstart"], int(port)) as (address, _):
        print(address, flush=True)
        threading.Event().wait()
