"""Imported libraries can't change the process, and a failed import gives its cause."""

from __future__ import annotations

import os
import resource
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from mlxk2.commands.context import hub_imports
from mlxk2.errors import MlxkError, ModelNotRunnableError, OperationError
from mlxk2.fence import fence, raise_open_files
from mlxk2.runner.offline import offline


def import_offline(library: str) -> None:
    """Import a library in the way in which commands import the runner."""
    with offline():
        import_module(library)


def import_from_hub(library: str) -> None:
    """Import a library in the way in which commands import the hub."""
    with hub_imports():
        import_module(library)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Return the name of a library whose import runs the code that the test gives."""
    name = f"library_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(request.param)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def of(code: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("library", [code], indirect=True)


@of("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\nresource.setrlimit(0, (-5, 3))")
def test_an_import_cannot_lower_limits(library: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    import_offline(library)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == before[1]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= before[0]


@of("print('[ERROR] not documented')")
def test_output_of_an_import_is_logged(
    library: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import_offline(library)
    assert capsys.readouterr().out == ""
    assert caplog.messages == ["[ERROR] not documented"]


@of("import os\nassert os.getcwd()")
def test_an_import_works_in_a_deleted_working_folder(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    import_offline(library)
    with pytest.raises(FileNotFoundError):
        os.getcwd()


@of("import os\nos.environ['HF_ENDPOINT'] = 'x'\nassert 'MLXLM_USE_MODELSCOPE' not in os.environ")
def test_an_import_cannot_change_environment_variables(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("MLXLM_USE_MODELSCOPE", "True")
    import_offline(library)
    assert "HF_ENDPOINT" not in os.environ
    assert os.environ["MLXLM_USE_MODELSCOPE"] == "True"


FAILURES = {
    "To run olmo: pip install ai2-olmo": "import sys\nprint('To run olmo: pip install ai2-olmo')\nsys.exit(1)",
    "a library ended the program (3)": "raise SystemExit(3)",
    "No module named 'nonesuch'": "import nonesuch",
    "invalid literal for int()": "int('abc')",
    "NotImplementedError": "raise NotImplementedError",
}


@pytest.mark.parametrize(("library", "reason"), [(c, r) for r, c in FAILURES.items()], indirect=["library"])
@pytest.mark.parametrize(
    ("enter", "kind"), [(import_offline, ModelNotRunnableError), (import_from_hub, OperationError)]
)
def test_a_failed_import_is_an_error_with_its_cause(
    enter: Callable[[str], object], kind: type[MlxkError], library: str, reason: str
) -> None:
    with pytest.raises(kind) as caught:
        enter(library)
    assert reason in caught.value.message
    assert caught.value.details["hint"]


def test_stdout_is_restored_after_an_error_inside_the_fence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="mine"), fence():
        raise ValueError("mine")
    sys.stdout.write("back\n")
    assert capsys.readouterr().out == "back\n"


def test_other_threads_can_print_during_an_import(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with fence():
        other = threading.Thread(target=sys.stdout.write, args=["mine\n"])
        other.start()
        other.join()
        sys.stdout.write("the library's\n")
    assert capsys.readouterr().out == "mine\n"
    assert caplog.messages == ["the library's"]


@pytest.mark.parametrize(("soft", "wanted", "after"), [(256, 2048, 2048), (256, 10**9, 4096), (3000, 2048, 3000)])
def test_the_limit_of_open_files_is_raised_up_to_the_hard_limit(soft: int, wanted: int, after: int) -> None:
    # This runs in a separate process, because a hard limit can't be raised again.
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, 4096))
        raise_open_files(wanted)
        os._exit(resource.getrlimit(resource.RLIMIT_NOFILE) != (after, 4096))
    assert os.waitpid(pid, 0)[1] == 0
