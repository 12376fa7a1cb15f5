"""Chat templates are untrusted programs: they render as in transformers, within limits of time and memory."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest_runner import OneProcess
from support.tiny_models import CHATML, write_tokenizer
from transformers import AutoTokenizer

import mlxk2
from mlxk2.errors import ContextLengthError, ModelError, ModelNotRunnableError, OperationCancelled
from mlxk2.runner.prompt.confined import ConfinedProcess, Starter
from mlxk2.runner.prompt.tokenizer import RefusedError, Tokenizer, load_tokenizer

MESSAGES = [
    {"role": "system", "content": 'Be <b>brief</b> & "kind".\n'},
    {"role": "user", "content": "Grüße \U0001f600\0\u2028"},
    {"role": "assistant", "content": "  yes\r\n"},
    {"role": "user", "content": "<|im_end|>{{ 7 * 7 }}{% raw %}"},
]
SOUND = {
    "chatml": CHATML,
    "the demo's": (Path(mlxk2.__file__).parent / "demo" / "chat_template.jinja").read_text(encoding="utf-8"),
    "blocks": "  {% for m in messages %}\n  {{- m['content'] | trim }}\n\n  {% endfor %}\n{# x #}\n\nend\n",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ '<é>' | tojson(ensure_ascii=true) }}",
    "loop controls": (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}"
    ),
    "namespace": "{% set n = namespace(k=1) %}{% for m in messages %}{% set n.k = n.k * 3 %}{% endfor %}{{ n.k }}",
    "generation": "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys('ab') }}{{ dict is mapping }}",
    "nothing given": "{{ tools is none }}{{ documents is none }}{{ xyz is defined }}{{ add_generation_prompt }}",
    "reasoning": "{{ enable_thinking is defined and enable_thinking }}",
    "the day": "{{ strftime_now('%Y') }}",
    "macros": "{% macro f(x, y=2) %}{{ x }}{{ y }}{{ caller() }}{% endmacro %}{% call f(1) %}z{% endcall %}",
    "methods": "{{ messages[0].content.split()[1:] }}{{ 'a-b'.replace('-', '+') }}{{ messages[0].items() | list }}",
    "numbers": "{{ 7 // 2 }}{{ 2 ** 10 }}{{ 1 / 3 }}{{ '%03d' % 7 }}{{ 'x' ~ 1 }}{{ [1] * 3 }}",
}


class Confined:
    """A process that gets one chat template after the other; its tokens are bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starter = OneProcess()

    def ask(self, source: str, messages: Any = MESSAGES, /, **options: Any) -> str:
        """Return the rendered text of a conversation."""
        tokenizer = self.open(source)
        return tokenizer.decode(tokenizer.apply_chat_template(messages, **options))

    def open(self, source: str) -> Tokenizer:
        """Return a tokenizer with this template."""
        write_tokenizer(self.folder, template=source, config={"bos_token": "<|im_start|>"})
        return load_tokenizer(self.folder, {}, self.starter, "model")


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> Confined:
    """Return a process for the templates of this file."""
    return Confined(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("source", SOUND.values(), ids=SOUND)
def test_templates_render_as_in_transformers(confined: Confined, source: str) -> None:
    options = {"add_generation_prompt": True, "enable_thinking": True}
    tokenizer = confined.open(source)
    theirs = AutoTokenizer.from_pretrained(confined.folder)
    expected = theirs.apply_chat_template(MESSAGES, tokenize=False, **options)
    for _ in range(2):
        assert tokenizer.decode(tokenizer.apply_chat_template(MESSAGES, **options)) == expected


@pytest.mark.parametrize("name", ["self", "args", "kwargs", "template", "values", "variables", "__class__", "a b", ""])
def test_a_template_variable_may_have_any_name(confined: Confined, name: str) -> None:
    source = "{{ messages[-1].content }}"
    assert confined.ask(source, **{name: 1}) == MESSAGES[-1]["content"]
    last = [{"role": "assistant", "content": "yes"}]
    assert confined.ask(source, last, **{name: 1}, continue_final_message=True) == "yes"


REFUSING = {
    "refuses": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    "refuses at length": ("{{ raise_exception('x' * 10000) }}", "x" * 300),
    "is no template": ("{% for %}", "Expected an expression"),
    "uses an undefined name": ("{{ messages.x.y }}", "has no"),
    "fails": ("{{ 1 / 0 }}", "division by zero"),
    "looks into Python": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "looks into Python by a name": ("{{ ''['__cla' ~ 'ss__'].__mro__ }}", "unsafe"),
    "looks into Python by a filter": ("{{ ''|attr('__class__')|attr('mro') }}", "unsafe"),
    "looks into Python by a format": ("{{ '{0.__class__.__mro__}'.format(1) }}", "unsafe"),
    "looks into Python by a global": ("{{ cycler.__init__.__globals__ }}", "unsafe"),
    "looks into Python by a namespace": ("{% set n = namespace(__class__=1) %}", "__class__"),
    "sets a name of Python's": ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "__class__"),
    "changes the conversation": ("{{ messages.append(1) }}", "unsafe"),
    "includes a file": ("{% include '/etc/passwd' %}", "no loader"),
    "calls itself for ever": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "recursion"),
    "is nested without end": ("{% if 1 %}" * 5000 + "{% endif %}" * 5000, "recursion"),
    "has an expression without end": ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "recursion"),
    "counts too far": ("{{ range(10 ** 9) | list }}", "Range too big"),
    "multiplies a text": ("{{ 'x' * 10 ** 10 }}", "3072 MB"),
    "multiplies a list": ("{{ ([0] * 10 ** 9) | length }}", "3072 MB"),
    "doubles a text": (
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "3072 MB",
    ),
    "fills a line": ("{{ 'x' | center(10 ** 10) }}", "3072 MB"),
    "formats a number": ("{{ '%10000000000d' | format(1) }}", "3072 MB"),
    "formats a text": ("{{ '{:>10000000000}'.format(1) }}", "3072 MB"),
    "indents JSON": ("{{ messages | tojson(indent=10 ** 10) }}", "3072 MB"),
    "renders a huge text": ("{{ 'x' * 100_000_000 }}", "a prompt of 100000000 characters"),
}


