"""Check by its header that a GGUF file is large enough for all its tensors.

Format: magic, version, number of tensors, number of key-value pairs, the pairs, the tensor table; then, from the next
multiple of `general.alignment`, the tensors' data (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
All integers are little-endian; since version 2, counts have 64 bits.
"""

from __future__ import annotations

import math
import struct

from mlxk2.checkpoint.files import BrokenFile, File, OpenFile, open_file

MAX_HEADER_BYTES = 1 << 25  # A vocabulary of 262,144 tokens with its merges needs a third of it.
MAX_ENTRIES = 1 << 17  # Tensors, pairs and nested arrays together; real files have a few thousand.
MAX_NESTING = 4
MAX_DIMENSIONS = 8

_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_UINT32 = 4
# Bytes of a value by its type: u8 i8 u16 i16 u32 i32 f32 bool, u64 i64 f64.
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# ggml's tensor types: (elements, bytes) of a block.
_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}


def check(file: File) -> None:
    """Raise BrokenFile unless the file is a GGUF file at least as large as its tensor table needs."""
    with open_file(file) as current:
        header = _Header(current)
        if header.take(4) != b"GGUF":
            raise BrokenFile(file.name, "is not a GGUF file")
        version = header.number("<I")
        if version not in (2, 3):
            raise BrokenFile(file.name, f"has the unknown GGUF version {version}")
        tensors, pairs = header.count(), header.count()
        alignment = header.skip_pairs(pairs)
        data_size = max((header.tensor_end() for _ in range(tensors)), default=0)
        data_begin = -(-header.position // alignment) * alignment
        missing = data_begin + data_size - current.file.size
        if data_size and missing > 0:
            raise BrokenFile(file.name, f"is truncated: {missing} bytes are missing")


class _Header:
    """Reads a header from beginning to end; raises BrokenFile where the file ends too early."""

    def __init__(self, current: OpenFile) -> None:
        self._current = current
        self._file = current.file
        self._bytes = b""
        self._entries = 0
        self.position = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        self._load(end)
        taken = self._bytes[self.position : end]
        self.position = end
        return taken

    def number(self, code: str) -> int:
        (value,) = struct.unpack(code, self.take(struct.calcsize(code)))
        return int(value)

    def count(self) -> int:
        value = self.number("<Q")
        self._entries += value
        if self._entries > MAX_ENTRIES:
            raise BrokenFile(self._file.name, f"has a damaged GGUF header ({self._entries} entries)")
        return value

    def skip_pairs(self, count: int) -> int:
        """Skip the key-value pairs and return the alignment that they set."""
        alignment = _DEFAULT_ALIGNMENT
        for _ in range(count):
            key = self.take(self.number("<Q"))
            kind = self.number("<I")
            if key == b"general.alignment" and kind == _UINT32:
                alignment = self.number("<I")
            else:
                self._skip_value(kind)
        if not 1 <= alignment <= MAX_HEADER_BYTES:
            raise BrokenFile(self._file.name, f"has a damaged GGUF header (alignment {alignment})")
        return alignment

    def tensor_end(self) -> int:
        """Skip one entry of the tensor table; return the end of its data, in bytes from the beginning of all data."""
        self.take(self.number("<Q"))
        dimensions = self.number("<I")
        if dimensions > MAX_DIMENSIONS:
            raise BrokenFile(self._file.name, f"has a damaged GGUF header ({dimensions} dimensions)")
        elements = math.prod(self.number("<Q") for _ in range(dimensions))
        per_block, block_bytes = _BLOCKS.get(self.number("<I"), (1, 0))
        return self.number("<Q") + -(-elements // per_block) * block_bytes

    def _skip_value(self, kind: int, nesting: int = 0) -> None:
        if kind == _STRING:
            self.take(self.number("<Q"))
        elif kind == _ARRAY and nesting < MAX_NESTING:
            self._skip_array(nesting + 1)
        elif kind in _VALUE_BYTES:
            self.take(_VALUE_BYTES[kind])
        else:
            raise BrokenFile(self._file.name, f"has a damaged GGUF header (a value of type {kind})")

    def _skip_array(self, nesting: int) -> None:
        kind = self.number("<I")
        if kind in _VALUE_BYTES:
            self.take(_VALUE_BYTES[kind] * self.number("<Q"))
        elif kind == _STRING:
            # Vocabularies have hundreds of thousands of strings, so this loop takes most of the time for a header.
            unpack = struct.Struct("<Q").unpack_from
            count = self.number("<Q")
            position = self.position
            for _ in range(count):
                if position + 8 > len(self._bytes):
                    self._load(position + 8)
                position += 8 + unpack(self._bytes, position)[0]
            self._load(position)
            self.position = position
        else:
            for _ in range(self.count()):
                self._skip_value(kind, nesting)

    def _load(self, end: int) -> None:
        """Read more until the first `end` bytes of the file are in memory."""
        if end <= len(self._bytes):
            return
        if end > self._file.size:
            raise BrokenFile(self._file.name, f"is truncated inside its header ({self._file.size} bytes)")
        if end > MAX_HEADER_BYTES:
            limit = f"at least {end:,} bytes, at most {MAX_HEADER_BYTES:,} are read"
            raise BrokenFile(self._file.name, f"has too large a GGUF header ({limit})")
        size = min(max(2 * end, 1 << 16), MAX_HEADER_BYTES)
        self._bytes += self._current.read(size - len(self._bytes), offset=len(self._bytes))
        if end > len(self._bytes):
            raise BrokenFile(self._file.name, "changed while it was read")
