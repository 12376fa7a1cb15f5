"""Admission: the order of requests, the model in memory, and that every request ends, also after faults."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from conftest_runner import ScriptedBackend, ScriptedBatch, request, tokens_of
from support.following import text

from mlxk2.errors import ContextLengthError, MlxkError, ModelError, ServerBusyError, ServerStoppingError
from mlxk2.runner.events import Failed, Finished, TextDelta, Usage
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest
from mlxk2.runner.sequences import Reading, Step
from mlxk2.server.generation import MAX_WAITING_EVENTS, Generation
from mlxk2.server.http.access import client_of
from mlxk2.server.messages import Cancel, Command, Load, Loaded, ModelKey, Report, SequenceEvent, Submit
from mlxk2.server.pool import ModelPool
from mlxk2.server.scheduler import Limits, Scheduler
from mlxk2.server.worker import Worker

A, B, C = (ModelKey(name, f"/models/{name}") for name in ("A", "B", "C"))
CONTEXT = 1 << 15
LONG, ENDLESS = "long", "endless"
# How often a model writes its name for these prompts.
TIMES = {LONG: 300, ENDLESS: 3 * MAX_WAITING_EVENTS}


class Panic(BaseException):
    """The error of a Rust library that panics; it is no Exception."""


FAULTS = [ValueError("odd"), ModelError("damaged"), Panic("index out of range"), SystemExit(3), StopIteration("odd")]


class Batch(ScriptedBatch):
    """Scripted sequences whose steps take a moment or wait for `gate`; a fault comes from the whole batch."""

    fault: BaseException | None = None
    insert_fault: BaseException | None = None
    gate = threading.Event()
    given = 0

    def insert(
        self, sequence_id: int, request: GenerationRequest, max_tokens: int, completion: Sequence[int] = ()
    ) -> None:
        """Add a sequence, or raise `insert_fault`."""
        _raise(Batch.insert_fault)
        super().insert(sequence_id, request, max_tokens, completion)

    def next(self) -> list[Step | Reading]:
        """Return the next token of every sequence; `given` counts them."""
        time.sleep(0.0005)
        assert Batch.gate.wait(20)
        if Batch.fault is not None:
            raise Batch.fault
        steps = super().next()
        self.given += len(steps)
        return steps

    def close(self) -> None:
        """Drop all sequences."""
        self._sequences.clear()


class Model(ScriptedBackend):
    """A model that writes its name, once or as often as a prompt asks for."""

    def __init__(self, name: str) -> None:
        super().__init__(lambda request: tokens_of(name * TIMES.get(bytes(request.prompt).decode(), 1)), CONTEXT)

    def batch(self, max_sequences: int, prompts: PromptCache) -> Batch:
        """Return a new batch and keep it in `batches`."""
        assert max_sequences > 0 and not prompts.nbytes
        batch = Batch(self._say)
        self.batches.append(batch)
        return batch

    @property
    def given(self) -> int:
        """Return how many tokens it has generated."""
        return sum(batch.given for batch in self.batches if isinstance(batch, Batch))

    @property
    def rows(self) -> int:
        """Return how many sequences it is generating."""
        return sum(map(len, self.batches))


class Loader:
    """Loads models and records their names; a load waits for `gate` and raises `faults`, or `late_faults` later."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.models: list[Model] = []
        self.gate = threading.Event()
        self.gate.set()
        self.faults: dict[str, BaseException] = {}
        self.late_faults: dict[str, BaseException] = {}
        self._loading = threading.Lock()

    def load(self, key: ModelKey, unload: Callable[[], None]) -> Model:
        """Load a model in the order of the real backend: raise `faults`, unload the old model, raise `late_faults`."""
        assert self._loading.acquire(blocking=False), "two loads at once"
        try:
            self.loads.append(key.name)
            assert self.gate.wait(20)
            _raise(self.faults.get(key.name))
            unload()
            _raise(self.late_faults.get(key.name))
            self.models.append(Model(key.name))
            return self.models[-1]
        finally:
            self._loading.release()


def _raise(fault: BaseException | None) -> None:
    if fault is not None:
        raise fault


