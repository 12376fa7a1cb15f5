"""Check a safetensors file by its header and its size, without reading a weight.

Format: 8 bytes N (little-endian), N bytes of JSON, then the tensors' bytes. The JSON maps each tensor's name to
`dtype`, `shape` and `data_offsets` [begin, end), counted from the end of the header; `__metadata__` maps text to text.
The tensors fill the rest of the file without a gap (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
import re
from operator import sub
from typing import Any

from mlxk2.checkpoint.files import HEADER_LIMIT, BrokenFile, File, open_file, parse_json
from mlxk2.formatting import reason_of

MAX_HEADER_BYTES = HEADER_LIMIT.bytes  # The format allows 100 MB.
MAX_TENSORS = 1 << 18  # A model of a trillion weights has 200,000, in many files.

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}

_MAX_COUNT = 1 << 63
_FIRST_READ = 1 << 16  # Bytes; most headers are smaller.

_NAME = rb'("[^"\\\x00-\x1f\x80-\xff]*+"):'
_KIND = rb'"dtype":("[A-Z0-9_]++","shape":\[[0-9,]{0,400}+\])'
_OFFSETS = rb'"data_offsets":\[(0|[1-9][0-9]{0,17}+),([1-9][0-9]{0,17}+)\]'
_OF_LIBRARY = re.compile(_NAME + rb"\{" + _KIND + rb"," + _OFFSETS + rb"\}")
_OF_MLX = re.compile(_NAME + rb"\{" + _OFFSETS + rb"," + _KIND + rb"\}")


def read_metadata(file: File) -> dict[str, str]:
    """Return the `__metadata__` of a complete safetensors file; raise BrokenFile when the file is not complete."""
    file, text = _read_header(file)
    data_size = file.size - 8 - len(text)
    usual = judge_usual_header(text, data_size)
    if usual is not None:
        return usual
    header = parse_json(file.name, text, HEADER_LIMIT, part="has a safetensors header that ")
    if not isinstance(header, dict):
        raise BrokenFile(file.name, "has a damaged safetensors header")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise BrokenFile(file.name, "has a damaged safetensors header (its metadata is not text)")
    try:
        offsets = sorted([_offsets(tensor) for tensor in header.values()])
    except (TypeError, KeyError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else reason_of(error)
        raise BrokenFile(file.name, f"has a damaged safetensors header (a tensor has {reason})") from error
    end = offsets[-1][1] if offsets else 0
    if end > data_size:
        raise BrokenFile(file.name, f"is truncated: {end - data_size} bytes are missing")
    if end < data_size:
        raise BrokenFile(file.name, f"is damaged: it has {data_size} bytes of data, but its header lists {end}")
    end = 0
    for first, last in offsets:
        if first != end:
            raise BrokenFile(file.name, "is damaged: its tensors overlap or leave a gap")
        end = last
    return metadata


def has_tensor(file: File, ending: str) -> bool:
    """Return whether any tensor's name has this ending; raise BrokenFile when the header is truncated."""
    return f'{ending}"'.encode() in _read_header(file)[1]


def _read_header(file: File) -> tuple[File, bytes]:
    """Return the file with its size at this moment, and the JSON text of its header."""
    with open_file(file) as current:
        file = current.file
        begin = current.read(_FIRST_READ)
        if len(begin) < 8:
            raise BrokenFile(file.name, f"is truncated: {file.size} bytes are too few for a safetensors file")
        length = int.from_bytes(begin[:8], "little")
        if length > MAX_HEADER_BYTES:
            limit = f"its header would have {length:,} bytes, at most {MAX_HEADER_BYTES:,} are read"
            raise BrokenFile(file.name, f"is not a safetensors file ({limit})")
        if 8 + length > file.size:
            raise BrokenFile(file.name, f"is truncated inside its header ({file.size} bytes)")
        text = begin[8 : 8 + length] if 8 + length <= len(begin) else current.read(length, offset=8)
    tensors = text.count(b'"data_offsets"')
    if tensors > MAX_TENSORS:
        raise BrokenFile(file.name, f"has too many tensors to be read ({tensors:,}, at most {MAX_TENSORS:,})")
    return file, text


