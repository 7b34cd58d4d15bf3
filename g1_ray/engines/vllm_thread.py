"""vLLM in this process: its `LLMEngine`, stepped by a thread and asked as an `AsyncLLM` is.

On CPUs, which are busy anyway, a core in a process of its own gains nothing, and costs a second import of everything
and the packing and sending of what each step came to. There can be one in a process: vLLM's process groups are those of
`torch.distributed`, which has one set of them for everybody.
"""

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput

_T = TypeVar("_T")
STOP_S = 10.0
"""Longest wait for a step to end where the engine is to."""
_taken = threading.Lock()
"""Held by the one of this process."""


def has_room() -> bool:
    """Whether this process can have one: nobody else, such as a learner, has process groups here."""
    import torch.distributed as dist

    return not _taken.locked() and not (dist.is_available() and dist.is_initialized())


class ThreadedLLM:
    """The part of `AsyncLLM` that is used here, asked from the event loop that it began in.

    Everything is done by the one thread, in order, between two steps; so nothing of vLLM's has to be locked.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._answers: dict[str, asyncio.Queue[RequestOutput | BaseException]] = {}
        self._paused = self._stopped = False
        self._error: BaseException | None = None
        self._thread: threading.Thread

    @classmethod
    async def begun(cls, arguments: dict[str, Any]) -> "ThreadedLLM":
        """With the model loaded. `arguments`: of vLLM's `EngineArgs`.

        Raises what keeps it from that, and `ValueError` where this process has no room for it.
        """
        if not has_room() or not _taken.acquire(blocking=False):
            raise ValueError(
                "engine.core = 'thread': somebody else in this process uses torch.distributed, and both can't.\n"
                "Give engine.core=process, or auto, which finds out"
            )
        made, up = cls(), Future[None]()
        made._thread = threading.Thread(target=made._work, args=(arguments, up), name="vllm", daemon=True)
        made._thread.start()
        try:
            await asyncio.wrap_future(up)
        except asyncio.CancelledError:  # once it is up it ends
            made._jobs.put(made._stop)
            raise
        return made

    # In the thread

    def _work(self, arguments: dict[str, Any], up: "Future[None]") -> None:
        up.set_running_or_notify_cancel()  # from here on it can't be cancelled
        try:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            from vllm import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        except BaseException as error:  # noqa: BLE001 - whoever waits is told
            _taken.release()
            up.set_exception(error)
            return
        up.set_result(None)
        try:
            while not self._stopped:
                self._do_jobs(wait=self._paused or not self._engine.has_unfinished_requests())
                if not self._paused and not self._stopped and self._engine.has_unfinished_requests():
                    self._tell([(output.request_id, output) for output in self._engine.step()])
            self._error = RuntimeError("vLLM was stopped")
        except BaseException as error:  # noqa: BLE001 - what a broken step leaves behind is no engine any more
            self._error = error
        self._do_jobs(wait=False)  # whoever came since is told
        self._call_soon(self._end_all)
        try:
            self._engine.engine_core.shutdown()
        finally:
            _taken.release()

    def _do_jobs(self, wait: bool) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get(block=wait)()
                wait = False

    def _tell(self, said: "list[tuple[str, RequestOutput | BaseException]]") -> None:
        if said:
            self._call_soon(self._hand_out, said)

    def _call_soon(self, call: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(call, *arguments)

    # In the event loop

    def _hand_out(self, said: "list[tuple[str, RequestOutput | BaseException]]") -> None:
        for number, output in said:
            if number in self._answers:  # it may have been given up
                self._answers[number].put_nowait(output)

    def _end_all(self) -> None:
        self._hand_out([(number, self.dead_error) for number in self._answers])

    def _ask(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)
        if self._error:  # there is no thread any more
            self._do_jobs(wait=False)

    async def _do(self, call: Callable[[], _T]) -> _T:
        future: Future[_T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self._error:
                    raise self._error
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                future.set_exception(error)

        self._ask(job)
        return await asyncio.wrap_future(future)

    async def generate(
        self, prompt: Any, params: Any, request_id: str, lora_request: "LoRARequest | None" = None
    ) -> "AsyncGenerator[RequestOutput, None]":
        """What comes of a request; closing it ends the request."""
        answers: asyncio.Queue[RequestOutput | BaseException] = asyncio.Queue()
        self._answers[request_id] = answers

        def add() -> None:
            try:
                if self._error:
                    raise self._error
                self._engine.add_request(request_id, prompt, params, lora_request=lora_request)
            except Exception as error:  # noqa: BLE001 - it is this request's alone
                self._tell([(request_id, error)])

        self._ask(add)
        finished = False
        try:
            while not finished:
                output = await answers.get()
                if isinstance(output, BaseException):
                    finished = True
                    raise output
                finished = output.finished
                yield output
        finally:
            del self._answers[request_id]
            if not finished:
                self._ask(lambda: None if self._error else self._engine.abort_request([request_id]))

    @property
    def errored(self) -> bool:
        return self._error is not None

    @property
    def dead_error(self) -> BaseException:
        assert self._error is not None, "it is well"
        return self._error

    def shutdown(self) -> None:
        """Ends it after the step that it is at; what is in flight is lost."""
        self._ask(self._stop)
        self._thread.join(STOP_S)

    def _stop(self) -> None:
        self._stopped = True

    async def pause_generation(self, mode: str, clear_cache: bool) -> None:
        """Makes no more steps; what is in flight waits."""
        assert mode == "keep" and not clear_cache, "nothing else is needed here"
        await self._do(lambda: self._set_paused(True))

    async def resume_generation(self) -> None:
        await self._do(lambda: self._set_paused(False))

    def _set_paused(self, paused: bool) -> None:
        self._paused = paused

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = (), kwargs: Any = None) -> list[Any]:
        return await self._do(lambda: self._engine.collective_rpc(method, args=args, kwargs=kwargs))

    async def start_weight_update(self) -> None:
        await self.collective_rpc("start_weight_update")

    async def update_weights(self, request: Any) -> None:
        await self.collective_rpc("update_weights", kwargs={"update_info": request.update_info})

    async def finish_weight_update(self) -> None:
        await self.collective_rpc("finish_weight_update")

    async def update_weight_version(self, version: str) -> None:
        await self._do(lambda: self._engine.set_weight_version(version))

    async def get_weight_version(self) -> str:
        return await self._do(self._engine.get_weight_version)

    async def reset_prefix_cache(self) -> bool:
        return await self._do(self._engine.reset_prefix_cache)

    async def add_lora(self, request: "LoRARequest") -> bool:
        return await self._do(lambda: self._engine.add_lora(request))