@asynccontextmanager
async def scheduler_on(
    loader: Loader, concurrent: int = 64, queue: int = 256, worker_type: type[Worker] = Worker
) -> AsyncIterator[Scheduler]:
    """Yield a scheduler; fail unless it is idle at the end."""
    worker = worker_type(loader.load, concurrent)
    scheduler = Scheduler(ModelPool(worker), worker, Limits(concurrent, queue))
    Batch.gate.set()
    try:
        yield scheduler
        await idle(scheduler, loader)
    finally:
        loader.gate.set()
        Batch.gate.set()
        Batch.fault = Batch.insert_fault = None
        scheduler.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def idle(scheduler: Scheduler, loader: Loader) -> None:
    """Wait until no request holds anything."""
    await until(lambda: scheduler.active == scheduler.queued == 0 and not any(model.rows for model in loader.models))


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test, for a minute at most, on the event loop that the server runs on."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test, 60))


def requests(prompt: str = "hi", count: int = 1, **options: Any) -> Sequence[GenerationRequest]:
    """Return `count` equal requests."""
    return [request(prompt, **options)] * count


async def text_of(generation: Generation) -> str:
    """Return all text of a generation."""
    return text([event async for events in generation for _, event in events])


async def ask(scheduler: Scheduler, key: ModelKey, prompt: str = "hi", slots: int = 1, client: str = "") -> str:
    """Submit requests and return all their text."""
    generation = scheduler.submit(key, requests(prompt, slots), client)
    try:
        return await text_of(generation)
    finally:
        scheduler.cancel(generation)


def start_all(*questions: Awaitable[Any]) -> list[asyncio.Task[Any]]:
    """Start these questions in this order, without waiting."""
    return [asyncio.ensure_future(question) for question in questions]


# ----------------------------------------------------------------------------------------------- order of requests


def test_a_model_is_loaded_once() -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader) as scheduler:
            assert await asyncio.gather(*(ask(scheduler, A) for _ in range(20))) == ["A"] * 20
            assert await ask(scheduler, ModelKey("A", "/models/A")) == "A"
            assert loader.loads == ["A"]

    run(test())


def test_the_limit_of_concurrent_sequences_holds() -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader, concurrent=3) as scheduler:
            tasks = start_all(*(ask(scheduler, A, LONG) for _ in range(9)))
            most = 0
            while not all(task.done() for task in tasks):
                most = max(most, scheduler.active)
                await asyncio.sleep(0.001)
            assert most == 3
            assert {task.result() for task in tasks} == {"A" * 300}

    run(test())


def test_a_request_of_many_slots_is_not_overtaken() -> None:
    async def test() -> None:
        ended: list[str] = []

        async def note(name: str, answer: Awaitable[str]) -> None:
            await answer
            ended.append(name)

        async with scheduler_on(Loader(), concurrent=2) as scheduler:
            tasks = start_all(
                note("first", ask(scheduler, A, LONG)),
                note("wide", ask(scheduler, A, slots=2)),
                note("last", ask(scheduler, A)),
            )
            await asyncio.gather(*tasks)
            assert ended == ["first", "wide", "last"]

    run(test())


async def order_of(scheduler: Scheduler, *asked: tuple[str, str, int]) -> list[str]:
    """Queue questions (name, client, slots) behind a long one; return their names in the order in which they end."""
    ended: list[str] = []

    async def note(name: str, client: str, slots: int) -> None:
        await ask(scheduler, A, slots=slots, client=client)
        ended.append(name)

    first = start_all(ask(scheduler, A, LONG, scheduler.limits.max_concurrent, client="before"))
    await until(lambda: scheduler.active == scheduler.limits.max_concurrent)
    await asyncio.gather(*first, *start_all(*(note(*question) for question in asked)))
    return ended


def test_many_requests_of_one_client_do_not_delay_another() -> None:
    async def test() -> None:
        async with scheduler_on(Loader(), concurrent=1) as scheduler:
            many = [(f"many {number}", "many", 1) for number in range(20)]
            ended = await order_of(scheduler, *many, ("one", "one", 1), ("one again", "one", 1))
            assert ended[:4] == ["many 0", "one", "many 1", "one again"]
            assert ended[4:] == [f"many {number}" for number in range(2, 20)]

    run(test())