@pytest.mark.parametrize(("source", "reason"), REFUSING.values(), ids=REFUSING)
def test_a_failing_template_gives_an_error_with_the_reason(confined: Confined, source: str, reason: str) -> None:
    # Where the kernel has no limit, the process is ended because of the memory that it uses.
    limited = (RefusedError,) if hasattr(resource, "prlimit") else (RefusedError, ModelNotRunnableError)
    with pytest.raises(limited, match=reason):
        confined.ask(source)


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "computes without handling signals": "{{ (messages | length + 6) ** (10 ** 8) }}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_an_endless_template_is_stopped(confined: Confined, source: str) -> None:
    tokenizer = confined.open("{% if messages[0].role == 'user' %}" + source + "{% endif %}fine")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with pytest.raises(ModelNotRunnableError, match="ran for more than 2 seconds"):
        tokenizer.apply_chat_template([{"role": "user"}])
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 6
    # The next conversation works.
    assert tokenizer.decode(tokenizer.apply_chat_template([{"role": "system"}])) == "fine"


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="counts open files in /dev/fd, which is not there")
def test_a_killed_process_is_replaced_and_leaks_no_files(confined: Confined) -> None:
    tokenizer = confined.open("fine")
    open_before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        (process,) = processes()
        os.kill(process, signal.SIGKILL)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        assert tokenizer.decode(tokenizer.apply_chat_template([])) == "fine"
    assert len(os.listdir("/dev/fd")) == open_before


def processes() -> set[int]:
    """Return the ids of the living tokenizer processes that this process has started."""
    command = ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = (line.split(maxsplit=2) for line in listed.splitlines())
    is_ours = "mlxk2.runner.prompt.process"
    return {int(pid) for pid, parent, args in found if int(parent) == os.getpid() and is_ours in args}


