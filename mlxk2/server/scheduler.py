"""The scheduler: keep the queue of requests, decide whose turn it is, and when to load another model."""

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

MAX_OVERTAKING = 64  # At most so many later requests of other clients may overtake a request.
# The least time between two returns of memory to the system, because getting memory again delays the next request.
REST_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """The most sequences that are generated at the same time, and the most requests that may wait."""

    max_concurrent: int
    max_queue: int


@dataclass(eq=False)
class QueuedRequest:
    """A client's request for a model and for `slots`, one for each sequence; it is either started or refused.

    `turn` is the start tag of fair queueing: the number of slots that each client has got when this request is next.
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
    """Requests in the order in which they will be started.

    The requests of one client keep their order. A request of a client with few requests overtakes requests of a client
    with many, if both need the same model. `MAX_OVERTAKING` ensures that each request has its turn at some time.
    (Start-time fair queueing: https://doi.org/10.1109/90.649569.)
    """

    def __init__(self) -> None:
        self._requests: list[QueuedRequest] = []
        self._now = 0
        # The turn of each client's next request, if it is later than now.
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
        """The number of requests from clients; loading the first model is a request without slots."""
        return sum(request.slots > 0 for request in self._requests)

    def add(self, request: QueuedRequest) -> None:
        """Insert a request at its place in the order."""
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
        """Remove and return a request that will be started; count its turn for its client."""
        self._requests.remove(request)
        self._now = max(self._now, request.turn)
        self._next = {client: turn for client, turn in self._next.items() if turn > self._now}
        return request

    def remove(self, request: QueuedRequest) -> None:
        """Remove a request that will not be started, and give its slots back to its client."""
        self._requests.remove(request)
        turn = self._next.pop(request.client, 0) - request.slots
        if turn > self._now:
            self._next[request.client] = turn

    def prefer(self, key: ModelKey) -> None:
        """Move the requests for a model to the front; keep their order."""
        self._requests.sort(key=lambda request: request.key != key)

    def pick_request_to_refuse(self, client: Hashable) -> QueuedRequest:
        """Return the request to refuse when the queue is full: the last one of the client with the most requests.

        If no other client has more requests than `client`, return the last one of `client`.
        """
        counts = Counter(request.client for request in self._requests if request.slots)
        (greediest, count), *_ = counts.most_common(1)
        refused = client if count == counts[client] else greediest
        return next(request for request in reversed(self._requests) if request.client == refused and request.slots)


class Scheduler:
    """Starts requests, one client after the other, and loads another model when the requests for the previous one end.

    After a model is loaded, all requests that wait for it are started before requests for another model. Call the
    methods in the thread of the event loop.
    """

    def __init__(self, pool: ModelPool, worker: Worker, limits: Limits, *, rest_seconds: float = REST_SECONDS) -> None:
        self.pool = pool
        self.limits = limits
        self._worker = worker
        self._rest_seconds = rest_seconds
        # The time of the last or next return of memory, by the loop's clock.
        self._rest_at = -math.inf
        self._rest: asyncio.Handle | None = None
        self._queue = FairQueue()
        # By id: the requests that wait or are being generated.
        self._requests: dict[int, tuple[Generation, QueuedRequest]] = {}
        self._count = 0
        self._active = 0
        self._is_stopping = False
        worker.connect(self.receive)

    @property
    def active(self) -> int:
        """The number of sequences that are being generated."""
        return self._active

    @property
    def queued(self) -> int:
        """The number of waiting requests."""
        return self._queue.from_clients

    async def preload(self, key: ModelKey) -> None:
        """Load a model before a client asks for it; raise the error if that fails."""
        ends: asyncio.Queue[MlxkError | None] = asyncio.Queue()
        self._enqueue(QueuedRequest(key, 0, partial(ends.put_nowait, None), ends.put_nowait))
        if error := await ends.get():
            raise error

    def submit(self, key: ModelKey, requests: Sequence[GenerationRequest], client: Hashable = None) -> Generation:
        """Queue the requests of a client for a model and return the generation, which starts when it has its turn.

        Raise ServerBusyError if the queue is full, and ServerStoppingError if the server is stopping. The generation
        raises errors of loading the model and of `MLXRunner.submit`. If the caller does not wait for its end, it must
        cancel the generation.
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
        """Stop a generation and free its slots, unless it has already ended."""
        if generation.id in self._requests:
            self._release(generation.id)

    def receive(self, reports: Sequence[Report]) -> None:
        """Handle the worker's reports in their order; a report that can't be handled ends only its own request."""
        for report in reports:
            if not isinstance(report, SequenceEvent):
                self._end_loading(report)
            elif entry := self._requests.get(report.id):
                # If the id is unknown, the request was cancelled during the step.
                generation, _ = entry
                try:
                    generation.put(report.number, report.event)
                except Exception as error:  # noqa: BLE001 - the reports for other requests must arrive
                    generation.fail(as_error(error, "Generation failed"))
                if generation.has_ended:
                    self._release(generation.id)

    def stop(self) -> None:
        """Accept no more requests, and end all requests that wait or are being generated with an error."""
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
        # The request whose model is being loaded has the next turn, so it does not count as waiting.
        max_queued = self.limits.max_queue + (self.pool.loading is not None)
        if not request.is_started and request.slots and self.queued > max_queued:
            refused = self._queue.pick_request_to_refuse(request.client)
            self._queue.remove(refused)
            busy = ServerBusyError(self.queued)
            if refused is request:
                raise busy
            refused.refuse(busy)

    def _admit(self) -> None:
        """Start the first requests of the queue, up to one that must wait."""
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
            except Exception as error:  # noqa: BLE001 - this is also called at the end of another request
                request.refuse(as_error(error, "Generation failed"))

    def _end_loading(self, report: Loaded | LoadFailed) -> None:
        """Move the requests for the loaded model to the front, or refuse them if loading failed."""
        error = self.pool.end_loading(report)
        if error is None:
            # Start the requests that came during loading before those for other models, to save another load.
            self._queue.prefer(report.key)
        else:
            refused = [request for request in self._queue if request.key == report.key]
            for request in refused:
                self._queue.remove(request)
            # Remove all of them first, because refusing one can start the next request of the queue.
            for request in refused:
                request.refuse(error)
        self._admit()

    def _rest_soon(self) -> None:
        """Let the worker return memory to the system, at least `rest_seconds` after the last time."""
        loop = asyncio.get_running_loop()
        if self._rest_at <= loop.time():
            self._rest_at = max(loop.time(), self._rest_at + self._rest_seconds)
            self._rest = loop.call_at(self._rest_at, self._worker.send, Rest())

    def _fail(self, generation: Generation, error: MlxkError) -> None:
        generation.fail(error)
        self._release(generation.id)

    def _release(self, request_id: int) -> None:
        """Release the slots of a request that has ended or was cancelled; only log an error in doing so."""
        _, request = self._requests.pop(request_id)
        try:
            self._give_back(request_id, request)
        except Exception as error:
            logging.error("An error at the end of a request; its slots are free", exc_info=error)

    def _give_back(self, request_id: int, request: QueuedRequest) -> None:
        """Free the slots of a request, or remove it from the queue; start the requests that wait."""
        try:
            if request.is_started:
                self._active -= request.slots
                self._worker.send(Cancel(request_id))
                self._rest_soon()
            elif request in self._queue:
                self._queue.remove(request)
        finally:
            self._admit()
