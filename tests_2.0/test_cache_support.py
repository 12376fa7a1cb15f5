"""The facts about mlx-lm that are found without importing it, compared with its sources as Python parses them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from support.layouts import CONFIG, CacheDir, Files, as_json, chat_model, without

from mlxk2.checkpoint.compatibility import Installation, installation, problem_of_config


def folder_of(package: str) -> Path:
    """Return the folder of an installed package without importing it."""
    found = find_spec(package)
    assert found is not None and found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0])


MLX_LM = folder_of("mlx_lm")
MODULES = sorted(path.stem for path in (MLX_LM / "models").glob("*.py"))
OWN = {"group_size": 64, "bits": 4}
MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")
METHODS = ("bitnet", "mxfp4", "mxfp8", "compressed-tensors", "modelopt", "awq", "gptq", "fp8")


@pytest.fixture(scope="module")
def installed() -> Installation:
    return Installation(str(MLX_LM))


def bound_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module binds at its top level."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.Assign):
            yield from (name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))


def table(name: str) -> dict[Any, str]:
    """Return a dictionary that mlx-lm's utils.py binds at its top level."""
    tree = ast.parse((MLX_LM / "utils.py").read_text())
    values = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == name]
    found: dict[Any, str] = ast.literal_eval(values[0])
    return found


@pytest.mark.parametrize("module", MODULES)
def test_an_architecture_is_a_module_that_binds_model_and_its_arguments(installed: Installation, module: str) -> None:
    bound = set(bound_names(ast.parse((MLX_LM / "models" / f"{module}.py").read_text())))
    assert installed.has(module) == ({"Model", "ModelArgs"} <= bound)


def test_some_modules_are_architectures_and_some_are_not(installed: Installation) -> None:
    verdicts = {installed.has(module) for module in MODULES}
    assert verdicts == {True, False}


@pytest.mark.parametrize(("model_type", "module"), table("MODEL_REMAPPING").items())
def test_the_table_of_model_types_equals_that_of_mlx_lm(installed: Installation, model_type: str, module: str) -> None:
    assert installed.module_of({"model_type": model_type}) == module


@pytest.mark.parametrize(("key", "module"), table("MODEL_ARCHITECTURE_REMAPPING").items())
def test_the_table_of_architectures_equals_that_of_mlx_lm(
    installed: Installation, key: tuple[str, str], module: str
) -> None:
    model_type, architecture = key
    assert installed.module_of({"model_type": model_type, "architectures": ["X", architecture]}) == module
    assert installed.module_of({"model_type": model_type, "architectures": ["X"]}) != module


def test_the_version_is_that_of_mlx_lm(installed: Installation) -> None:
    assert installed.version in (MLX_LM / "_version.py").read_text()
    assert installed.version.count(".") == 2


@pytest.mark.parametrize("model_type", ["x", "", None, 7, [], {}, "../utils", "Llama", "llama\0", "base"])
def test_an_unknown_model_type_is_named(installed: Installation, model_type: object) -> None:
    said = problem_of_config({"model_type": model_type}, installed)
    assert said == f"Model architecture {model_type or 'unknown'!r} not supported by mlx-lm {installed.version}"


def test_without_mlx_lm_nothing_runs() -> None:
    assert problem_of_config(CONFIG, None) == "mlx-lm is not installed"


class EditableFinder:
    """Finds mlx-lm in the way of an editable installation's import hook."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG004 - the signature of import hooks
        if name == "mlx_lm":
            return spec_from_file_location(name, MLX_LM / "__init__.py", submodule_search_locations=[str(MLX_LM)])
        return None


@pytest.mark.parametrize("hooks", [[], [EditableFinder]])
def test_an_editable_installation_of_mlx_lm_is_found(
    monkeypatch: pytest.MonkeyPatch, hooks: list[type[EditableFinder]]
) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).resolve() != MLX_LM.parent])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, *hooks])
    monkeypatch.delitem(sys.modules, "mlx_lm", raising=False)
    found = installation.__wrapped__()
    assert (found is not None and found.has("llama")) == bool(hooks)


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_mlx_lm_supports_no_architecture(tmp_path: Path, folder: str) -> None:
    empty = Installation(str(tmp_path / folder))
    assert problem_of_config(CONFIG, empty) == "Model architecture 'llama' not supported by mlx-lm "


@pytest.mark.parametrize("model_file", ["model.py", "", [], 0, "../../evil.py"])
def test_code_of_the_model_is_never_run(installed: Installation, model_file: object) -> None:
    assert "never executed" in (problem_of_config(CONFIG | {"model_file": model_file}, installed) or "")


def test_auto_map_is_ignored(installed: Installation) -> None:
    assert problem_of_config(CONFIG | {"auto_map": {"AutoModel": "modeling.Model"}}, installed) is None


# -------------------------------------------------------------------------------------------------------- quantization


def compared_methods() -> Iterator[object]:
    """Yield the quantization methods that mlx-lm's `load_model` compares by name."""
    tree = ast.parse((MLX_LM / "utils.py").read_text())
    load = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "load_model")
    for node in ast.walk(load):
        if isinstance(node, ast.Compare) and getattr(node.left, "id", "") == "quant_method":
            yield from (n.value for n in ast.walk(node.comparators[0]) if isinstance(n, ast.Constant))