def test_large_requests_of_one_client_do_not_delay_another() -> None:
    async def test() -> None:
        async with scheduler_on(Loader(), concurrent=4) as scheduler:
            wide = [(f"wide {number}", "wide", 4) for number in range(3)]
            ended = await order_of(scheduler, *wide, *((f"one {number}", "one", 1) for number in range(4)))
            assert ended == ["wide 0", *(f"one {number}" for number in range(4)), "wide 1", "wide 2"]

    run(test())


def test_an_overtaken_client_still_gets_its_turn() -> None:
    async def test() -> None:
        async with scheduler_on(Loader(), concurrent=1, queue=1000) as scheduler:
            many = [(f"many {number}", "many", 1) for number in range(2)]
            ended = await order_of(scheduler, *many, *((f"new {number}", f"{number}", 1) for number in range(200)))
            assert ended.index("many 1") <= 65

    run(test())


def test_a_full_queue_refuses_the_last_request_of_the_busiest_client() -> None:
    async def test() -> None:
        async with scheduler_on(Loader(), concurrent=1, queue=3) as scheduler:
            first = start_all(ask(scheduler, A, LONG))
            await until(lambda: scheduler.active == 1)
            many = start_all(*(ask(scheduler, A, client="many") for _ in range(3)))
            await until(lambda: scheduler.queued == 3)
            one = start_all(ask(scheduler, A, client="one"))
            with pytest.raises(ServerBusyError, match="waiting requests: 3"):
                await many[2]
            with pytest.raises(ServerBusyError, match="waiting requests: 3"):
                await ask(scheduler, A, client="many")
            assert await asyncio.gather(*first, *many[:2], *one) == ["A" * 300, "A", "A", "A"]

    run(test())


def test_cancelled_requests_do_not_count_as_turns() -> None:
    async def test() -> None:
        async with scheduler_on(Loader(), concurrent=1) as scheduler:
            first = start_all(ask(scheduler, A, LONG))
            await until(lambda: scheduler.active == 1)
            gone = [scheduler.submit(A, requests(), "hasty") for _ in range(50)]
            for generation in gone:
                scheduler.cancel(generation)
            many = [(f"many {number}", "many", 1) for number in range(20)]
            ended = await order_of(scheduler, *many, ("it", "hasty", 1))
            assert ended.index("it") == 1
            await asyncio.gather(*first)

    run(test())


def test_refused_clients_leave_no_state_behind() -> None:
    async def test() -> None:
        async with scheduler_on(Loader(), concurrent=1, queue=1) as scheduler:
            tasks = start_all(ask(scheduler, A, LONG, client="first"), ask(scheduler, A, client="second"))
            await until(lambda: scheduler.queued == 1)
            tracemalloc.start()
            for number in range(300):
                keys = [(b"authorization", b"Bearer %d" % number + b"k" * 10_000)]
                client = client_of({"type": "http", "client": ("127.0.0.1", 1), "headers": keys})
                with pytest.raises(ServerBusyError):
                    scheduler.submit(A, requests(), client)
            taken, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert taken < 1 << 20
            await asyncio.gather(*tasks)

    run(test())


def test_steady_requests_for_one_model_do_not_starve_another() -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader, concurrent=2) as scheduler:
            stop = asyncio.Event()

            async def stream() -> None:
                while not stop.is_set():
                    await ask(scheduler, A, LONG)

            tasks = start_all(*(stream() for _ in range(6)))
            await until(lambda: scheduler.active == 2)
            async with asyncio.timeout(10):
                assert await ask(scheduler, B) == "B"
            stop.set()
            await asyncio.gather(*tasks)
            assert loader.loads[:2] == ["A", "B"]

    run(test())


def test_one_swap_serves_all_requests_that_wait_for_the_model() -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader) as scheduler:
            loader.gate.clear()
            tasks = start_all(*(ask(scheduler, key) for key in (A, B, C, A, B, C, A, B, C)))
            await until(lambda: scheduler.queued == 9)
            loader.gate.set()
            assert await asyncio.gather(*tasks) == ["A", "B", "C"] * 3
            assert loader.loads == ["A", "B", "C"]

    run(test())


