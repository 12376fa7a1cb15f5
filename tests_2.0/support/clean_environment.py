"""Remove the user's settings from the environment before anything reads them; opt-in tests' settings stay."""

import os
from pathlib import Path

for name in ("HF_HUB_OFFLINE", "MLXK2_DEBUG", "COLUMNS", "FORCE_COLOR", "NO_COLOR", "PYTHONUNBUFFERED"):
    os.environ.pop(name, None)
# The tests start the program a thousand times, so Python may cache its compiled files.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# hf_xet starts a log file when it is imported, by default in the user's cache.
os.environ.setdefault("HF_XET_LOG_DEST", os.devnull)
# Processes that import transformers start in half the time.
os.environ["PYTHONPATH"] = str(Path(__file__).with_name("quick_start"))