def test_the_quantization_methods_are_those_of_mlx_lm() -> None:
    assert set(compared_methods()) == set(METHODS)


KNOWN = [
    {"quant_method": "bitnet"},
    {"quant_method": "mxfp4"},
    {"quant_method": "mxfp8"},
    {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
    {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    {"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}},
    {"quant_method": "awq"},
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [32, 32]},
]
UNKNOWN = [
    ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
    ({"quant_method": "hqq"}, "hqq"),
    ({"quant_method": None}, "None"),
    ({"quant_method": []}, "[]"),
    ({"quant_method": {"a": 1}}, "{'a': 1}"),
    ({}, "None"),
    ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "compressed-tensors (float-quantized)"),
    ({"quant_method": "compressed-tensors", "format": []}, "compressed-tensors"),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt (FP8)"),
    ({"quant_method": "awq", "bits": 8}, "awq (8 bits)"),
    ({"quant_method": "gptq", "bits": "4"}, "gptq (4 bits)"),
    ({"quant_method": "fp8"}, "fp8"),
]


@pytest.mark.parametrize("settings", KNOWN)
def test_a_known_quantization_runs(installed: Installation, settings: dict[str, Any]) -> None:
    inside = {"quantization_config": settings}
    assert problem_of_config(CONFIG | inside, installed) is None
    assert problem_of_config(CONFIG | {"text_config": inside}, installed) is None


@pytest.mark.parametrize(("settings", "shown"), UNKNOWN)
def test_an_unknown_quantization_is_named(installed: Installation, settings: dict[str, Any], shown: str) -> None:
    said = problem_of_config(CONFIG | {"quantization_config": settings | {"more": 1}}, installed)
    assert said == f"Quantization {shown!r} not supported by mlx-lm {installed.version}"


def test_an_empty_quantization_is_ignored(installed: Installation) -> None:
    assert problem_of_config(CONFIG | {"quantization_config": {}}, installed) is None


def test_the_quantization_of_mlx_comes_first(installed: Installation) -> None:
    settings = {"quantization": {"group_size": 64, "bits": 4}, "quantization_config": {"quant_method": "hqq"}}
    assert problem_of_config(CONFIG | settings, installed) is None


def test_the_quantization_modes_are_those_of_mlx(installed: Installation) -> None:
    source = Path(folder_of("mlx"), "nn", "layers", "quantized.py").read_text()
    assigned = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign))
    known = next(ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "mode_defaults")
    assert set(known) == set(MODES)
    for mode in known:
        settings = OWN | {"mode": mode, "a.layer": {"mode": mode}}
        assert problem_of_config(CONFIG | {"quantization": settings}, installed) is None


SOUND_OWN = [{}, {"mode": None}, {"lm_head": False}, {"lm_head": {"group_size": 32, "bits": 8}}, {"lm_head": True}]
UNKNOWN_OWN = [
    (OWN | {"mode": "mxfp6"}, "mxfp6"),
    (OWN | {"mode": ["affine"]}, "['affine']"),
    (OWN | {"lm_head": {"mode": "mxfp6"}}, "mxfp6"),
    (OWN | {"lm_head": {"mode": None}}, "None"),
    ({"bits": 4}, "affine (no group_size)"),
    ({"group_size": 16, "mode": "nvfp4"}, "nvfp4 (no bits)"),
]


@pytest.mark.parametrize("more", SOUND_OWN)
def test_a_quantization_of_mlx_runs(installed: Installation, more: dict[str, Any]) -> None:
    assert problem_of_config(CONFIG | {"quantization": OWN | more}, installed) is None


