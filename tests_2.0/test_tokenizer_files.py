"""A model with a tokenizer that can't be read does not run, and the reason names the command that helps."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from support.layouts import COMMIT, TOKENIZER, CacheDir, Files, as_json, base_model, chat_model, replace, without
from support.tiny_models import write_tokenizer

from mlxk2.errors import ModelUnhealthyError
from mlxk2.runner.prompt.confined import Starter
from mlxk2.runner.prompt.tokenizer import Tokenizer, load_tokenizer

NAME = "org/model"
RANKS = b"IQ== 0\nIg== 1\n"
OTHER_TEMPLATE = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template_type": "of_next_year"}
CODE = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}


def settings(**config: Any) -> Files:
    return {"tokenizer_config.json": as_json(config)}


BARE = without(chat_model(), "tokenizer.json")
UNREADABLE: dict[str, tuple[Files, str, str | None]] = {
    "tiktoken alone": (BARE | {"qwen.tiktoken": RANKS}, "the model's own code", None),
    "code alone": (BARE | settings(**CODE) | {"own.tiktoken": RANKS}, "never executed", None),
    "tiktoken by the name of sentencepiece": (BARE | {"tokenizer.model": RANKS}, "`pip install tiktoken`", "tiktoken"),
    "tiktoken's model": (BARE | {"tiktoken.model": RANKS, "x.tiktoken": RANKS}, "`pip install tiktoken`", "tiktoken"),
    "tekken alone": (BARE | {"tekken.json": b"{}"}, "`pip install mistral-common`", "mistral_common"),
    "a template of another mlx-lm": (chat_model() | settings(**OTHER_TEMPLATE), "`pip install -U mlx-lm`", None),
}
READABLE: dict[str, Files] = {
    "sentencepiece": BARE | {"tokenizer.model": b"\n\x0e\n\x05<unk>"},
    "tekken beside another": chat_model() | {"tekken.json": b"{}"},
    "code beside another": chat_model() | settings(**CODE),
    "code of what sentencepiece reads": BARE | settings(**CODE) | {"tokenizer.model": b"\n\x0e\n\x05<unk>"},
    "a template of another mlx-lm beside the model's": chat_model()
    | settings(**OTHER_TEMPLATE)
    | {"chat_template.jinja": b"{{ messages }}"},
    "a template of mlx-lm": chat_model() | settings(chat_template_type="deepseek_v32"),
    "a parser of another mlx-lm": chat_model() | settings(tool_parser_type="of_next_year"),
}


@pytest.mark.parametrize(("files", "reason", "package"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_model_with_an_unreadable_tokenizer_is_not_runnable(
    cache_dir: CacheDir, mlxk2: Program, files: Files, reason: str, package: str | None
) -> None:
    if package and find_spec(package):
        pytest.skip(f"{package} is installed")
    cache_dir.add("org/model", files)
    model = mlxk2("show", "org/model", "--json").json["data"]["model"]
    assert (model["health"], model["runtime_compatible"]) == ("healthy", False)
    assert reason in model["reason"]
    error = mlxk2("run", "org/model", "Hi", "--json").json["error"]
    assert error["type"] == "ModelNotRunnableError"
    assert reason in error["message"] and "Pull" not in error["message"]


@pytest.mark.parametrize("files", READABLE.values(), ids=READABLE)
def test_a_model_with_a_readable_tokenizer_is_runnable(cache_dir: CacheDir, mlxk2: Program, files: Files) -> None:
    cache_dir.add("org/model", files)
    model = mlxk2("show", "org/model", "--json").json["data"]["model"]
    assert (model["runtime_compatible"], model["reason"]) == (True, None)


def test_a_template_name_of_mlx_lm_makes_a_chat_model(cache_dir: CacheDir, mlxk2: Program) -> None:
    cache_dir.add("org/model", base_model() | settings(chat_template_type="deepseek_v32"))
    assert mlxk2("show", "org/model", "--json").json["data"]["model"]["model_type"] == "chat"


def load(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder."""
    return load_tokenizer(folder, {}, Starter(), NAME)


