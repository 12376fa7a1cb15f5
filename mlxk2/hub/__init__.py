"""The hub on the network: the only room that imports huggingface_hub."""

import os

from mlxk2.hub import endpoint

# The library reads these variables while it is imported; its errors there do not name the variable.
endpoint.read(os.environ)
endpoint.check_timeouts(os.environ)
