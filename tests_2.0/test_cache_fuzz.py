"""Any content of a cache gives a verdict: no traceback, no hang, no read outside, and other models stay listed.

MLXK2_FUZZ multiplies the number of cases.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors
from conftest import Program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.conformance import assert_conforms
from support.fuzz import EFFORT, HOSTILE_BYTES, HOSTILE_JSON, json_mutations, mutations
from support.layouts import (
    BITS,
    COMMIT,
    CONFIG,
    README,
    CacheDir,
    Files,
    as_json,
    chat_model,
    gguf,
    gguf_model,
    index_of,
    raw_safetensors,
    replace,
    shard_names,
    sharded_model,
    tensor,
    weights,
)

from mlxk2 import spec
from mlxk2.cache.store import Cache
from mlxk2.checkpoint import gguf as gguf_header
from mlxk2.checkpoint.describe import describe, read_metadata
from mlxk2.checkpoint.files import BrokenFile, Tree

Model = spec.ModelObject
Attack = Callable[[str, str, Iterable[bytes]], list[Model]]
Dig = Callable[[str, int], None]
Make = Callable[[Path, Path], object]

SEED = 20_251_122
CPU_SECONDS = 5
INDEX = "model.safetensors.index.json"

pytestmark = [pytest.mark.sampled, pytest.mark.timeout(90 * EFFORT)]


@contextmanager
def deadline() -> Iterator[None]:
    """Fail a case that computes for longer than CPU_SECONDS; pytest's timeout ends one that waits."""

    def expire(*_: object) -> None:
        raise AssertionError(f"no verdict after {CPU_SECONDS} seconds")

    before = signal.signal(signal.SIGVTALRM, expire)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def verdict(cache_dir: CacheDir, name: str = "org/model") -> Model:
    """Return the model object; fail unless it and the metadata conform and all of it is strict JSON."""
    with deadline():
        snapshot = Cache(cache_dir.path).find(name).snapshot()
        model = spec.model_object(describe(snapshot))
        metadata = spec.metadata_object(read_metadata(snapshot))
    assert_conforms(model, spec.ModelObject)
    assert_conforms(metadata, spec.Metadata | None)
    json.dumps([model, metadata, snapshot.config_or_empty], allow_nan=False)
    assert (model["health"] == "healthy") or model["reason"]
    return model


class Victim:
    """A sound model in which one file after the other is replaced."""

    def __init__(self, cache_dir: CacheDir, files: Files) -> None:
        self.cache_dir = cache_dir
        self.snapshot = cache_dir.add("org/model", files)
        assert verdict(cache_dir)["health"] == "healthy"

    def with_file(self, name: str, content: bytes) -> Model:
        replace(self.snapshot / name, content)
        return verdict(self.cache_dir)


Victims = dict[str, tuple[Victim, Files]]


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Victims:
    """Return one victim of each kind, shared by all tests of this file; each test restores what it replaces."""
    kinds = {"chat": chat_model(), "sharded": sharded_model(), "gguf": gguf_model()}
    return {kind: (Victim(CacheDir(tmp_path_factory.mktemp(kind)), files), files) for kind, files in kinds.items()}


@pytest.fixture
def attack(victims: Victims) -> Attack:
    """Return a function that puts each content into a file of a victim, restores the file and returns the verdicts."""

    def run(kind: str, name: str, contents: Iterable[bytes]) -> list[Model]:
        victim, files = victims[kind]
        try:
            return [victim.with_file(name, content) for content in contents]
        finally:
            assert victim.with_file(name, files[name])["health"] == "healthy"

    return run


FILES = [
    ("chat", "config.json"),
    ("chat", "README.md"),
    ("chat", "tokenizer_config.json"),
    ("chat", "tokenizer.json"),
    ("chat", "model.safetensors"),
    ("sharded", INDEX),
    ("gguf", "model-Q4_0.gguf"),
]


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_hostile_bytes_in_any_file_give_a_verdict(attack: Attack, kind: str, name: str) -> None:
    attack(kind, name, (*HOSTILE_BYTES, *HOSTILE_JSON))


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_random_mutations_of_sound_files_give_a_verdict(attack: Attack, victims: Victims, kind: str, name: str) -> None:
    sound = victims[kind][1][name]
    verdicts = attack(kind, name, mutations(random.Random(SEED), sound, 30 * EFFORT))
    if name.endswith((".safetensors", ".gguf", INDEX)):
        assert any(model["health"] == "unhealthy" for model in verdicts), "no mutation was found"


