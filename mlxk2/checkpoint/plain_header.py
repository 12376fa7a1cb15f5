"""The safetensors headers that writers write, judged in half the time that a JSON parser needs to read them.

Parsing headers is most of what a listing does. Writers put no space and no escape into them, and one of two orders of
keys: the format's own library's, or MLX's. Splitting such a text at its entries leaves only commas between them, which
proves its form. Whatever is unusual is left to the parser.
"""

from __future__ import annotations

import json
import math
import re
from operator import sub

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

_NAME = rb'("[^"\\\x00-\x1f\x80-\xff]*+"):'
_KIND = rb'"dtype":("[A-Z0-9_]++","shape":\[[0-9,]{0,400}+\])'
_PLACE = rb'"data_offsets":\[(0|[1-9][0-9]{0,17}+),([1-9][0-9]{0,17}+)\]'
_OF_LIBRARY = re.compile(_NAME + rb"\{" + _KIND + rb"," + _PLACE + rb"\}")
_OF_MLX = re.compile(_NAME + rb"\{" + _PLACE + rb"," + _KIND + rb"\}")


def metadata_of(header: bytes, data_size: int) -> dict[str, str] | None:
    """The metadata of a header in its usual form that accounts for all data; None where a parser must decide.

    `header` is the JSON text, `data_size` the number of bytes behind it.
    """
    of_mlx = header.find(b':{"data_offsets":') >= 0
    parts = (_OF_MLX if of_mlx else _OF_LIBRARY).split(header)
    names, between, end = parts[1::5], parts[5:-1:5], parts[-1].rstrip(b" ")
    if not names or end != b"}" or between.count(b",") != len(between) or len(set(names)) != len(names):
        return None
    first, last, kind = (2, 3, 4) if of_mlx else (3, 4, 2)
    places = list(map(int, parts[first::5])), list(map(int, parts[last::5])), parts[kind::5]
    return _metadata(parts[0]) if _are_right(*places, data_size) else None


def _are_right(firsts: list[int], lasts: list[int], kinds: list[bytes], data_size: int) -> bool:
    """Whether tensors follow each other through all data and are as large as their types and shapes say."""
    if firsts != [0, *lasts[:-1]]:
        places = sorted(zip(firsts, lasts, kinds, strict=True))
        firsts, lasts, kinds = ([place[i] for place in places] for i in range(3))  # type: ignore[assignment]
    sizes = {kind: _size(kind) for kind in set(kinds)}
    fill = firsts == [0, *lasts[:-1]] and lasts[-1] == data_size
    return fill and list(map(sub, lasts, firsts)) == [sizes[kind] for kind in kinds]


def _size(kind: bytes) -> int | None:
    """The bytes of a tensor of this type and shape; None for an unknown type or a part of a byte."""
    dtype, _, shape = kind.partition(b',"shape":')
    try:
        lengths = json.loads(shape)
    except ValueError:
        return None
    bits = BITS.get(dtype.decode().strip('"'), 0) * math.prod(lengths)
    return bits // 8 if bits and bits % 8 == 0 else None


def _metadata(begin: bytes) -> dict[str, str] | None:
    """What stands before the first tensor: nothing, or the metadata, a flat object of texts."""
    if begin == b"{":
        return {}
    try:
        ((name, found),) = json.loads(begin.removesuffix(b",") + b"}").items()
    except (ValueError, RecursionError):
        return None
    if name != "__metadata__" or not isinstance(found, dict):
        return None
    return found if all(isinstance(text, str) for text in found.values()) else None
