"""Remove the user's settings from the environment before anything reads them; opt-in tests' settings stay."""

import os

for name in ("HF_HUB_OFFLINE", "MLXK2_DEBUG", "COLUMNS", "FORCE_COLOR", "NO_COLOR"):
    os.environ.pop(name, None)
# The program is started a thousand times: it is compiled once, as an installed one is.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# hf_xet begins a log when it is imported, in the cache that HF_HOME names: the user's.
os.environ.setdefault("HF_XET_LOG_DEST", os.devnull)
