"""Read what ``torch.save`` wrote, from a file that anyone may have made: nothing in it is run, nothing in it grows.

``torch.load`` with ``weights_only`` runs no code, but a small file can make it fill the memory: by entries of the zip
archive that are compressed, by constructors such as ``bytearray(10**12)``, by a description of gigabytes.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any, cast

import torch

__all__ = ["read_torch_file"]

_LARGEST = 2 << 20  # bytes of names, shapes and plain values; those of a ResNet-50 with its optimizer are 0.1 MB
_HARMLESS = {
    "collections OrderedDict", "collections Counter", "__builtin__ set", "builtins set", "_codecs encode",
    "torch Size", "torch device", "torch.serialization _get_layout", "torch.nn.parameter Parameter",
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state",
    "torch._tensor _rebuild_from_type_v2", "builtins complex", "__builtin__ complex",
}  # fmt: skip


def read_torch_file(path: Path) -> Any:
    """The contents of a file of ``torch.save``, tensors on the CPU.

    Args:
        path: The file. It stays mapped into memory as long as its tensors live, where its format allows.

    Raises:
        ValueError: It is damaged, holds more than tensors and plain values, or would unfold into more than it is; the
            message goes on after the file's name.
    """
    if not path.is_file():
        raise ValueError("is no file")
    try:
        is_archive = zipfile.is_zipfile(path)
        _check_archive(path) if is_archive else _check_pickles(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # what is no pickle, or not of this kind, can raise anything
        raise ValueError(f"is damaged or holds more than weights and plain values: {error}") from error


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if packed := [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
            raise ValueError(f"its entry {packed[0]!r} is compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its entries overlap")
        if (changed := archive.testzip()) is not None:  # by the checksums that torch.save writes and does not read
            raise ValueError(f"its entry {changed!r} was changed")
        for entry in entries:
            if entry.filename.lower().endswith("data.pkl"):  # torch finds it in whatever case
                with archive.open(entry) as stream:
                    _check_pickle(stream)


def _check_pickles(path: Path) -> None:
    """The format before torch 1.6: three pickles of facts, one of what was saved, one of keys, then the numbers."""
    with path.open("rb") as stream:
        for _ in range(5):
            _check_pickle(stream)


def _check_pickle(stream: IO[bytes]) -> None:
    """Look at the instructions without following them."""
    for code, argument, _ in pickletools.genops(cast(IO[bytes], _Limited(stream))):
        if code.name in ("GLOBAL", "INST", "STACK_GLOBAL") and not _is_harmless(argument):
            raise ValueError(f"it would call {argument!r}")


def _is_harmless(name: object) -> bool:
    module, _, attribute = str(name).partition(" ")
    is_kind = module in ("torch", "torch.storage") and (
        attribute.endswith("Storage") or isinstance(getattr(torch, attribute, None), torch.dtype)
    )
    allowed = torch.serialization.get_safe_globals()  # what the user has vouched for
    return name in _HARMLESS or is_kind or f"{module}.{attribute}" in map(_full_name, allowed)


def _full_name(allowed: Any) -> str:
    return allowed[1] if isinstance(allowed, tuple) else f"{allowed.__module__}.{allowed.__qualname__}"


class _Limited:
    """A stream of which no more than ``_LARGEST`` bytes are read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.left = stream, _LARGEST

    def read(self, count: int) -> bytes:
        return self._count(self.stream.read(min(count, self.left + 1)))

    def readline(self) -> bytes:
        return self._count(self.stream.readline(self.left + 1))

    def tell(self) -> int:
        return self.stream.tell()

    def _count(self, read: bytes) -> bytes:
        self.left -= len(read)
        if self.left < 0:
            raise ValueError(f"it describes itself in more than {_LARGEST} bytes")
        return read
