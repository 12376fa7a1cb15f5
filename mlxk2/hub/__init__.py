"""The hub on the network: the only room that imports huggingface_hub."""

import os

from mlxk2.hub import endpoint

# The library reads these while it is imported, and fails there without a word of where they came from.
endpoint.of(os.environ)
endpoint.check_timeouts(os.environ)
