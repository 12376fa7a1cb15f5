"""Completion by TAB, in the shells themselves."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pexpect
import pytest
from support.layouts import CacheDir, chat_model

from mlxk2.cli.parser import ALPHA_VARIABLE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

# The commands that start each shell without the user's settings.
SHELLS = {"bash": "bash --norc --noprofile -i", "zsh": "zsh -f -i", "fish": "fish --no-config -i"}
# The ways to load the completion script into each shell.
READ = {
    "bash": "source <(mlxk2 completion bash)",
    "bash, eval": 'eval "$(mlxk2 completion bash)"',
    "zsh": "autoload -U compinit; compinit -u -D; source <(mlxk2 completion zsh)",
    "zsh, eval": 'autoload -U compinit; compinit -u -D; eval "$(mlxk2 completion zsh)"',
    "zsh, path": "mlxk2 completion zsh > _mlxk2; fpath=($PWD $fpath); autoload -U compinit; compinit -u -D",
    "fish": "mlxk2 completion fish | source",
    "fish, path": "mkdir -p c; mlxk2 completion fish > c/mlxk2.fish; set fish_complete_path $PWD/c",
}
TYPED = {
    "mlxk2 hea": "mlxk2 health",
    "mlxk2 list --verb": "mlxk2 list --verbose",
    "mlxk2 --json list --hea": "mlxk2 --json list --health",
    "mlxk2 completion fi": "mlxk2 completion fish",
    "mlxk2 show Al": "mlxk2 show Alpha-4bit",
    "mlxk2 show mlx-community/Al": "mlxk2 show mlx-community/Alpha-4bit",
    "mlxk2 show aL": "mlxk2 show Alpha-4bit",
    "mlxk2 show MLX-Community/al": "mlxk2 show mlx-community/Alpha-4bit",
    "mlxk2 rm ORG/b": "mlxk2 rm org/Beta",
    "mlxk2 run DE": "mlxk2 run demo",
    "mlxk2 run --seed 1 org/B": "mlxk2 run --seed 1 org/Beta",
    "mlxk2 serve --model dem": "mlxk2 serve --model demo",
    "mlxk2 rm org/B": "mlxk2 rm org/Beta",
    "mlxk2 rm dem": "mlxk2 rm dem",
    "mlxk2 show ./pl": "mlxk2 show ./plain",
    "mlxk2 run demo --adapter my": "mlxk2 run demo --adapter my folder",
    "mlxk2 pu": "mlxk2 pull",
}
SECOND_NAME = {"mlxk-json hea": "mlxk-json health", "mlxk-json show Al": "mlxk-json show Alpha-4bit"}
# Names that a shell would run as a command if the completion did not quote them.
HOSTILE = ("$(touch${IFS}bad)", "`touch${IFS}bad`", "x;touch${IFS}bad", "x'\"&|<>*?~ y")


class Shell:
    """A real shell on a terminal, in a folder with two folders."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        program, *words = SHELLS[name].split()
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
        for inner in ("plain", "my folder"):
            (folder / inner).mkdir(parents=True)
        self.child = pexpect.spawn(
            program, words, cwd=folder, env=environment, encoding="utf-8", timeout=30, dimensions=(50, 300), echo=False
        )
        if name == "zsh":
            self.run("bindkey -e")

    def run(self, line: str) -> None:
        """Run a command line and wait for its end."""
        self.child.sendline(line)
        self.child.sendline("echo READY'>'")
        self.child.expect_exact("READY>")

    def complete(self, line: str) -> str:
        """Press TAB at the end of a line; return the completed line without quotes and the slash of a folder."""
        # Ctrl-A goes to the beginning of the line and Ctrl-E to its end: `printf` then prints its words.
        self.child.send(f"{line}\t\x01printf '[%s]' BEGIN \x05 END\r")
        self.child.expect(r"\[BEGIN\](.*?)\[END\]")
        return " ".join(re.findall(r"\[(.*?)/?\]", str(self.child.match[1])))


@pytest.fixture
def models(isolated_cache: Path) -> CacheDir:
    """Return a cache with two models and with folders of hostile names."""
    cache_dir = CacheDir(isolated_cache)
    for name in ("mlx-community/Alpha-4bit", "org/Beta", *HOSTILE):
        cache_dir.add(name, chat_model())
    return cache_dir


@pytest.mark.parametrize("way", READ)
def test_tab_completes_commands_options_models_and_folders(
    models: CacheDir, environment: dict[str, str], tmp_path: Path, way: str
) -> None:
    shell = Shell(way.partition(",")[0], tmp_path / "work", environment)
    shell.run(READ[way])
    typed = TYPED if way.endswith("path") else TYPED | SECOND_NAME
    assert {line: shell.complete(line) for line in typed} == typed
    assert not list((tmp_path / "work").glob("bad*"))
    assert models.path.is_dir()


@pytest.mark.parametrize("name", SHELLS)
def test_tab_completes_alpha_commands_when_they_are_enabled(
    environment: dict[str, str], tmp_path: Path, name: str
) -> None:
    shell = Shell(name, tmp_path / "work", environment | {ALPHA_VARIABLE: "1"})
    shell.run(READ[name])
    assert shell.complete("mlxk2 pus") == "mlxk2 push"
    assert shell.complete("mlxk2 push ./pl") == "mlxk2 push ./plain"


@pytest.mark.parametrize("name", SHELLS)
def test_tab_hides_alpha_commands_by_default(environment: dict[str, str], tmp_path: Path, name: str) -> None:
    shell = Shell(name, tmp_path / "work", environment)
    shell.run(READ[name])
    assert shell.complete("mlxk2 pus") == "mlxk2 pus"