def test_running_answers_end_before_a_swap() -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader) as scheduler:
            first = asyncio.create_task(ask(scheduler, A, LONG))
            await until(lambda: scheduler.active == 1)
            assert await ask(scheduler, B) == "B"
            assert first.done() and await first == "A" * 300

    run(test())


def test_a_full_queue_refuses_further_requests() -> None:
    async def test() -> None:
        async with scheduler_on(Loader(), concurrent=1, queue=2) as scheduler:
            tasks = start_all(ask(scheduler, A, LONG))
            await until(lambda: scheduler.active == 1)
            tasks += start_all(ask(scheduler, A), ask(scheduler, A))
            await until(lambda: scheduler.queued == 2)
            with pytest.raises(ServerBusyError, match="waiting requests: 2"):
                await ask(scheduler, A)
            assert await asyncio.gather(*tasks) == ["A" * 300, "A", "A"]

    run(test())


def test_a_queue_of_size_zero_still_loads_models_on_demand() -> None:
    async def test() -> None:
        async with scheduler_on(Loader(), concurrent=1, queue=0) as scheduler:
            assert await ask(scheduler, A) == "A"
            assert await ask(scheduler, B) == "B"
            first = asyncio.create_task(ask(scheduler, B, LONG))
            await until(lambda: scheduler.active == 1)
            with pytest.raises(ServerBusyError):
                await ask(scheduler, B)
            await first

    run(test())


def test_a_queue_of_size_zero_waits_for_the_start_model() -> None:
    async def test() -> None:
        loader = Loader()
        loader.gate.clear()
        async with scheduler_on(loader, concurrent=1, queue=0) as scheduler:
            start = asyncio.create_task(scheduler.preload(A))
            await until(lambda: loader.loads == ["A"])
            first = asyncio.create_task(ask(scheduler, A))
            await until(lambda: scheduler.queued == 1)
            with pytest.raises(ServerBusyError, match="waiting requests: 1"):
                await ask(scheduler, A)
            loader.gate.set()
            await start
            assert await first == "A"

    run(test())


# --------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_failed_load_says_why_and_keeps_the_old_model(fault: BaseException) -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader) as scheduler:
            await ask(scheduler, A)
            loader.faults["B"] = fault
            for answer in await asyncio.gather(*(ask(scheduler, B) for _ in range(3)), return_exceptions=True):
                assert isinstance(answer, MlxkError) and str(fault) in answer.message
            assert scheduler.pool.key == A
            assert await ask(scheduler, A) == "A"
            assert loader.loads == ["A", "B"]

    run(test())


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_load_that_fails_after_unloading_keeps_the_server_working(fault: BaseException) -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader) as scheduler:
            await ask(scheduler, A)
            loader.late_faults["B"] = fault
            with pytest.raises(MlxkError, match=str(fault)):
                await ask(scheduler, B)
            assert scheduler.pool.key is None
            assert await ask(scheduler, A) == "A"
            assert loader.loads == ["A", "B", "A"]

    run(test())


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_request_that_fails_in_submit_frees_its_slots(fault: BaseException) -> None:
    async def test() -> None:
        async with scheduler_on(Loader(), concurrent=1) as scheduler:
            Batch.insert_fault = fault
            with pytest.raises(Exception, match=str(fault)):
                await text_of(scheduler.submit(A, requests()))
            Batch.insert_fault = None
            assert await ask(scheduler, A) == "A"

    run(test())


def test_a_request_that_partly_fails_does_not_affect_the_next() -> None:
    async def test() -> None:
        async with scheduler_on(Loader()) as scheduler:
            await ask(scheduler, A)
            both = [request("fits"), request("x" * CONTEXT)]
            for _ in range(50):
                bad = asyncio.create_task(text_of(scheduler.submit(A, both)))
                good = asyncio.create_task(ask(scheduler, A))
                with pytest.raises(ContextLengthError):
                    await bad
                async with asyncio.timeout(5):
                    assert await good == "A"

    run(test())