RICH_CONFIG = CONFIG | {
    "text_config": {"max_position_embeddings": 5, "quantization_config": {"quant_method": "fp8"}},
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "bits": 4,
        "weight_block_size": [32, 32],
        "quantization": {"quant_algo": "NVFP4"},
        "scale_fmt": "ue8m0",
    },
    "quantization": {"group_size": 64, "bits": 4, "mode": "affine"},
    "auto_map": {"AutoModel": "x"},
    "model_file": "x.py",
}


def rich_configs() -> Iterator[dict[str, Any]]:
    """Yield configs that reach each branch of the code that reads them."""
    yield RICH_CONFIG
    for method in ("compressed-tensors", "modelopt", "awq", "gptq", "fp8"):
        settings = RICH_CONFIG["quantization_config"] | {"quant_method": method}
        config = {k: v for k, v in RICH_CONFIG.items() if k not in ("model_file", "quantization")}
        yield config | {"quantization_config": settings}


@pytest.mark.parametrize("config", list(rich_configs()))
def test_hostile_values_in_a_config_give_a_verdict(attack: Attack, config: dict[str, Any]) -> None:
    attack("chat", "config.json", json_mutations(random.Random(SEED), config, 30 * EFFORT))


def test_hostile_values_in_an_index_give_a_verdict(attack: Attack) -> None:
    index = json.loads(index_of(shard_names(3)))
    attack("sharded", INDEX, json_mutations(random.Random(SEED), index, 40 * EFFORT))


def test_hostile_values_in_a_tokenizer_config_give_a_verdict(attack: Attack) -> None:
    config = {"chat_template": "{{ messages }}", "added_tokens": [{"content": "<s>"}], "model_max_length": 10**30}
    attack("chat", "tokenizer_config.json", json_mutations(random.Random(SEED), config, 25 * EFFORT))


HEADER = {
    "__metadata__": {"format": "mlx"},
    "a": tensor("F16", [2, 4], 0, 16),
    "b": tensor("U8", [4], 16, 20),
    "empty": tensor("F32", [0], 20, 20),
}


def test_a_hostile_header_is_healthy_only_if_the_library_reads_it(attack: Attack) -> None:
    contents = [raw_safetensors(text, bytes(20)) for text in json_mutations(random.Random(SEED), HEADER, 100 * EFFORT)]
    judged = list(zip(contents, attack("chat", "model.safetensors", contents), strict=True))
    accepted = [content for content, model in judged if model["health"] == "healthy"]
    assert 0 < len(accepted) < len(judged) / 2
    for content in accepted:
        assert library_accepts(content), content


def library_accepts(content: bytes) -> bool:
    """Return whether the format's own library reads the file, with types that it may not know replaced."""
    header = json.loads(content[8:-20])
    tensors = {name: entry if name == "__metadata__" else _with_known_type(entry) for name, entry in header.items()}
    with suppress(safetensors.SafetensorError):
        safetensors.deserialize(raw_safetensors(tensors, content[-20:]))
        return True
    return False


