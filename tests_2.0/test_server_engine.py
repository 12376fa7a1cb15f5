"""Admission: whose turn it is, which model is in memory, and that nobody waits for ever, whatever goes wrong."""

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
from conftest_runner import ScriptedBackend, ScriptedRows, request, tokens_of

from mlxk2.errors import ContextLengthError, MlxkError, ModelError, ServerBusyError, ServerStoppingError
from mlxk2.runner.prompt_cache import PromptCache
from mlxk2.runner.request import GenerationRequest
from mlxk2.runner.runner import MLXRunner
from mlxk2.runner.sequences import Step
from mlxk2.server.engine import Engine, Limits, Target
from mlxk2.server.generation import MOST_WAITING, Reply
from mlxk2.server.http.access import client_of
from mlxk2.server.worker import Worker

A, B, C = (Target(name, f"/models/{name}") for name in ("A", "B", "C"))
CONTEXT = 1 << 15
LONG, ENDLESS = "long", "endless"
# How often a model says its name to these prompts.
TIMES = {LONG: 300, ENDLESS: 3 * MOST_WAITING}


class Panic(BaseException):
    """What a Rust library raises when it panics is no Exception."""


FAULTS = [ValueError("odd"), ModelError("damaged"), Panic("index out of range"), SystemExit(3), StopIteration("odd")]


class Rows(ScriptedRows):
    """Scripted rows that take a moment, as real ones do, or until `gate`; a fault comes out of the whole batch."""

    fault: BaseException | None = None
    gate = threading.Event()

    def next(self) -> list[Step]:
        """The next token of every row."""
        time.sleep(0.0005)
        assert Rows.gate.wait(20)
        if Rows.fault is not None:
            raise Rows.fault
        return super().next()

    def close(self) -> None:
        """Drop what is left."""
        self._rows.clear()


class Model(ScriptedBackend):
    """A model that says its name, once or as often as a prompt asks for."""

    def __init__(self, name: str) -> None:
        super().__init__(lambda request: tokens_of(name * TIMES.get(bytes(request.prompt).decode(), 1)), CONTEXT)

    def batch(self, max_rows: int, prompts: PromptCache) -> Rows:
        """A new batch, which is remembered."""
        assert max_rows > 0 and not prompts.nbytes
        self.batches.append(Rows(self._say))
        return self.batches[-1]  # type: ignore[return-value]

    @property
    def rows(self) -> int:
        """How many answers it is generating."""
        return sum(map(len, self.batches))


class Shelf:
    """Loads models, and writes down which; loading waits for `gate` and raises `faults`, or those after unloading."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.models: list[Model] = []
        self.gate = threading.Event()
        self.gate.set()
        self.faults: dict[str, BaseException] = {}
        self.late_faults: dict[str, BaseException] = {}
        self._loading = threading.Lock()

    def load(self, target: Target, unload: Callable[[], None]) -> Model:
        """Load a model as the real backend does: what can be wrong is found before the one before is dropped."""
        assert self._loading.acquire(blocking=False), "two loads at once"
        try:
            self.loads.append(target.name)
            assert self.gate.wait(20)
            _raise(self.faults.get(target.name))
            unload()
            _raise(self.late_faults.get(target.name))
            self.models.append(Model(target.name))
            return self.models[-1]
        finally:
            self._loading.release()


def _raise(fault: BaseException | None) -> None:
    if fault is not None:
        raise fault


@asynccontextmanager
async def engine_on(shelf: Shelf, concurrent: int = 64, queue: int = 256) -> AsyncIterator[Engine]:
    """An engine, which is idle again in the end."""
    engine = Engine(shelf.load, Worker(MLXRunner), Limits(concurrent, queue))
    Rows.gate.set()
    try:
        yield engine
        await idle(engine, shelf)
    finally:
        shelf.gate.set()
        Rows.gate.set()
        Rows.fault = None
        engine.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def idle(engine: Engine, shelf: Shelf) -> None:
    """Wait until nothing is held by anyone."""
    await until(lambda: engine.active == engine.queued == 0 and not any(model.rows for model in shelf.models))


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test, for a minute at most."""
    asyncio.run(asyncio.wait_for(test, 60))


def planned(prompt: str = "hi", count: int = 1, **options: Any) -> Callable[[Any], Sequence[GenerationRequest]]:
    """A plan of some equal requests."""
    return lambda _: [request(prompt, **options)] * count