@pytest.mark.parametrize("fault", [RuntimeError("no memory"), KeyboardInterrupt("odd"), Panic("odd")], ids=repr)
def test_a_failed_step_ends_all_answers_but_not_the_next_one(fault: BaseException) -> None:
    async def test() -> None:
        async with scheduler_on(Loader()) as scheduler:
            tasks = start_all(*(ask(scheduler, A, LONG) for _ in range(5)))
            await until(lambda: scheduler.active == 5)
            Batch.fault = fault
            for answer in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(answer, ModelError) and str(fault) in answer.message
            Batch.fault = None
            assert await ask(scheduler, A) == "A"

    run(test())


class FailsToCancel(Worker):
    """Fail to send the command that follows the end of the first request."""

    def send(self, command: Command) -> None:
        """Send every other command."""
        _raise(ValueError("odd") if isinstance(command, Cancel) and command.id == 1 else None)
        super().send(command)


class FailsToSubmit(Worker):
    """Fail to send the third request."""

    def send(self, command: Command) -> None:
        """Send every other command."""
        _raise(ValueError("odd") if isinstance(command, Submit) and command.id == 3 else None)
        super().send(command)


class ReportsNonsense(Worker):
    """Report the end of the first request with an invalid number."""

    def connect(self, receive: Callable[[Sequence[Report]], None]) -> None:
        """Change that report."""
        super().connect(lambda reports: receive([_invalidate(report) for report in reports]))


def _invalidate(report: Report) -> Report:
    if isinstance(report, SequenceEvent) and report.id == 1 and isinstance(report.event, Finished):
        return report._replace(number=[])  # type: ignore[arg-type] # it must be invalid
    return report


@pytest.mark.parametrize(
    ("worker_type", "failed"),
    [(FailsToCancel, None), (FailsToSubmit, 2), (ReportsNonsense, 0)],
    ids=["cancel", "submit", "report"],
)
def test_an_unexpected_fault_ends_only_its_own_request(
    worker_type: type[Worker], failed: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with scheduler_on(Loader(), concurrent=2, worker_type=worker_type) as scheduler:
            tasks = [ask(scheduler, A), ask(scheduler, A, LONG), ask(scheduler, A, LONG)]
            answers: list[object] = list(await asyncio.gather(*tasks, return_exceptions=True))
            if failed is not None:
                error = answers.pop(failed)
                assert isinstance(error, ModelError) and error.message.startswith("Generation failed: ")
            assert answers == [said for number, said in enumerate(("A", "A" * 300, "A" * 300)) if number != failed]
        assert [record.exc_info is not None for record in caplog.records] == [True]

    run(test())


# ------------------------------------------------------------------------------------------------------ disconnects


async def _steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _cancel_after(steps: int, question: Coroutine[Any, Any, str]) -> str | None:
    """Cancel a question after this many steps of the loop; return None, or the answer if it was complete."""
    task = asyncio.create_task(question)
    await _steps(steps)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


@pytest.mark.parametrize("pause", [0.0, 0.0003])
def test_a_client_may_disconnect_at_any_moment(pause: float) -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader, concurrent=2) as scheduler:
            answers: list[str | None] = []
            for steps in range(120):
                others = start_all(ask(scheduler, A), ask(scheduler, B))
                answers.append(await _cancel_after(steps, ask(scheduler, A if steps % 2 else B, slots=2)))
                await asyncio.sleep(pause)
                assert await asyncio.gather(*others) == ["A", "B"]
                await idle(scheduler, loader)
            assert None in answers

    run(test())


@pytest.mark.parametrize("steps", range(12))
def test_the_only_client_may_disconnect_while_its_model_loads(steps: int) -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader) as scheduler:
            await ask(scheduler, A)
            loader.gate.clear()
            cancelled = asyncio.create_task(_cancel_after(steps, ask(scheduler, B)))
            await until(lambda: loader.loads[1:] == ["B"] or cancelled.done())
            next_one = asyncio.create_task(ask(scheduler, A))
            loader.gate.set()
            assert await next_one == "A"
            await cancelled

    run(test())


