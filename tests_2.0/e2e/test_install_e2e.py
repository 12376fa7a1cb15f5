"""The package as it is released: complete wheel and sdist, installed in an empty environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 240
# Files that tests and packagers need in the sdist, and files that must not be in it.
NEEDED = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "TESTING.md",
    "benchmarks",
    "docs",
    "mlxk2",
    "pyproject.toml",
    "pytest.ini",
    "test-multi-python.sh",
    "tests_2.0",
    "tools",
}
UNWANTED = re.compile(r"__pycache__|\.py[co]$|\.log$|\.egg-info|_cache/|^\.(ci|venv|git/|hypothesis)|^(build|dist)/")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed and return its output."""
    own = ("PYTEST_", "PYTHON", "HF_", "MLXK2_", "COV_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(
        command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the source distribution, built from this tree."""
    place = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", place, cwd=ROOT)
    return next(place.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def source(sdist: Path) -> Path:
    """Return the unpacked source distribution."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    return sdist.parent / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """Return the wheel, built only from the source distribution."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", source.parent, cwd=source)
    return next(source.parent.glob("*.whl"))


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Return a new virtual environment with the dependencies of the package but without the package."""
    place = tmp_path / "environment"
    run(sys.executable, "-m", "venv", place, cwd=tmp_path)
    shared = sysconfig.get_paths()
    packages = next(place.glob("lib/python*/site-packages"))
    (packages / "shared.pth").write_text("".join(f"{shared[kind]}\n" for kind in ("purelib", "platlib")))
    return place


def files(root: Path, folder: str) -> set[str]:
    """Return the names of all files below a folder, without compiled ones."""
    found = (path.relative_to(root) for path in (root / folder).rglob("*") if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts}


def test_the_wheel_contains_exactly_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == files(ROOT, "mlxk2")
    assert "mlxk2/demo/model.safetensors" in names


def test_the_sdist_contains_exactly_what_it_needs(source: Path) -> None:
    assert {path.name for path in source.iterdir()} == NEEDED | {".gitignore", "PKG-INFO"}
    names = (str(path.relative_to(source)) for path in source.rglob("*"))
    assert [name for name in names if UNWANTED.search(name)] == []
    assert files(source, "tests_2.0") == files(ROOT, "tests_2.0")


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_installed_package_works(
    kind: str, environment: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    programs = environment / "bin"
    pip = (programs / "python", "-m", "pip", "--disable-pip-version-check")
    delivered: Path = request.getfixturevalue(kind)
    run(*pip, "install", "--no-index", "--no-deps", "--no-build-isolation", delivered, cwd=tmp_path)
    where = run(programs / "python", "-c", "import mlxk2; print(mlxk2.__file__)", cwd=tmp_path)
    assert where.startswith(str(environment))
    run(*pip, "check", cwd=tmp_path)
    version = run(programs / "mlxk2", "--version", cwd=tmp_path)
    assert version.split()[-1] in delivered.name
    assert run(programs / "mlxk-json", "--version", cwd=tmp_path) == version
    question = ("run", "demo", "What is the capital of France?", "--temperature", "0")
    assert run(programs / "mlxk2", *question, cwd=tmp_path) == "The capital of France is Paris.\n"


def test_the_tests_run_from_the_sdist(source: Path) -> None:
    # All test files are collected, and so imported, without assertion rewriting to save time; only these few are run.
    chosen = ("--assert=plain", "-k", "test_model_naming or test_cli_version_output")
    assert " passed" in run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, cwd=source)
