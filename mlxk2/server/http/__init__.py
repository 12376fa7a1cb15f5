"""HTTP, for every API: connections, access, bodies, refusals, disconnects."""
