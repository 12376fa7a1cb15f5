"""The threads of a download end with it, whatever happens in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxk2.cache.staging import Delivery, Wanted
from mlxk2.hub.client import connect
from mlxk2.hub.fetching import fetch_all
from mlxk2.hub.repos import Revision
from mlxk2.hub.transfer import Source


class Panic(BaseException):
    """What a library in another language raises when it fails: no Exception."""


@pytest.mark.timeout(20)
def test_a_panic_in_a_thread_ends_the_download(tmp_path: Path) -> None:
    delivery = Delivery.of(tmp_path, "org/model")
    delivery.begin()
    wanted = Wanted("model.safetensors", "a" * 64, 4)
    delivery.partial(wanted).write_bytes(b"half")

    def advance(_: int) -> None:
        raise Panic

    with pytest.raises(Panic):
        fetch_all(Source(connect(), Revision("org/model", "0" * 40, None)), [wanted], delivery, advance)
