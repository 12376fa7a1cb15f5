"""Communicate with the hub over the network; only this package imports huggingface_hub."""

import os

from mlxk2.hub import endpoint

# huggingface_hub reads these variables during its import, and its errors do not name the variable. So check them
# before.
endpoint.read(os.environ)
endpoint.check_timeouts(os.environ)
