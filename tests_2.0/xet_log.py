"""Keeps the log that hf_xet begins when it is imported out of the cache that HF_HOME names, which is the user's."""

import os

os.environ.setdefault("HF_XET_LOG_DEST", os.devnull)
