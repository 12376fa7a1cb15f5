"""The header of a safetensors file, checked against the file's size without reading a weight.

Format: 8 bytes N (little-endian), N bytes of JSON, then the tensors' bytes. The JSON maps each tensor's name to
`dtype`, `shape` and `data_offsets` [begin, end), counted from the end of the header; `__metadata__` maps text to text.
The tensors fill the rest of the file without a gap (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

from typing import Any

from mlxk2.checkpoint import json_text
from mlxk2.checkpoint.files import BrokenFile, File, opened
from mlxk2.checkpoint.plain_header import BITS, metadata_of
from mlxk2.errors import reason_of

MAX_HEADER_BYTES = json_text.HEADER.bytes  # the format allows 100 MB
MAX_TENSORS = 1 << 18  # a model of a trillion weights has 200,000, in many files

_MOST = 1 << 63
_FIRST_READ = 1 << 16  # most headers are smaller


def read_metadata(file: File) -> dict[str, str]:
    """The `__metadata__` of a whole safetensors file; BrokenFile when the file is not whole."""
    file, text = _read_header(file)
    metadata = metadata_of(text, file.size - 8 - len(text))
    return _parsed_metadata(file, text) if metadata is None else metadata


def has_tensor(file: File, ending: str) -> bool:
    """Return whether the name of a tensor has this ending; BrokenFile when the file is truncated inside its header."""
    return f'{ending}"'.encode() in _read_header(file)[1]


def _read_header(file: File) -> tuple[File, bytes]:
    """Return the file as it was when it was read, and the JSON text of its header."""
    with opened(file) as current:
        file = current.file
        begin = current.read(_FIRST_READ)
        length = _header_length(file, begin[:8])
        text = begin[8 : 8 + length] if 8 + length <= len(begin) else current.read(length, offset=8)
    tensors = text.count(b'"data_offsets"')
    if tensors > MAX_TENSORS:
        raise BrokenFile(f"{file.name} has too many tensors to be read ({tensors:,}, at most {MAX_TENSORS:,})")
    return file, text


def _parsed_metadata(file: File, text: bytes) -> dict[str, str]:
    header = _parse(file, text)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise BrokenFile(f"{file.name} has a damaged safetensors header (its metadata is not text)")
    _check_offsets(file, header, file.size - 8 - len(text))
    return metadata


def _header_length(file: File, begin: bytes) -> int:
    if len(begin) < 8:
        raise BrokenFile(f"{file.name} is truncated: {file.size} bytes are no safetensors file")
    length = int.from_bytes(begin, "little")
    if length > MAX_HEADER_BYTES:
        limit = f"its header would have {length:,} bytes, at most {MAX_HEADER_BYTES:,} are read"
        raise BrokenFile(f"{file.name} is no safetensors file ({limit})")
    if 8 + length > file.size:
        raise BrokenFile(f"{file.name} is truncated inside its header ({file.size} bytes)")
    return length


def _parse(file: File, text: bytes) -> dict[str, Any]:
    header = json_text.parse(f"{file.name} has a safetensors header that", text, json_text.HEADER)
    if not isinstance(header, dict):
        raise BrokenFile(f"{file.name} has a damaged safetensors header")
    return header


def _check_offsets(file: File, tensors: dict[str, Any], data_size: int) -> None:
    """The tensors must be as large as their shapes say and fill the data exactly, one after the other."""
    try:
        places = sorted([_place(tensor) for tensor in tensors.values()])
    except (TypeError, KeyError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else reason_of(error)
        raise BrokenFile(f"{file.name} has a damaged safetensors header (a tensor has {reason})") from error
    end = places[-1][1] if places else 0
    if end > data_size:
        raise BrokenFile(f"{file.name} is truncated: {end - data_size} bytes are missing")
    if end < data_size:
        raise BrokenFile(f"{file.name} is damaged: {data_size} bytes of data, its header accounts for {end}")
    end = 0
    for first, last in places:
        if first != end:
            raise BrokenFile(f"{file.name} is damaged: its tensors overlap or leave a gap")
        end = last


def _place(tensor: dict[str, Any]) -> tuple[int, int]:
    """Where a tensor begins and ends, in bytes; ValueError when that can't be, or not with its shape."""
    try:
        first, last = tensor["data_offsets"]
    except (TypeError, ValueError):
        raise ValueError("no pair of offsets") from None
    dtype, shape = tensor["dtype"], tensor["shape"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError("a data type or a shape of the wrong kind")
    bits = size = BITS.get(dtype, 0)
    # Whole numbers, of which JSON also makes floats and truth values; a product of huge ones could take for ever.
    for length in shape:
        if type(length) is not int or not 0 <= length <= _MOST or size > _MOST:
            raise ValueError("a dimension that is no size")
        size *= length
    if type(first) is not int or type(last) is not int or not 0 <= first <= last <= _MOST:
        raise ValueError("offsets that are no positions")
    if bits and size != (last - first) * 8:
        raise ValueError("a size that does not fit its shape")
    return first, last