def test_many_clients_may_connect_and_disconnect() -> None:
    async def client(scheduler: Scheduler, dice: random.Random) -> None:
        for _ in range(12):
            key, slots = dice.choice((A, B)), dice.choice((1, 1, 2, 3))
            question = ask(scheduler, key, dice.choice(("hi", LONG)), slots)
            answer = await _cancel_after(dice.choice((3, 9, 40, 5000)), question)
            assert answer is None or set(answer) == {key.name}

    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader, concurrent=4) as scheduler:
            await asyncio.gather(*(client(scheduler, random.Random(seed)) for seed in range(16)))
            await idle(scheduler, loader)
            assert await ask(scheduler, A, slots=4) == "AAAA"

    run(test())


def test_an_unread_answer_ends_and_frees_its_slot() -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader, concurrent=1) as scheduler:
            unread = scheduler.submit(A, requests(LONG))
            assert await ask(scheduler, A) == "A"
            assert await text_of(unread) == "A" * 300

    run(test())


def test_an_endless_unread_answer_is_cancelled() -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader) as scheduler:
            unread = scheduler.submit(A, requests(ENDLESS))
            await until(lambda: unread.has_ended)
            with pytest.raises(MlxkError, match="the client does not read it"):
                await text_of(unread)
            assert loader.models[0].given < 2 * MAX_WAITING_EVENTS

    run(test())


# -------------------------------------------------------------------------------------------------------- shutdown


def test_no_event_follows_the_end_of_a_generation() -> None:
    async def test() -> None:
        loader, events = Loader(), []
        async with scheduler_on(loader) as scheduler:
            generation = scheduler.submit(A, requests(ENDLESS))
            await until(lambda: any(model.given for model in loader.models))
            Batch.gate.clear()
            # All events that were under way have arrived by now.
            await asyncio.sleep(0.1)
            tokens = loader.models[0].given
            scheduler.stop()
            Batch.gate.set()
            await idle(scheduler, loader)
            with pytest.raises(ServerStoppingError):
                async for parts in generation:
                    events += [event for _, event in parts]
            assert events == [TextDelta("content", "A")] * tokens

    run(test())


def test_shutdown_refuses_waiting_and_ends_running_requests() -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader, concurrent=2) as scheduler:
            tasks = start_all(*(ask(scheduler, A, LONG) for _ in range(4)), ask(scheduler, B))
            await until(lambda: scheduler.active == 2 and scheduler.queued == 3)
            scheduler.stop()
            async with asyncio.timeout(2):
                answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(answer) for answer in answers] == [ServerStoppingError] * 5
            with pytest.raises(ServerStoppingError):
                await ask(scheduler, A)
            assert loader.loads == ["A"]

    run(test())


@pytest.mark.parametrize("steps", range(0, 40, 2))
def test_shutdown_works_at_any_moment(steps: int) -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader) as scheduler:
            tasks = start_all(ask(scheduler, A, LONG), ask(scheduler, B, LONG))
            await _steps(steps)
            scheduler.stop()
            async with asyncio.timeout(5):
                answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(answer) for answer in answers] == [ServerStoppingError] * 2

    run(test())


def test_shutdown_works_during_a_load() -> None:
    async def test() -> None:
        loader = Loader()
        loader.gate.clear()
        async with scheduler_on(loader) as scheduler:
            task = asyncio.create_task(ask(scheduler, A))
            await until(lambda: scheduler.pool.loading == A)
            scheduler.stop()
            with pytest.raises(ServerStoppingError):
                async with asyncio.timeout(1):
                    await task
            loader.gate.set()

    run(test())


def test_shutdown_works_during_a_long_step() -> None:
    async def test() -> None:
        loader = Loader()
        async with scheduler_on(loader) as scheduler:
            tasks = start_all(ask(scheduler, A, LONG))
            await until(lambda: any(model.rows for model in loader.models))
            Batch.gate.clear()
            await asyncio.sleep(0.01)
            tasks += start_all(ask(scheduler, A))
            await until(lambda: scheduler.active == 2)
            scheduler.stop()
            async with asyncio.timeout(1):
                answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(answer) for answer in answers] == [ServerStoppingError] * 2
            Batch.gate.set()

    run(test())