@pytest.mark.parametrize(("settings", "shown"), UNKNOWN_OWN)
def test_a_quantization_mode_unknown_to_mlx_is_named(
    installed: Installation, settings: dict[str, Any], shown: str
) -> None:
    said = problem_of_config(CONFIG | {"quantization": settings}, installed)
    assert said == f"Quantization {shown!r} not supported by mlx-lm {installed.version}"


def test_fp8_runs_on_an_architecture_that_unpacks_it(installed: Installation) -> None:
    config = {"model_type": "deepseek_v3", "quantization_config": {"quant_method": "fp8"}}
    assert problem_of_config(config, installed) is None


# -------------------------------------------------------------------------------------------- through the command line


def runnable(cache_dir: CacheDir, mlxk2: Program, files: Files) -> str | None:
    cache_dir.add("org/model", files)
    model = mlxk2("show", "org/model", "--json").json["data"]["model"]
    assert model["health"] == "healthy"
    assert model["runtime_compatible"] == (model["reason"] is None)
    reason: str | None = model["reason"]
    return reason


def test_a_sound_mlx_model_runs(cache_dir: CacheDir, mlxk2: Program) -> None:
    assert runnable(cache_dir, mlxk2, chat_model()) is None


def test_a_quantization_in_a_separate_file_counts(cache_dir: CacheDir, mlxk2: Program, installed: Installation) -> None:
    files = chat_model() | {"hf_quant_config.json": as_json({"quantization": {"quant_algo": "FP8"}})}
    assert runnable(cache_dir, mlxk2, files) == f"Quantization 'None' not supported by mlx-lm {installed.version}"


NOT_CLOSED = "Expecting property name enclosed in double quotes: line 1 column 2"


@pytest.mark.parametrize(
    ("sidecar", "reason"),
    [
        (b'{"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}', None),
        (b"{", f"hf_quant_config.json is not valid JSON ({NOT_CLOSED})"),
    ],
)
def test_a_quantization_in_a_separate_file_is_read(
    cache_dir: CacheDir, mlxk2: Program, sidecar: bytes, reason: str | None
) -> None:
    assert runnable(cache_dir, mlxk2, chat_model() | {"hf_quant_config.json": sidecar}) == reason


def test_a_quantization_in_the_config_comes_first(cache_dir: CacheDir, mlxk2: Program) -> None:
    files = chat_model(quantization_config={"quant_method": "mxfp4"}) | {"hf_quant_config.json": b"{"}
    assert runnable(cache_dir, mlxk2, files) is None


def test_weights_with_a_name_that_mlx_lm_ignores_do_not_run(cache_dir: CacheDir, mlxk2: Program) -> None:
    files = without(chat_model(), "model.safetensors") | {"weights.safetensors": chat_model()["model.safetensors"]}
    assert runnable(cache_dir, mlxk2, files) == "No model*.safetensors, the only weights that mlx-lm loads"


@pytest.mark.parametrize("config", [{"architectures": ["LlamaDraftModel"]}, {"architectures": ["Qwen3EmbeddingModel"]}])
def test_a_supported_architecture_needs_a_tokenizer_to_run(
    cache_dir: CacheDir, mlxk2: Program, config: dict[str, Any]
) -> None:
    files = without(chat_model(**config), "tokenizer.json", "tokenizer_config.json")
    assert (runnable(cache_dir, mlxk2, files) or "").startswith("No tokenizer")
    assert runnable(cache_dir, mlxk2, files | {"tokenizer.json": b"{}"}) is None


def test_a_model_with_a_too_large_tokenizer_config_does_not_run(cache_dir: CacheDir, mlxk2: Program) -> None:
    files = chat_model(architectures=["Qwen3EmbeddingModel"]) | {"tokenizer_config.json": b" " * ((1 << 24) + 1)}
    assert (runnable(cache_dir, mlxk2, files) or "").startswith("tokenizer_config.json is too large")


def test_a_model_whose_config_mlx_lm_cannot_read_does_not_run(cache_dir: CacheDir, mlxk2: Program) -> None:
    files = chat_model() | {"config.json": b"\xef\xbb\xbf" + as_json(CONFIG)}
    assert runnable(cache_dir, mlxk2, files) == "config.json begins with a byte order mark, which mlx-lm can't read"