async def text_of(reply: Reply) -> str:
    """All text of a reply, which is closed afterwards."""
    try:
        return "".join([chunk.text async for parts in reply for _, chunk in parts])
    finally:
        reply.close()


async def ask(engine: Engine, target: Target, prompt: str = "hi", slots: int = 1, client: str = "") -> str:
    """Generate, and return all that comes."""
    return await text_of(await engine.generate(target, slots, planned(prompt, slots), client))


def later(*questions: Awaitable[Any]) -> list[asyncio.Task[Any]]:
    """Ask in this order, without waiting."""
    return [asyncio.ensure_future(question) for question in questions]


# ------------------------------------------------------------------------------------------------------ whose turn


def test_a_model_is_loaded_once() -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf) as engine:
            assert await asyncio.gather(*(ask(engine, A) for _ in range(20))) == ["A"] * 20
            assert await ask(engine, Target("A", "/models/A")) == "A"
            assert shelf.loads == ["A"]

    run(test())


def test_no_more_than_the_limit_at_a_time() -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf, concurrent=3) as engine:
            tasks = later(*(ask(engine, A, LONG) for _ in range(9)))
            most = 0
            while not all(task.done() for task in tasks):
                most = max(most, engine.active)
                await asyncio.sleep(0.001)
            assert most == 3
            assert {task.result() for task in tasks} == {"A" * 300}

    run(test())


def test_a_wide_request_is_not_overtaken() -> None:
    async def test() -> None:
        ended: list[str] = []

        async def note(name: str, answer: Awaitable[str]) -> None:
            await answer
            ended.append(name)

        async with engine_on(Shelf(), concurrent=2) as engine:
            tasks = later(
                note("first", ask(engine, A, LONG)), note("wide", ask(engine, A, slots=2)), note("last", ask(engine, A))
            )
            await asyncio.gather(*tasks)
            assert ended == ["first", "wide", "last"]

    run(test())


async def order_of(engine: Engine, *asked: tuple[str, str, int]) -> list[str]:
    """The names of questions, each of a client and so many slots, in the order in which they end, behind a long one."""
    ended: list[str] = []

    async def note(name: str, client: str, slots: int) -> None:
        await ask(engine, A, slots=slots, client=client)
        ended.append(name)

    first = later(ask(engine, A, LONG, engine.limits.max_concurrent, client="before"))
    await until(lambda: engine.active == engine.limits.max_concurrent)
    await asyncio.gather(*first, *later(*(note(*question) for question in asked)))
    return ended


def test_many_questions_of_one_client_do_not_keep_another_waiting() -> None:
    async def test() -> None:
        async with engine_on(Shelf(), concurrent=1) as engine:
            many = [(f"many {number}", "many", 1) for number in range(20)]
            ended = await order_of(engine, *many, ("one", "one", 1), ("one again", "one", 1))
            assert ended[:4] == ["many 0", "one", "many 1", "one again"]
            assert ended[4:] == [f"many {number}" for number in range(2, 20)]

    run(test())


def test_wide_questions_of_one_client_do_not_keep_another_waiting() -> None:
    async def test() -> None:
        async with engine_on(Shelf(), concurrent=4) as engine:
            wide = [(f"wide {number}", "wide", 4) for number in range(3)]
            ended = await order_of(engine, *wide, *((f"one {number}", "one", 1) for number in range(4)))
            assert ended == ["wide 0", *(f"one {number}" for number in range(4)), "wide 1", "wide 2"]

    run(test())


def test_those_who_are_overtaken_get_their_turn_however_many_come() -> None:
    async def test() -> None:
        async with engine_on(Shelf(), concurrent=1, queue=1000) as engine:
            many = [(f"many {number}", "many", 1) for number in range(2)]
            ended = await order_of(engine, *many, *((f"new {number}", f"{number}", 1) for number in range(200)))
            assert ended.index("many 1") <= 65

    run(test())


def test_a_full_queue_refuses_the_last_of_the_client_that_has_most() -> None:
    async def test() -> None:
        async with engine_on(Shelf(), concurrent=1, queue=3) as engine:
            first = later(ask(engine, A, LONG))
            await until(lambda: engine.active == 1)
            many = later(*(ask(engine, A, client="many") for _ in range(3)))
            await until(lambda: engine.queued == 3)
            one = later(ask(engine, A, client="one"))
            with pytest.raises(ServerBusyError, match="3 requests wait"):
                await many[2]
            with pytest.raises(ServerBusyError, match="3 requests wait"):
                await ask(engine, A, client="many")
            assert await asyncio.gather(*first, *many[:2], *one) == ["A" * 300, "A", "A", "A"]

    run(test())


