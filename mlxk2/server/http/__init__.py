"""HTTP: connections, access, bodies, disconnects."""
