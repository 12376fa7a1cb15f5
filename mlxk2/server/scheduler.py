"""The queue of requests: clients take turns, answer by answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlxk2.errors import MlxkError

# How many later requests of other clients may go before one.
_MAX_OVERTAKING = 64


class Target(NamedTuple):
    """A model to load: its name, the folder of its files, and a LoRA adapter's. Equal ones are the same model."""

    name: str
    path: str
    adapter: str | None = None


@dataclass(eq=False)
class Ticket:
    """A request of a client that waits for its model and its slots: then it is started, or else refused.

    `turn` is how many slots each client has been given when this one is next, if all of them take turns.
    """

    target: Target
    slots: int
    start: Callable[[Any], object]
    refuse: Callable[[MlxkError], object]
    client: Hashable = None
    is_started: bool = False
    turn: int = 0
    overtaken: int = 0


class Turns:
    """Tickets in the order in which they are admitted.

    A client's own stay in the order they came. One with few goes before the later ones of a client with many for the
    same model, so many times that each gets its turn some day. (Start-time fair queueing:
    https://doi.org/10.1109/90.649569.)
    """

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []
        self._now = 0
        # The turn of each client's next ticket, as long as that is not now.
        self._next: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(list(self._tickets))

    @property
    def requests(self) -> int:
        """How many of the tickets are requests of clients; the model of the start has one without slots."""
        return sum(ticket.slots > 0 for ticket in self._tickets)

    @property
    def first(self) -> Ticket:
        """The ticket whose turn it is."""
        return self._tickets[0]

    def add(self, ticket: Ticket) -> None:
        """Give a ticket its place."""
        ticket.turn = max(self._now, self._next.get(ticket.client, 0))
        self._next[ticket.client] = ticket.turn + ticket.slots
        place = len(self._tickets)
        while place and _goes_before(ticket, self._tickets[place - 1]):
            place -= 1
        for other in self._tickets[place:]:
            other.overtaken += 1
        self._tickets.insert(place, ticket)

    def pop(self) -> Ticket:
        """Take the first ticket."""
        return self.take(self.first)

    def take(self, ticket: Ticket) -> Ticket:
        """Take a ticket: its client has had this turn."""
        self._tickets.remove(ticket)
        self._now = max(self._now, ticket.turn)
        self._next = {client: turn for client, turn in self._next.items() if turn > self._now}
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Forget a ticket, whose slots its client was not given."""
        self._tickets.remove(ticket)
        turn = self._next.pop(ticket.client, 0) - ticket.slots
        if turn > self._now:
            self._next[ticket.client] = turn

    def prefer(self, target: Target) -> None:
        """Let those that wait for a model go first, in the order they have."""
        self._tickets.sort(key=lambda ticket: ticket.target != target)

    def last_of_most(self, client: Hashable) -> Ticket:
        """Return the ticket to refuse where there are too many: the last of the client that has the most.

        That is this client, unless another has more.
        """
        counts = Counter(ticket.client for ticket in self._tickets if ticket.slots)
        (greediest, most), *_ = counts.most_common(1)
        refused = client if most == counts[client] else greediest
        return next(ticket for ticket in reversed(self._tickets) if ticket.client == refused and ticket.slots)


def _goes_before(late: Ticket, early: Ticket) -> bool:
    is_theirs = early.client != late.client and early.target == late.target
    return is_theirs and early.turn > late.turn and early.overtaken < _MAX_OVERTAKING