@pytest.mark.parametrize(
    ("count", "said"), [(700, "has 700 tokens"), (10_000, "has 10000 tokens"), (300_000, "has more than 100 tokens")]
)
def test_a_prompt_far_past_the_context_is_refused_by_the_process(confined: Confined, count: int, said: str) -> None:
    with pytest.raises(ContextLengthError, match=said):
        confined.open(f"{{{{ 'x' * {count} }}}}").apply_chat_template(MESSAGES, context=100)


def test_other_threads_run_while_a_template_loops(confined: Confined) -> None:
    steps = []
    tokenizer = confined.open(ENDLESS["loops"])
    ask = tokenizer.apply_chat_template
    thread = threading.Thread(target=lambda: pytest.raises(ModelNotRunnableError, ask, MESSAGES))
    thread.start()
    while thread.is_alive():
        began = time.perf_counter()
        time.sleep(0.001)
        steps.append(time.perf_counter() - began)
    assert len(steps) > 100 and sorted(steps)[len(steps) * 9 // 10] < 0.1


def test_a_long_conversation_is_rendered(confined: Confined) -> None:
    messages = [{"role": "user", "content": "é\U0001f600"}] * 50_000
    assert confined.ask(CHATML, messages, add_generation_prompt=True).count("é\U0001f600") == 50_000


CONTINUED = {
    "as it is": ("{% for m in messages %}<{{ m.content }}>{% endfor %}", "Pa ", "<Hi><Pa "),
    "trimmed": ("{% for m in messages %}<{{ m.content | trim }}>{% endfor %}", "Pa ", "<Hi><Pa"),
    "said before": ("{% for m in messages %}<{{ m.content }}>{% endfor %}", "Hi", "<Hi><Hi"),
    "alone": ("{{ messages[-1].content }}{{ eos_token }}", "\n Pa\n", "\n Pa\n"),
}


@pytest.mark.parametrize(("source", "begun", "expected"), CONTINUED.values(), ids=CONTINUED)
def test_the_last_message_is_continued_as_in_transformers(
    confined: Confined, source: str, begun: str, expected: str
) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": begun}]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    assert confined.ask(source, messages, **options) == expected
    theirs = AutoTokenizer.from_pretrained(confined.folder)
    assert theirs.apply_chat_template(messages, tokenize=False, **options) == expected


def test_continuing_a_message_that_the_template_omits_is_refused(confined: Confined) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Pa"}]
    with pytest.raises(RefusedError, match="omits the last message"):
        confined.ask("{{ messages[0].content }}", messages, continue_final_message=True)


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="the system does not report stopped processes")
def test_a_stopped_process_is_replaced_before_it_is_used(confined: Confined) -> None:
    tokenizer = confined.open("fine")
    (pid,) = processes()
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    assert tokenizer.decode(tokenizer.apply_chat_template([])) == "fine"


def test_a_process_stopped_while_it_works_is_replaced(confined: Confined) -> None:
    tokenizer = confined.open("{% if messages %}" + ENDLESS["loops"] + "{% endif %}fine")
    (pid,) = processes()
    threading.Timer(0.3, os.kill, [pid, signal.SIGSTOP]).start()
    with pytest.raises(ModelError, match="did not respond"):
        tokenizer.apply_chat_template(MESSAGES)
    assert tokenizer.decode(tokenizer.apply_chat_template([])) == "fine"


def test_a_process_that_exceeds_its_time_is_replaced(confined: Confined) -> None:
    confined.open(ENDLESS["loops"])
    question: dict[str, Any] = {"ask": "chat", "messages": MESSAGES, "options": {}, "context": None, "tail": 0}
    with pytest.raises(ModelError, match="did not respond"):
        confined.starter.take().ask(question, max_seconds=0.3)
    assert confined.ask("fine") == "fine"


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="this Python does not report stopped processes")
def test_stopped_spare_processes_are_not_used(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, template="fine")
    others = processes()
    starter = Starter(keeps_spare=True)
    tokenizer = load_tokenizer(tmp_path, {}, starter, "model")
    stopped = processes() - others
    assert len(stopped) == 2
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    assert tokenizer.decode(tokenizer.apply_chat_template(MESSAGES)) == "fine"
    assert not stopped & processes()
    tokenizer.close()
    starter.stop()