def test_requests_that_were_called_off_are_no_turns_of_a_client() -> None:
    async def test() -> None:
        async with engine_on(Shelf(), concurrent=1) as engine:
            first = later(ask(engine, A, LONG))
            await until(lambda: engine.active == 1)
            gone = [await engine.generate(A, 1, planned(), "hasty") for _ in range(50)]
            for reply in gone:
                reply.close()
            ended = await order_of(engine, *((f"many {number}", "many", 1) for number in range(20)), ("it", "hasty", 1))
            assert ended.index("it") == 1
            await asyncio.gather(*first)

    run(test())


def test_clients_that_were_refused_leave_nothing_behind() -> None:
    async def test() -> None:
        async with engine_on(Shelf(), concurrent=1, queue=1) as engine:
            tasks = later(ask(engine, A, LONG, client="first"), ask(engine, A, client="second"))
            await until(lambda: engine.queued == 1)
            tracemalloc.start()
            for number in range(300):
                keys = [(b"authorization", b"Bearer %d" % number + b"k" * 10_000)]
                client = client_of({"type": "http", "client": ("127.0.0.1", 1), "headers": keys})
                with pytest.raises(ServerBusyError):
                    await engine.generate(A, 1, planned(), client)
            taken, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert taken < 1 << 20
            await asyncio.gather(*tasks)

    run(test())


def test_a_steady_stream_for_one_model_does_not_starve_another() -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf, concurrent=2) as engine:
            stop = asyncio.Event()

            async def stream() -> None:
                while not stop.is_set():
                    await ask(engine, A, LONG)

            tasks = later(*(stream() for _ in range(6)))
            await until(lambda: engine.active == 2)
            async with asyncio.timeout(10):
                assert await ask(engine, B) == "B"
            stop.set()
            await asyncio.gather(*tasks)
            assert shelf.loads[:2] == ["A", "B"]

    run(test())


def test_those_who_wait_for_the_same_model_are_served_by_one_swap() -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf) as engine:
            shelf.gate.clear()
            tasks = later(*(ask(engine, target) for target in (A, B, C, A, B, C, A, B, C)))
            await until(lambda: engine.queued == 9)
            shelf.gate.set()
            assert await asyncio.gather(*tasks) == ["A", "B", "C"] * 3
            assert shelf.loads == ["A", "B", "C"]

    run(test())


def test_answers_on_their_way_end_before_a_swap() -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf) as engine:
            first = asyncio.create_task(ask(engine, A, LONG))
            await until(lambda: engine.active == 1)
            assert await ask(engine, B) == "B"
            assert first.done() and await first == "A" * 300

    run(test())


def test_a_full_queue_refuses() -> None:
    async def test() -> None:
        async with engine_on(Shelf(), concurrent=1, queue=2) as engine:
            tasks = later(ask(engine, A, LONG))
            await until(lambda: engine.active == 1)
            tasks += later(ask(engine, A), ask(engine, A))
            await until(lambda: engine.queued == 2)
            with pytest.raises(ServerBusyError, match="2 requests wait"):
                await ask(engine, A)
            assert await asyncio.gather(*tasks) == ["A" * 300, "A", "A"]

    run(test())


def test_without_a_queue_a_model_is_loaded_on_demand_nevertheless() -> None:
    async def test() -> None:
        async with engine_on(Shelf(), concurrent=1, queue=0) as engine:
            assert await ask(engine, A) == "A"
            assert await ask(engine, B) == "B"
            first = asyncio.create_task(ask(engine, B, LONG))
            await until(lambda: engine.active == 1)
            with pytest.raises(ServerBusyError):
                await ask(engine, B)
            await first

    run(test())


def test_without_a_queue_a_request_waits_for_the_model_of_the_start() -> None:
    async def test() -> None:
        shelf = Shelf()
        shelf.gate.clear()
        async with engine_on(shelf, concurrent=1, queue=0) as engine:
            start = asyncio.create_task(engine.preload(A))
            await until(lambda: shelf.loads == ["A"])
            first = asyncio.create_task(ask(engine, A))
            await until(lambda: engine.queued == 1)
            with pytest.raises(ServerBusyError, match="1 requests wait"):
                await ask(engine, A)
            shelf.gate.set()
            await start
            assert await first == "A"

    run(test())


