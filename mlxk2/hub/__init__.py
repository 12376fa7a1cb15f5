"""The hub on the network: the only room that imports huggingface_hub."""

import os

from mlxk2.hub import endpoint

# The library takes the address apart while it is imported, and fails there without a word of where it came from.
endpoint.of(os.environ)
