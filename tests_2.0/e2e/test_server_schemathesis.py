"""Schemathesis reads the description of the API and sends valid and invalid requests to the real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.fuzz import EFFORT
from support.serving import Server

pytestmark = [pytest.mark.e2e, pytest.mark.sampled]

# Examples for each operation; 5 give 150 cases in all, 20 give 450, and 240 give 2,800.
EXAMPLES = 5 * EFFORT
# A schema can't express which fields go together and which prompts fit.
BEYOND_SCHEMAS = "positive_data_acceptance"


@pytest.mark.timeout(300 + 60 * EFFORT)
def test_the_server_conforms_to_its_openapi_description(tmp_path: Path) -> None:
    with Server("--model", "demo", "--max-tokens", "4", home=tmp_path) as server:
        said = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run"),
                f"{server.url}/openapi.json",
                *("--max-examples", str(EXAMPLES), "--exclude-checks", BEYOND_SCHEMAS, "--request-timeout", "60"),
                *("--seed", "1", "--generation-deterministic", "--no-color"),
                "--continue-on-failure",
            ],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert server.process.poll() is None
        assert said.returncode == 0, said.stdout + said.stderr
    cases = re.search(r"(\d+) generated", said.stdout)
    assert cases and int(cases[1]) >= 300, said.stdout