# --------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_model_that_fails_to_load_says_why_and_leaves_the_old_one(fault: BaseException) -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf) as engine:
            await ask(engine, A)
            shelf.faults["B"] = fault
            for answer in await asyncio.gather(*(ask(engine, B) for _ in range(3)), return_exceptions=True):
                assert isinstance(answer, MlxkError) and str(fault) in answer.message
            assert engine.target == A
            assert await ask(engine, A) == "A"
            assert shelf.loads == ["A", "B"]

    run(test())


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_model_that_fails_late_leaves_a_server_that_works(fault: BaseException) -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf) as engine:
            await ask(engine, A)
            shelf.late_faults["B"] = fault
            with pytest.raises(MlxkError, match=str(fault)):
                await ask(engine, B)
            assert engine.target is None
            assert await ask(engine, A) == "A"
            assert shelf.loads == ["A", "B", "A"]

    run(test())


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_plan_that_fails_frees_its_slots(fault: BaseException) -> None:
    async def test() -> None:
        async with engine_on(Shelf(), concurrent=1) as engine:
            with pytest.raises(Exception, match=str(fault)):
                await text_of(await engine.generate(A, 1, lambda _: _raise(fault)))  # type: ignore[arg-type, return-value]
            assert await ask(engine, A) == "A"

    run(test())


def test_a_request_of_which_one_part_does_not_fit_leaves_the_next_alone() -> None:
    async def test() -> None:
        async with engine_on(Shelf()) as engine:
            await ask(engine, A)
            both = [request("fits"), request("x" * CONTEXT)]
            for _ in range(50):
                bad = asyncio.create_task(text_of(await engine.generate(A, 2, lambda _: both)))
                good = asyncio.create_task(ask(engine, A))
                with pytest.raises(ContextLengthError):
                    await bad
                async with asyncio.timeout(5):
                    assert await good == "A"

    run(test())


@pytest.mark.parametrize("fault", [RuntimeError("no memory"), KeyboardInterrupt("odd"), Panic("odd")], ids=repr)
def test_a_step_that_fails_ends_every_answer_and_the_next_one_works(fault: BaseException) -> None:
    async def test() -> None:
        async with engine_on(Shelf()) as engine:
            tasks = later(*(ask(engine, A, LONG) for _ in range(5)))
            await until(lambda: engine.active == 5)
            Rows.fault = fault
            for answer in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(answer, ModelError) and str(fault) in answer.message
            Rows.fault = None
            assert await ask(engine, A) == "A"

    run(test())


# --------------------------------------------------------------------------------------------- clients that go away


async def _steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _cancelled_after(steps: int, question: Coroutine[Any, Any, str]) -> str | None:
    """The answer, or None if cancelling after that many steps of the loop was in time."""
    task = asyncio.create_task(question)
    await _steps(steps)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


@pytest.mark.parametrize("pause", [0.0, 0.0003])
def test_a_client_may_go_at_any_moment(pause: float) -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf, concurrent=2) as engine:
            answers: list[str | None] = []
            for steps in range(120):
                others = later(ask(engine, A), ask(engine, B))
                answers.append(await _cancelled_after(steps, ask(engine, A if steps % 2 else B, slots=2)))
                await asyncio.sleep(pause)
                assert await asyncio.gather(*others) == ["A", "B"]
                await idle(engine, shelf)
            assert None in answers

    run(test())


@pytest.mark.parametrize("steps", range(12))
def test_the_last_of_its_model_goes_while_that_is_loaded(steps: int) -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf) as engine:
            await ask(engine, A)
            shelf.gate.clear()
            cancelled = asyncio.create_task(_cancelled_after(steps, ask(engine, B)))
            await until(lambda: shelf.loads[1:] == ["B"] or cancelled.done())
            next_one = asyncio.create_task(ask(engine, A))
            shelf.gate.set()
            assert await next_one == "A"
            await cancelled

    run(test())


def test_a_crowd_of_clients_that_come_and_go() -> None:
    async def client(engine: Engine, dice: random.Random) -> None:
        for _ in range(12):
            target, slots = dice.choice((A, B)), dice.choice((1, 1, 2, 3))
            question = ask(engine, target, dice.choice(("hi", LONG)), slots)
            answer = await _cancelled_after(dice.choice((3, 9, 40, 5000)), question)
            assert answer is None or set(answer) == {target.name}

    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf, concurrent=4) as engine:
            await asyncio.gather(*(client(engine, random.Random(seed)) for seed in range(16)))
            await idle(engine, shelf)
            assert await ask(engine, A, slots=4) == "AAAA"

    run(test())


