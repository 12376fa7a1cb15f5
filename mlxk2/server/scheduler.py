"""The scheduler: the queue of requests, whose turn it is, and when another model is loaded."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from mlxk2.errors import MlxkError, ServerBusyError, ServerStoppingError
from mlxk2.runner.request import GenerationRequest
from mlxk2.server.generation import Generation
from mlxk2.server.messages import Cancel, Loaded, LoadFailed, ModelKey, Report, Rest, SequenceEvent, Submit
from mlxk2.server.pool import ModelPool
from mlxk2.server.worker import Worker, as_error

# A request waits for at most this many later requests of other clients.
MAX_OVERTAKING = 64
# Seconds at least from one time that memory is given back to the next: taking it again makes the next request wait.
REST_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """How many sequences are generated at the same time, and how many requests may wait."""

    max_concurrent: int
    max_queue: int


@dataclass(eq=False)
class QueuedRequest:
    """A client's request for a model and for `slots`, one for each sequence: it is either started or refused.

    `turn` counts the slots that each client has been given when this request is next, if all clients take turns.
    """

    key: ModelKey
    slots: int
    start: Callable[[], object]
    refuse: Callable[[MlxkError], object]
    client: Hashable = None
    is_started: bool = False
    turn: int = 0
    overtaken: int = 0


class FairQueue:
    """Requests in the order in which they are started.

    The requests of one client keep their order. A request of a client with few requests goes before the later requests
    of a client with many, if both want the same model, but only so often that each request has its turn at some time.
    (Start-time fair queueing: https://doi.org/10.1109/90.649569.)
    """

    def __init__(self) -> None:
        self._requests: list[QueuedRequest] = []
        self._now = 0
        # The turn of each client's next request, if that is later than now.
        self._next: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[QueuedRequest]:
        return iter(list(self._requests))

    @property
    def first(self) -> QueuedRequest:
        """The request whose turn it is."""
        return self._requests[0]

    @property
    def from_clients(self) -> int:
        """How many requests came from clients; loading the first model is a request without slots."""
        return sum(request.slots > 0 for request in self._requests)

    def add(self, request: QueuedRequest) -> None:
        """Insert a request where it belongs."""
        request.turn = max(self._now, self._next.get(request.client, 0))
        self._next[request.client] = request.turn + request.slots
        index = len(self._requests)
        while index:
            other = self._requests[index - 1]
            may_overtake = other.client != request.client and other.key == request.key
            if not may_overtake or other.turn <= request.turn or other.overtaken >= MAX_OVERTAKING:
                break
            index -= 1
        for other in self._requests[index:]:
            other.overtaken += 1
        self._requests.insert(index, request)

    def pop(self) -> QueuedRequest:
        """Remove and return the first request."""
        return self.take(self.first)

    def take(self, request: QueuedRequest) -> QueuedRequest:
        """Remove and return a request that is started: its client has had this turn."""
        self._requests.remove(request)
        self._now = max(self._now, request.turn)
        self._next = {client: turn for client, turn in self._next.items() if turn > self._now}
        return request

    def remove(self, request: QueuedRequest) -> None:
        """Remove a request that is not started: its client gets these slots back."""
        self._requests.remove(request)
        turn = self._next.pop(request.client, 0) - request.slots
        if turn > self._now:
            self._next[request.client] = turn

    def prefer(self, key: ModelKey) -> None:
        """Move the requests for a model to the front, in the order they have."""
        self._requests.sort(key=lambda request: request.key != key)

    def pick_refused(self, client: Hashable) -> QueuedRequest:
        """Return the request to refuse when the queue is full: the last one of the client with the most requests.

        If `client` has as many requests as any other, it is that client's last one.
        """
        counts = Counter(request.client for request in self._requests if request.slots)
        (greediest, count), *_ = counts.most_common(1)
        refused = client if count == counts[client] else greediest
        return next(request for request in reversed(self._requests) if request.client == refused and request.slots)


class Scheduler:
    """Start requests, each client in turn, and load another model when the requests for the previous one are done.

    One load serves all requests that wait for that model, before any request for another one. The methods are for the
    thread of the event loop.
    """

    def __init__(self, pool: ModelPool, worker: Worker, limits: Limits, *, rest_seconds: float = REST_SECONDS) -> None:
        self.pool = pool
        self.limits = limits
        self._worker = worker
        self._rest_seconds = rest_seconds
        # When memory was last given back, or will be, by the loop's clock.
        self._rest_at = -math.inf
        self._rest: asyncio.Handle | None = None
        self._queue = FairQueue()
        # The requests that wait or are being generated, by id.
        self._requests: dict[int, tuple[Generation, QueuedRequest]] = {}
        self._count = 0
        self._active = 0
        self._is_stopping = False
        worker.connect(self.receive)

    @property
    def active(self) -> int:
        """How many sequences are being generated."""
        return self._active

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return self._queue.from_clients

    async def preload(self, key: ModelKey) -> None:
        """Load a model before a client asks for it; raise the error if that fails."""
        ends: asyncio.Queue[MlxkError | None] = asyncio.Queue()
        self._enqueue(QueuedRequest(key, 0, partial(ends.put_nowait, None), ends.put_nowait))
        if error := await ends.get():
            raise error

    def submit(self, key: ModelKey, requests: Sequence[GenerationRequest], client: Hashable = None) -> Generation:
        """Queue the requests of a client for a model; return the generation, which begins in its turn.

        Raise ServerBusyError if the queue is full, ServerStoppingError if the server is stopping. The generation
        raises the errors of loading the model and of `MLXRunner.submit`. The caller must cancel it if it does not wait
        for the end.
        """
        self._count += 1
        generation = Generation(self._count, key.name, requests)
        command = Submit(self._count, key, tuple(replace(request, client=client) for request in requests))
        start = partial(self._worker.send, command)
        queued = QueuedRequest(key, len(requests), start, partial(self._fail, generation), client)
        self._requests[generation.id] = (generation, queued)
        try:
            self._enqueue(queued)
        except BaseException:
            self.cancel(generation)
            raise
        return generation

    def cancel(self, generation: Generation) -> None:
        """Stop a generation and give back its slots, unless it has ended."""
        if generation.id in self._requests:
            self._release(generation.id)

    def receive(self, reports: Sequence[Report]) -> None:
        """Take the worker's reports in their order; one that can't be taken ends its own request alone."""
        for report in reports:
            if not isinstance(report, SequenceEvent):
                self._end_loading(report)
            elif entry := self._requests.get(report.id):
                # Others were cancelled while the step that gave this event was under way.
                generation, _ = entry
                try:
                    generation.put(report.number, report.event)
                except Exception as fault:  # noqa: BLE001 - the reports for other requests must arrive
                    generation.fail(as_error(fault, "Generation failed"))
                if generation.has_ended:
                    self._release(generation.id)

    def stop(self) -> None:
        """Accept no more requests, and end those that wait or are being generated with an error."""
        self._is_stopping = True
        error = ServerStoppingError()
        while self._queue:
            self._queue.pop().refuse(error)
        for generation, _ in list(self._requests.values()):
            self._fail(generation, error)

    def close(self) -> None:
        """Let the worker's thread end after its current step."""
        if self._rest is not None:
            self._rest.cancel()
        self._worker.stop()

    def _enqueue(self, request: QueuedRequest) -> None:
        if self._is_stopping:
            raise ServerStoppingError
        self._queue.add(request)
        self._admit()
        # The request whose model is being loaded is served next, however long the queue may be.
        max_queued = self.limits.max_queue + (self.pool.loading is not None)
        if not request.is_started and request.slots and self.queued > max_queued:
            refused = self._queue.pick_refused(request.client)
            self._queue.remove(refused)
            busy = ServerBusyError(self.queued)
            if refused is request:
                raise busy
            refused.refuse(busy)

    def _admit(self) -> None:
        """Start the requests at the head of the queue, up to the first that has to wait."""
        while self._queue and self.pool.loading is None:
            request = self._queue.first
            if self.pool.key != request.key:
                if not self._active:
                    self.pool.begin_loading(request.key)
                return
            if self._active and self._active + request.slots > self.limits.max_concurrent:
                return
            self._queue.pop()
            self._active += request.slots
            request.is_started = True
            try:
                request.start()
            except Exception as fault:  # noqa: BLE001 - this is also called at the end of another request
                request.refuse(as_error(fault, "Generation failed"))

    def _end_loading(self, report: Loaded | LoadFailed) -> None:
        """Let the requests for a model that was loaded go first, or refuse them if it can't be loaded."""
        error = self.pool.end_loading(report)
        if error is None:
            # Serving the requests that came while the model was being loaded saves loading it again.
            self._queue.prefer(report.key)
        else:
            refused = [request for request in self._queue if request.key == report.key]
            for request in refused:
                self._queue.remove(request)
            # Each of them lets the next request of the queue begin.
            for request in refused:
                request.refuse(error)
        self._admit()

    def _rest_soon(self) -> None:
        """Let the worker give memory back, now or when `rest_seconds` have passed since the last time."""
        loop = asyncio.get_running_loop()
        if self._rest_at <= loop.time():
            self._rest_at = max(loop.time(), self._rest_at + self._rest_seconds)
            self._rest = loop.call_at(self._rest_at, self._worker.send, Rest())

    def _fail(self, generation: Generation, error: MlxkError) -> None:
        generation.fail(error)
        self._release(generation.id)

    def _release(self, request_id: int) -> None:
        """Give back what a request holds that has ended or is cancelled; a fault in that is only logged."""
        _, request = self._requests.pop(request_id)
        try:
            self._give_back(request_id, request)
        except Exception:
            logging.exception("A fault at the end of a request; its slots are free")

    def _give_back(self, request_id: int, request: QueuedRequest) -> None:
        """Give back the slots of a request, or remove it from the queue; start those that wait."""
        try:
            if request.is_started:
                self._active -= request.slots
                self._worker.send(Cancel(request_id))
                self._rest_soon()
            elif request in self._queue:
                self._queue.remove(request)
        finally:
            self._admit()