def _offsets(tensor: dict[str, Any]) -> tuple[int, int]:
    """Return where a tensor begins and ends, in bytes; raise ValueError when the offsets or the shape are invalid."""
    try:
        first, last = tensor["data_offsets"]
    except (TypeError, ValueError):
        raise ValueError("no pair of offsets") from None
    dtype, shape = tensor["dtype"], tensor["shape"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError("a data type or a shape of the wrong kind")
    bits = size = BITS.get(dtype, 0)
    # A length must be an int, not a float or a bool; the limit stops a product that would take very long to compute.
    for length in shape:
        if type(length) is not int or not 0 <= length <= _MAX_COUNT or size > _MAX_COUNT:
            raise ValueError("an invalid dimension")
        size *= length
    if type(first) is not int or type(last) is not int or not 0 <= first <= last <= _MAX_COUNT:
        raise ValueError("invalid offsets")
    if bits and size != (last - first) * 8:
        raise ValueError("a size that does not fit its shape")
    return first, last


def judge_usual_header(header: bytes, data_size: int) -> dict[str, str] | None:
    """Return the metadata of a valid header in the usual form, or None if only a JSON parser can judge the header.

    `header` is the JSON text, `data_size` the number of bytes after it. Parsing headers takes most of the time of a
    listing, and this function needs half the time of a JSON parser. Programs write headers without spaces and escapes,
    and order the keys of an entry in one of two ways: as the format's own library does, or as MLX does. When the text
    is split at its entries, only commas remain between them, which proves that the form is valid. Then the sizes are
    checked: the tensors must fill the data without a gap, and each must have the size of its type and shape.
    """
    of_mlx = header.find(b':{"data_offsets":') >= 0
    parts = (_OF_MLX if of_mlx else _OF_LIBRARY).split(header)
    names, between, end = parts[1::5], parts[5:-1:5], parts[-1].rstrip(b" ")
    if not names or end != b"}" or between.count(b",") != len(between) or len(set(names)) != len(names):
        return None
    first, last, kind = (2, 3, 4) if of_mlx else (3, 4, 2)
    firsts, lasts, kinds = list(map(int, parts[first::5])), list(map(int, parts[last::5])), parts[kind::5]
    if firsts != [0, *lasts[:-1]]:
        entries = sorted(zip(firsts, lasts, kinds, strict=True))
        firsts, lasts, kinds = ([entry[i] for entry in entries] for i in range(3))  # type: ignore[assignment]
    if firsts != [0, *lasts[:-1]] or lasts[-1] != data_size:
        return None
    sizes = {kind: _tensor_bytes(kind) for kind in set(kinds)}
    if list(map(sub, lasts, firsts)) != [sizes[kind] for kind in kinds]:
        return None
    return _usual_metadata(parts[0])


def _tensor_bytes(kind: bytes) -> int | None:
    """Return the bytes of a tensor of this type and shape; None for an unknown type or a fraction of a byte."""
    dtype, _, shape = kind.partition(b',"shape":')
    try:
        lengths = json.loads(shape)
    except ValueError:
        return None
    bits = BITS.get(dtype.decode().strip('"'), 0) * math.prod(lengths)
    return bits // 8 if bits and bits % 8 == 0 else None


def _usual_metadata(begin: bytes) -> dict[str, str] | None:
    """Return the metadata before the first tensor, an object of texts; empty if it is missing, None if invalid."""
    if begin == b"{":
        return {}
    try:
        ((name, found),) = json.loads(begin.removesuffix(b",") + b"}").items()
    except (ValueError, RecursionError):
        return None
    if name != "__metadata__" or not isinstance(found, dict):
        return None
    return found if all(isinstance(text, str) for text in found.values()) else None