def test_an_answer_that_is_not_read_holds_no_slot_and_ends() -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf, concurrent=1) as engine:
            unread = await engine.generate(A, 1, planned(LONG))
            assert await ask(engine, A) == "A"
            assert await text_of(unread) == "A" * 300

    run(test())


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf) as engine:
            unread = await engine.generate(A, 1, planned(ENDLESS))
            await until(lambda: unread.is_closed)
            with pytest.raises(MlxkError, match="nobody reads it"):
                await text_of(unread)
            assert unread.completion_tokens < 2 * MOST_WAITING

    run(test())


# --------------------------------------------------------------------------------------------------------- the end


def test_nothing_of_an_answer_comes_after_what_ended_it() -> None:
    async def test() -> None:
        shelf, texts = Shelf(), []
        async with engine_on(shelf) as engine:
            reply = await engine.generate(A, 1, planned(ENDLESS))
            await until(lambda: reply.completion_tokens > 0)
            Rows.gate.clear()
            # What was on its way has come then.
            await asyncio.sleep(0.1)
            tokens = reply.completion_tokens
            engine.stop()
            Rows.gate.set()
            await idle(engine, shelf)
            with pytest.raises(ServerStoppingError):
                async for parts in reply:
                    texts += [chunk.text for _, chunk in parts]
            assert texts == ["A"] * tokens

    run(test())


def test_the_end_refuses_all_that_wait_and_ends_all_that_is_under_way() -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf, concurrent=2) as engine:
            tasks = later(*(ask(engine, A, LONG) for _ in range(4)), ask(engine, B))
            await until(lambda: engine.active == 2 and engine.queued == 3)
            engine.stop()
            async with asyncio.timeout(2):
                answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(answer) for answer in answers] == [ServerStoppingError] * 5
            with pytest.raises(ServerStoppingError):
                await ask(engine, A)
            assert shelf.loads == ["A"]

    run(test())


@pytest.mark.parametrize("steps", range(0, 40, 2))
def test_the_end_may_come_at_any_moment(steps: int) -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf) as engine:
            tasks = later(ask(engine, A, LONG), ask(engine, B, LONG))
            await _steps(steps)
            engine.stop()
            async with asyncio.timeout(5):
                answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(answer) for answer in answers] == [ServerStoppingError] * 2

    run(test())


def test_the_end_during_a_load() -> None:
    async def test() -> None:
        shelf = Shelf()
        shelf.gate.clear()
        async with engine_on(shelf) as engine:
            task = asyncio.create_task(ask(engine, A))
            await until(lambda: engine.loading == A)
            engine.stop()
            with pytest.raises(ServerStoppingError):
                async with asyncio.timeout(1):
                    await task
            shelf.gate.set()

    run(test())


def test_the_end_during_a_step_that_takes_long() -> None:
    async def test() -> None:
        shelf = Shelf()
        async with engine_on(shelf) as engine:
            tasks = later(ask(engine, A, LONG))
            await until(lambda: any(model.rows for model in shelf.models))
            Rows.gate.clear()
            await asyncio.sleep(0.01)
            tasks += later(ask(engine, A))
            await until(lambda: engine.active == 2)
            engine.stop()
            async with asyncio.timeout(1):
                answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(answer) for answer in answers] == [ServerStoppingError] * 2
            Rows.gate.set()

    run(test())


def test_the_worker_rests_when_nothing_is_left() -> None:
    async def test() -> None:
        shelf = Shelf()
        left: list[int] = []
        worker = Worker(MLXRunner, rest=lambda: left.append(shelf.models[0].rows))
        engine = Engine(shelf.load, worker, Limits(64, 256))
        Rows.gate.set()
        await asyncio.gather(ask(engine, A, LONG), ask(engine, A))
        await until(lambda: left == [0])
        assert await ask(engine, A) == "A"
        await until(lambda: left == [0, 0])
        engine.close()

    run(test())


def test_a_step_that_outlasts_the_event_loop_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf()
    engines = []

    async def test() -> None:
        engines.append(Engine(shelf.load, Worker(MLXRunner), Limits(64, 256)))
        Rows.gate.set()
        reply = await engines[0].generate(A, 1, planned(ENDLESS))
        assert await anext(reply)
        # As at the end of the server: the loop does not wait for the step that is being done.
        Rows.gate.clear()
        await asyncio.sleep(0.01)

    run(test())
    engines[0].close()
    Rows.gate.set()
    deadline = time.monotonic() + 20
    while any(thread.name.startswith("mlx") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert caplog.records == []