def test_the_worker_frees_memory_when_it_is_idle() -> None:
    async def test() -> None:
        loader = Loader()
        left: list[int] = []
        worker = Worker(loader.load, 64, rest=lambda: left.append(loader.models[0].rows))
        scheduler = Scheduler(ModelPool(worker), worker, Limits(64, 256), rest_seconds=0)
        Batch.gate.set()
        await asyncio.gather(ask(scheduler, A, LONG), ask(scheduler, A))
        await until(lambda: left == [0])
        assert await ask(scheduler, A) == "A"
        await until(lambda: left == [0, 0])
        scheduler.close()

    run(test())


def test_the_worker_frees_memory_once_for_many_ended_requests() -> None:
    async def test() -> None:
        loader = Loader()
        left: list[int] = []
        worker = Worker(loader.load, 64, rest=lambda: left.append(loader.models[0].rows))
        scheduler = Scheduler(ModelPool(worker), worker, Limits(64, 256), rest_seconds=3600)
        Batch.gate.set()
        answers = await asyncio.gather(*(ask(scheduler, A) for _ in range(20)))
        answers.append(await ask(scheduler, A))
        assert answers == ["A"] * 21
        assert len(left) == 1
        scheduler.close()

    run(test())


def test_a_fault_while_freeing_memory_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        worker = Worker(Loader().load, 64, rest=lambda: _raise(ValueError("odd")))
        scheduler = Scheduler(ModelPool(worker), worker, Limits(64, 256), rest_seconds=0)
        Batch.gate.set()
        assert await ask(scheduler, A) == "A"
        await until(lambda: "odd" in caplog.text)
        assert await ask(scheduler, A) == "A"
        scheduler.close()

    run(test())


def test_a_step_that_outlasts_the_event_loop_causes_no_error(caplog: pytest.LogCaptureFixture) -> None:
    loader = Loader()
    schedulers = []

    async def test() -> None:
        worker = Worker(loader.load, 64)
        schedulers.append(Scheduler(ModelPool(worker), worker, Limits(64, 256)))
        Batch.gate.set()
        generation = schedulers[0].submit(A, requests(ENDLESS))
        assert await anext(generation)
        # At the end of the server, the loop does not wait for the running step either.
        Batch.gate.clear()
        await asyncio.sleep(0.01)

    run(test())
    schedulers[0].close()
    Batch.gate.set()
    deadline = time.monotonic() + 20
    while any(thread.name.startswith("mlx") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert caplog.records == []


# --------------------------------------------------------------------------------------------- messages of the worker


def test_the_worker_reports_the_result_of_each_command() -> None:
    async def test() -> None:
        Batch.gate.set()
        worker, reports = Worker(Loader().load, 4), list[Report]()
        worker.connect(reports.extend)
        for command in (Submit(1, A, (request(),)), Load(A), Submit(2, A, (request(), request())), Cancel(99)):
            worker.send(command)
        await until(lambda: sum(isinstance(report, SequenceEvent) for report in reports) == 5)
        first, loaded, *others = reports
        assert isinstance(first, SequenceEvent) and isinstance(first.event, Failed)
        assert (first.id, first.number, str(first.event.error)) == (1, 0, "The model is no longer in memory.")
        assert loaded == Loaded(A, ScriptedBackend.vocabulary_size)
        for number in range(2):
            own = [one.event for one in others if isinstance(one, SequenceEvent) and one[:2] == (2, number)]
            delta, last = own
            assert delta == TextDelta("content", "A")
            assert isinstance(last, Finished) and last.usage == Usage(5, 0, 2)
        worker.stop()

    run(test())


def test_usage_counts_the_prompt_of_several_answers_once() -> None:
    async def test() -> None:
        async with scheduler_on(Loader()) as scheduler:
            generation = scheduler.submit(A, [*requests("hello", 3), request("hi")])
            await text_of(generation)
            assert generation.usage == Usage(prompt_tokens=5 + 2, cached_tokens=0, completion_tokens=4 * 2)

    run(test())
