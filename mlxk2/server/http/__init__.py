"""HTTP for all APIs: connections, access, bodies, refusals and disconnects."""