def _with_known_type(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the entry with a type of the same size that the installed library knows."""
    begin, end = entry["data_offsets"]
    return entry if entry["dtype"] in BITS else tensor("U8", [end - begin], begin, end)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
EXAMPLES = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40 * EFFORT,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@EXAMPLES
@given(values=st.dictionaries(st.sampled_from(sorted(RICH_CONFIG)), ANY_JSON, max_size=6))
def test_any_json_as_config_gives_a_verdict(victims: Victims, values: dict[str, Any]) -> None:
    victims["chat"][0].with_file("config.json", json.dumps(CONFIG | values).encode("utf-8", "surrogatepass"))


@EXAMPLES
@given(value=st.dictionaries(st.text(max_size=20) | st.just("weight_map"), ANY_JSON, max_size=4))
def test_any_json_as_index_is_unhealthy(victims: Victims, value: dict[str, Any]) -> None:
    model = victims["sharded"][0].with_file(INDEX, json.dumps(value).encode("utf-8", "surrogatepass"))
    assert model["health"] == "unhealthy"


@EXAMPLES
@given(content=st.binary(max_size=300))
def test_any_bytes_as_front_matter_give_a_verdict(victims: Victims, content: bytes) -> None:
    victims["chat"][0].with_file("README.md", b"---\nmlx: &mlx feature-extraction\n" + content + b"\n---\n")


@EXAMPLES
@given(content=st.binary(max_size=200))
def test_any_bytes_as_weights_are_unhealthy(victims: Victims, content: bytes) -> None:
    assert victims["chat"][0].with_file("model.safetensors", content)["health"] == "unhealthy"
    assert victims["gguf"][0].with_file("model-Q4_0.gguf", b"GGUF\3\0\0\0" + content)["reason"]


def test_every_truncation_of_weights_makes_a_model_unhealthy(attack: Attack) -> None:
    for kind, name, whole in (("chat", "model.safetensors", weights()), ("gguf", "model-Q4_0.gguf", gguf())):
        verdicts = attack(kind, name, (whole[:length] for length in range(len(whole))))
        assert {model["health"] for model in verdicts} == {"unhealthy"}


@pytest.mark.parametrize("main", [*HOSTILE_BYTES, b"../" * 90, b"x/../../..", b"." * 40, b"\n" + COMMIT.encode()])
def test_a_hostile_ref_is_ignored(cache_dir: CacheDir, main: bytes) -> None:
    snapshot = cache_dir.add("org/model", chat_model())
    (snapshot.parent.parent / "refs" / "main").write_bytes(main)
    assert verdict(cache_dir)["hash"] == COMMIT


def test_gguf_headers_with_any_kinds_and_counts_give_a_verdict(tmp_path: Path) -> None:
    source = random.Random(SEED)
    path = tmp_path / "x.gguf"
    for _ in range(100 * EFFORT):
        kinds = (source.choice((0, 4, 8, 9, 9, 12, 13)) for _ in range(6))
        counts = (source.choice((0, 1, 2, 3, 100, 2**17, 2**40, 2**64 - 1)) for _ in range(6))
        pairs = b"".join(struct.pack("<QIIQ", 0, 9, kind, count) for kind, count in zip(kinds, counts, strict=True))
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, source.choice((0, 1, 2**17)), 6) + pairs + bytes(2000))
        with deadline(), suppress(BrokenFile):
            file = Tree(None).file("x.gguf", str(path))
            assert file is not None
            gguf_header.check(file)


# --------------------------------------------------------------------------------------- links, pipes, sockets, names


SECRET = "a secret outside the cache"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """Return a folder outside the cache with files that must never be read."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name, content in chat_model().items():
        (folder / name).write_bytes(content)
    (folder / "secret").write_text(SECRET)
    return folder


def link(target: str) -> Make:
    return lambda path, _outside: path.symlink_to(target)


def link_in_a_loop(path: Path, _outside: Path) -> None:
    path.with_name("other").symlink_to(path.name)
    path.symlink_to("other")


def link_to_a_folder(path: Path, _outside: Path) -> None:
    path.with_name("folder").mkdir()
    path.symlink_to("folder")


def link_over_a_link(path: Path, outside: Path) -> None:
    path.with_name("hop").symlink_to(outside)
    path.symlink_to(f"hop/{path.name}")


LINKS: dict[str, Make] = {
    "passwd": link("/etc/passwd"),
    "up": link(".."),
    "far up": link("../" * 40 + "etc/passwd"),
    "itself": lambda path, _: path.symlink_to(path.name),
    "a loop": link_in_a_loop,
    "a folder": link_to_a_folder,
    "an absolute path outside": lambda path, outside: path.symlink_to(outside / path.name),
    "a relative path outside": lambda path, out: path.symlink_to(os.path.relpath(out / path.name, path.parent)),
    "a link to a link outside": link_over_a_link,
    "nowhere": link("../../blobs/" + "0" * 40),
    "a link of 4000 characters": link("./" * 1990 + "x"),
    "a device": link("/dev/zero"),
    "a process": link("/proc/self/environ"),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a folder in its place": lambda path, _: path.mkdir(),
}
REPLACED = ["config.json", "README.md", "tokenizer_config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("name", REPLACED)
@pytest.mark.parametrize("make", LINKS.values(), ids=LINKS)
def test_a_link_or_a_pipe_in_place_of_a_file_reveals_nothing(
    cache_dir: CacheDir, outside: Path, make: Make, name: str
) -> None:
    snapshot = cache_dir.add("org/model", chat_model())
    cache_dir.add("org/neighbour", chat_model())
    (snapshot / name).unlink()
    make(snapshot / name, outside)
    model = verdict(cache_dir)
    assert SECRET not in json.dumps(model)
    if name != "README.md" or not (snapshot / name).is_dir():
        assert name == "tokenizer_config.json" and (snapshot / name).is_dir() or model["health"] == "unhealthy"
    assert verdict(cache_dir, "org/neighbour")["health"] == "healthy"


def test_a_link_to_a_blob_of_another_model_is_followed(cache_dir: CacheDir) -> None:
    other = cache_dir.add("org/other", chat_model())
    snapshot = cache_dir.add("org/model", chat_model())
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to((other / "model.safetensors").resolve())
    assert verdict(cache_dir)["health"] == "healthy"


@pytest.mark.parametrize("folder", ["", "snapshots", f"snapshots/{COMMIT}", "refs", "blobs"])
@pytest.mark.parametrize("target", ["outside", "/", "/proc/self", "..", "itself", "nowhere"])
def test_a_link_in_place_of_a_folder_reveals_nothing(
    cache_dir: CacheDir, outside: Path, tmp_path: Path, folder: str, target: str
) -> None:
    cache_dir.add("org/model", chat_model())
    cache_dir.add("org/neighbour", chat_model())
    path = cache_dir.folder("org/model") / folder if folder else cache_dir.folder("org/model")
    path.rename(tmp_path / "away")
    targets = {"outside": str(outside), "itself": path.name}
    path.symlink_to(targets.get(target, target))
    with deadline():
        names = [model.name for model in Cache(cache_dir.path).scan()]
    assert "org/neighbour" in names
    if "org/model" in names:
        model = verdict(cache_dir)
        assert SECRET not in json.dumps(model)
        assert folder == "refs" or model["health"] == "unhealthy"
    assert verdict(cache_dir, "org/neighbour")["health"] == "healthy"


def test_a_socket_is_not_read(cache_dir: CacheDir, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cache_dir.add("org/model", chat_model())
    monkeypatch.chdir(snapshot)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.json")
        assert verdict(cache_dir)["reason"] == "socket.json is not a regular file"


NAMES = [
    "a\nb",
    "a\rb",
    "\x1b[31m",
    "-rf",
    "--json",
    "a b",
    "'",
    '"',
    "`id`",
    "$(id)",
    "%s%n",
    "{}",
    "CON",
    "nul.txt",
    "…",
    "x" * 255,
    "é" * 127,
    "\u202e",
    "\ufeff",
    "‮a",
    "a\u2028b",
    "🤗.safetensors.d",
    ".hidden",
    "..hidden",
    "a\x7f",
]
NO_UTF8 = [] if os.uname().sysname == "Darwin" else ["\udcff", "a\udc80b.txt", "\udcc3.json"]


@pytest.mark.parametrize("name", NAMES + NO_UTF8)
def test_a_file_with_any_name_is_accepted(cache_dir: CacheDir, name: str) -> None:
    cache_dir.add("org/model", chat_model() | {name: b"x", f"folder/{name}": b"y"})
    assert verdict(cache_dir)["health"] == "healthy"


@pytest.fixture
def dig(cache_dir: CacheDir) -> Iterator[Dig]:
    """Yield a function that adds a model with deeply nested folders; remove them step by step, as rmtree recurses."""
    snapshot = cache_dir.add("org/model", chat_model())

    def make(name: str, depth: int) -> None:
        folder = os.open(snapshot, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir(name, dir_fd=folder)
            below = os.open(name, os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = below
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
        os.close(folder)

    yield make
    subprocess.run(["rm", "-rf", str(snapshot)], check=True)


def test_a_thousand_nested_folders_are_read(cache_dir: CacheDir, dig: Dig) -> None:
    dig("d", 1000)
    assert verdict(cache_dir)["health"] == "healthy"


def test_folders_nested_past_the_longest_path_are_reported(cache_dir: CacheDir, dig: Dig) -> None:
    dig("d" * 200, 40)
    assert "can't be read" in (verdict(cache_dir)["reason"] or "")


# -------------------------------------------------------------------------------------------- reads outside the cache


WATCH = """
import os, sys
seen = []
def hook(event, args):
    if event in ("open", "os.listdir", "os.scandir") and args and isinstance(args[0], (str, bytes)):
        seen.append(os.path.realpath(os.fsdecode(args[0])))
sys.addaudithook(hook)
from mlxk2.cli.main import main
codes = [main(words) for words in (
    ["list", "--json"], ["health", "--deep", "--json"], ["list", "--all", "--health"],
    *(["show", name, "--files", "--config", "--json"] for name in sys.argv[2:]),
)]
if sys.argv[1] == "control":
    open(os.environ["SECRET_FILE"]).close()
sys.stderr.write("\\n".join(seen))
"""


@pytest.mark.parametrize("mode", ["real", "control"])
def test_files_outside_the_cache_are_never_opened(
    cache_dir: CacheDir, outside: Path, tmp_path: Path, mode: str
) -> None:
    names = []
    for number, make in enumerate(LINKS.values()):
        for name in REPLACED:
            names.append(f"org/{number}-{name}")
            snapshot = cache_dir.add(names[-1], chat_model())
            (snapshot / name).unlink()
            make(snapshot / name, outside)
    for number, folder in enumerate(["snapshots", f"snapshots/{COMMIT}", "refs", "blobs", "refs/main"]):
        names.append(f"org/folder-{number}")
        cache_dir.add(names[-1], chat_model())
        path = cache_dir.folder(names[-1]) / folder
        path.rename(tmp_path / f"away-{number}")
        path.symlink_to(outside / "secret" if folder == "refs/main" else outside)
    environment = os.environ | {"SECRET_FILE": str(outside / "secret")}
    done = subprocess.run(
        [sys.executable, "-c", WATCH, mode, *names], capture_output=True, text=True, env=environment, timeout=60
    )
    opened = done.stderr.splitlines()
    assert any(path.startswith(str(cache_dir.path.resolve())) for path in opened)
    trespasses = {path for path in opened if path.startswith(str(outside.resolve())) or path == "/etc/passwd"}
    assert trespasses == ({str(outside.resolve() / "secret")} if mode == "control" else set())
    assert SECRET not in done.stdout
    assert "Traceback" not in done.stderr


def test_broken_models_do_not_hide_a_sound_one(cache_dir: CacheDir, mlxk2: Program, outside: Path) -> None:
    for number, (make, name) in enumerate((make, name) for make in LINKS.values() for name in REPLACED):
        snapshot = cache_dir.add(f"broken/{number:03}", chat_model())
        (snapshot / name).unlink()
        make(snapshot / name, outside)
    for number, content in enumerate(HOSTILE_BYTES):
        cache_dir.add(f"hostile/{number:03}", dict.fromkeys(chat_model(), content))
    cache_dir.add("org/sound", chat_model() | {"README.md": README, "config.json": as_json(CONFIG)})
    with deadline():
        result = mlxk2("health", "--json")
    healthy = [entry["name"] for entry in result.json["data"]["healthy"]]
    assert "org/sound" in healthy
    assert result.json["data"]["summary"]["total"] == len(LINKS) * len(REPLACED) + len(HOSTILE_BYTES) + 1
