"""A hub on the loopback that speaks enough of the real one's protocol for the real client, and fails on demand.

with HubServer(tmp_path) as server:
    commit = server.add("org/model", {"config.json": b"{}", "model.safetensors": weights})
    server.faults.add(Fault("model.safetensors", cut_after=1000))
    ... a program with HF_ENDPOINT=server.url in its environment ...
    assert server.log.count("GET", "model.safetensors") == 2
"""

from support.hub.faults import Fault
from support.hub.log import Request
from support.hub.server import HubServer

__all__ = ["Fault", "HubServer", "Request"]