@pytest.mark.parametrize(
    "change", [{"chat_template_type": "x"}, {"tool_parser_type": "x"}, {"chat_template_type": ["x"]}]
)
def test_names_unknown_to_the_installed_mlx_lm_are_ignored(tmp_path: Path, change: dict[str, Any]) -> None:
    write_tokenizer(tmp_path, template="own template", config=change)
    tokenizer = load(tmp_path)
    assert tokenizer.decode(tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])) == "own template"
    tokenizer.close()


DAMAGED = {
    "a damaged file": (b"\n\x0e\n\x05<unk>" * 9, "tokenizer.model is not a file of sentencepiece"),
    "a file that transformers does not know": (RANKS, "it makes no tokens from any text"),
}


@pytest.mark.parametrize(("content", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_tokenizer_file_is_reported_as_damaged(tmp_path: Path, content: bytes, said: str) -> None:
    if find_spec("tiktoken"):
        pytest.skip("tiktoken is installed")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelUnhealthyError) as raised:
        load(tmp_path)
    assert said in raised.value.message


CUT_OFF = {
    "cut off": ("tokenizer.json", TOKENIZER[:-2]),
    "zeros at its end": ("tokenizer.json", TOKENIZER[:-9] + bytes(9)),
    "a list": ("tokenizer.json", b"[]"),
    "empty beside another": ("tokenizer.json", b""),
    "settings cut off": ("tokenizer_config.json", b'{"tokenizer_class": '),
    "settings that are empty": ("tokenizer_config.json", b""),
}


@pytest.mark.parametrize(("name", "content"), CUT_OFF.values(), ids=CUT_OFF)
def test_a_truncated_tokenizer_is_reported_with_its_repair(
    cache_dir: CacheDir, mlxk2: Program, name: str, content: bytes
) -> None:
    replace(cache_dir.add(NAME, chat_model() | {"tokenizer.model": b"x"}) / name, content)
    problem = f"{name} is cut off, or is not a JSON object"
    assert mlxk2("show", NAME, "--json").json["data"]["model"]["reason"] == problem
    error = mlxk2("run", NAME, "Hi", "--json").json["error"]
    assert (error["type"], error["message"]) == ("ModelUnhealthyError", f"{NAME} is damaged: {problem}")
    assert error["hint"] == f"Repair it with: mlxk2 pull {NAME}"


def test_a_truncated_tokenizer_in_a_folder_must_be_replaced_by_the_user(
    mlxk2: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (chat_model() | {"tokenizer.json": TOKENIZER[:-2]}).items():
        (tmp_path / name).write_bytes(content)
    error = mlxk2("run", "./", "Hi", "--json").json["error"]
    assert error["hint"] == "Put tokenizer.json into the folder again, from where you have the model."
    monkeypatch.setenv("MLXK2_ENABLE_ALPHA_FEATURES", "1")
    checked = mlxk2("push", "./", NAME, "--check-only", "--json").json["data"]["workspace_health"]
    assert [anomaly["code"] for anomaly in checked["anomalies"]] == ["damaged_tokenizer"]


WRONG_TYPES = {
    "no vocabulary": {"tokenizer.json": b'{"version": "1.0", "model": 7}'},
    "no object inside": {"tokenizer.json": b'{"model": {]}'},
    "settings of wrong types": {"tokenizer_config.json": as_json({"added_tokens_decoder": 3})},
}


@pytest.mark.parametrize("files", WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_an_unloadable_tokenizer_is_reported_with_its_repair(cache_dir: CacheDir, files: Files) -> None:
    snapshot = cache_dir.add(NAME, chat_model() | files)
    with pytest.raises(ModelUnhealthyError) as raised:
        load(snapshot)
    begin, end = f"The tokenizer of {NAME} is damaged, or of an unknown kind (", f"mlxk2 pull {NAME}@{COMMIT[:7]}"
    assert raised.value.message.startswith(begin)
    assert raised.value.message.endswith(f"). Repair it with: {end}")
    assert str(cache_dir.path) not in raised.value.message