def test_cancelling_a_request_ends_its_process(confined: Confined) -> None:
    tokenizer = confined.open(ENDLESS["loops"]).cancellable(lambda: True)
    with pytest.raises(OperationCancelled):
        tokenizer.apply_chat_template(MESSAGES)
    assert not processes()


def test_memory_is_watched_if_the_kernel_does_not_limit_it(tmp_path: Path) -> None:
    # The template takes long enough to be measured and stays below the kernel's limit.
    write_tokenizer(tmp_path, template="{% set much = 'x' * 900000000 %}" + ENDLESS["loops"])
    process = ConfinedProcess(watches_memory=True, max_memory=500 << 20)
    opening: dict[str, Any] = {"ask": "open", "folder": str(tmp_path), "options": {}, "ends": None, "defaults": None}
    process.ask(opening)
    with pytest.raises(ModelNotRunnableError, match="needs more than 500 MB of memory"):
        process.ask({"ask": "chat", "messages": MESSAGES, "options": {}, "context": None, "tail": 0})


# Libraries map memory that they never touch, with many processors for example, and so does PyTorch for CUDA.
MAPPED = """
import mmap
mapped = mmap.mmap(-1, 8 << 30, mmap.MAP_PRIVATE | mmap.MAP_NORESERVE, mmap.PROT_READ)
"""
FORBIDDEN_TORCH = "raise RuntimeError('PyTorch was imported')"


def test_memory_mapped_by_libraries_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confined: Confined
) -> None:
    (tmp_path / "sitecustomize.py").write_text(MAPPED)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(FORBIDDEN_TORCH)
    (tmp_path / "torch-2.9.0.dist-info").mkdir()
    (tmp_path / "torch-2.9.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert confined.ask("fine") == "fine"
    with pytest.raises((RefusedError, ModelNotRunnableError), match="memory"):
        confined.ask("{{ 'x' * 4000000000 }}")


HIDING_PROC = """
import sys
def hide(event, arguments):
    if event == "open" and str(arguments[0]).startswith("/proc/"):
        raise FileNotFoundError(arguments[0])
sys.addaudithook(hide)
"""


def test_memory_is_limited_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confined: Confined) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDING_PROC)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert confined.ask("fine") == "fine"
    with pytest.raises((RefusedError, ModelNotRunnableError), match="memory"):
        confined.ask("{{ 'x' * 4000000000 }}")


REFUSING_LIMITS = """
import errno, resource
change = resource.setrlimit
def refuse(kind, limits):
    if kind == resource.RLIMIT_AS:
        raise {error}
    change(kind, limits)
resource.setrlimit = refuse
resource.prlimit = lambda pid, kind, limits: refuse(kind, limits)
if {is_gone}:
    del resource.prlimit
"""
WATCHED = """
import sys
from mlxk2.errors import ModelNotRunnableError
from mlxk2.runner.prompt.confined import ConfinedProcess
process = ConfinedProcess(max_memory=500 << 20)
process.ask({"ask": "open", "folder": sys.argv[1], "options": {}, "ends": None, "defaults": None})
try:
    process.ask({"ask": "chat", "messages": [], "options": {}, "context": None, "tail": 0})
except ModelNotRunnableError as error:
    print(error)
"""


@pytest.mark.parametrize("error", ["ValueError('invalid')", "OSError(errno.EINVAL, 'invalid')"])
@pytest.mark.parametrize("is_gone", [False, True], ids=["refused", "not there"])
def test_memory_is_limited_if_the_kernel_refuses_limits(tmp_path: Path, error: str, is_gone: bool) -> None:
    write_tokenizer(tmp_path, template="{% set much = 'x' * 900000000 %}" + ENDLESS["loops"])
    (tmp_path / "sitecustomize.py").write_text(REFUSING_LIMITS.format(error=error, is_gone=is_gone))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert "needs more than 500 MB of memory" in done.stdout, done.stderr
