"""The C++ kernel's library: compiled once, loaded from where the user alone can write, and done without."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lightning_tspike import kernels
from lightning_tspike.functional import ternary_lif
from lightning_tspike.kernels import compiled, native, sparse

NOBODY = 65534


@pytest.fixture(autouse=True)
def _nothing_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has compiled nothing, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(native, "_FLAGS", (*native._FLAGS, "-O0"))  # which takes a third of the time
    caches = (native._library, native._compiler)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()
    assert not list((tmp_path / "tmp").iterdir()), "something was left in the temporary folder"


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 3)
    with kernels.use("reference"):
        want = ternary_lif(x, 2)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler was found"):
        assert torch.equal(ternary_lif(x, 2), want)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said once
        assert torch.equal(ternary_lif(x, 2, reset="soft"), ternary_lif(x, 2, reset="soft"))


def test_with_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho this compiler is broken >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    x = torch.randn(4, 3)
    with kernels.use("reference"):
        want = ternary_lif(x, 2)
    with pytest.warns(UserWarning, match="this compiler is broken"):
        assert torch.equal(ternary_lif(x, 2), want)
    assert not list((tmp_path / "cache").rglob("*.so")), "half a library was left"


def test_a_compiler_that_does_not_know_some_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what needs them is missing, and nothing else."""
    old = tmp_path / "c++"
    real = shutil.which("c++")
    old.write_text(f'#!/bin/sh\ncase "$*" in *avx512vnni*) echo unknown option >&2; exit 1;; esac\nexec {real} "$@"\n')
    old.chmod(0o755)
    monkeypatch.setenv("CXX", str(old))
    with pytest.warns(UserWarning, match="skips silence could not be compiled .* layers do without it.*unknown option"):
        assert sparse._library.__wrapped__() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native._library(torch.float32, "hard", False, "rectangular") is not None


def test_compiled_once(tmp_path: Path) -> None:
    x = torch.randn(4, 3)
    ternary_lif(x, 2)
    (library,) = (tmp_path / "cache").rglob("*.so")
    made = library.stat().st_mtime_ns
    native._library.cache_clear()
    ternary_lif(x, 2)
    assert [p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()] == [made]


def test_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ternary_lif(torch.ones(2, 3), 2).tolist() == [[1] * 3] * 2


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """The library in the cache, as an earlier process left it."""
    ternary_lif(torch.randn(4, 3), 2)
    native._library.cache_clear()
    (library,) = (tmp_path / "cache" / "lightning-tspike").iterdir()
    return library


def _plant(library: Path, marker: Path) -> None:
    """Put a library there that leaves a mark when it is loaded, as somebody would who knows how the cache works."""
    source = marker.with_suffix(".cpp")
    source.write_text(
        f'#include <cstdio>\n__attribute__((constructor)) static void run() {{ std::fopen("{marker}", "w"); }}\n'
    )
    subprocess.run(["c++", "-shared", "-fPIC", str(source), "-o", str(library)], check=True, timeout=60)
    content = library.read_bytes()
    library.write_bytes(content + hashlib.sha256(content).digest())


def _folder_that_others_can_write_to(library: Path) -> None:
    library.parent.chmod(0o777)


def _link_to_a_folder(library: Path) -> None:
    elsewhere = library.parents[1] / "elsewhere"
    library.parent.rename(elsewhere)
    library.parent.symlink_to(elsewhere)


def _folder_of_somebody_else(library: Path) -> None:
    _give_away(library.parent)


def _link_to_a_library(library: Path) -> None:
    elsewhere = library.parents[1] / "elsewhere.so"
    library.rename(elsewhere)
    library.symlink_to(elsewhere)


def _library_of_somebody_else(library: Path) -> None:
    _give_away(library)


def _library_that_others_can_write_to(library: Path) -> None:
    library.chmod(0o666)


def _give_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, NOBODY, NOBODY)


@pytest.mark.parametrize(
    ("tamper", "is_folder"),
    [
        (_folder_that_others_can_write_to, True), (_link_to_a_folder, True), (_folder_of_somebody_else, True),
        (_link_to_a_library, False), (_library_of_somebody_else, False), (_library_that_others_can_write_to, False),
    ],
)  # fmt: skip
def test_what_another_user_may_have_put_there_is_not_loaded(
    cached: Path, tmp_path: Path, tamper: Callable[[Path], None], is_folder: bool
) -> None:
    _plant(cached, tmp_path / "harmed")
    tamper(cached)
    planted = cached.read_bytes()
    x = torch.randn(4, 3)
    with kernels.use("reference"):
        want = ternary_lif(x, 2)
    with pytest.warns(UserWarning, match="another user") if is_folder else warnings.catch_warnings():
        assert torch.equal(ternary_lif(x, 2), want)
    assert not (tmp_path / "harmed").exists(), "the planted library was loaded"
    assert native._library(torch.float32, "hard", False, "rectangular") is not None, "compiled for this process"
    assert (cached.read_bytes() == planted) == is_folder, "in a folder of ours it is replaced, others are left alone"


@pytest.mark.parametrize("damage", ["empty", "cut off", "one bit"])
def test_a_damaged_library_is_replaced(cached: Path, damage: str) -> None:
    whole = cached.read_bytes()
    other = bytes([whole[len(whole) // 2] ^ 1])
    damaged = {
        "empty": b"", "cut off": whole[: len(whole) // 2],
        "one bit": whole[: len(whole) // 2] + other + whole[len(whole) // 2 + 1 :],
    }[damage]  # fmt: skip
    cached.write_bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ternary_lif(torch.ones(2, 3), 2).tolist() == [[1] * 3] * 2
    assert len(cached.read_bytes()) == len(whole)
    assert cached.read_bytes() != damaged


def test_the_cache_is_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ternary_lif(torch.ones(2, 3), 2)
    finally:
        os.umask(before)
    folder = tmp_path / "cache" / "lightning-tspike"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [file.stat().st_mode & 0o077 for file in folder.iterdir()] == [0]


def test_a_compiler_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for once, whatever kinds of neurons follow, and ends with all that it has started."""
    calls = tmp_path / "calls"
    cxx = tmp_path / "c++"
    cxx.write_text(f"#!/bin/sh\nsleep 600 &\necho $! >> {calls}\ntouch $TMPDIR/object.s\nwait\n")
    cxx.chmod(0o755)
    monkeypatch.setenv("CXX", str(cxx))
    monkeypatch.setattr(compiled, "_SECONDS", 1)
    x = torch.ones(2, 3)
    with pytest.warns(UserWarning, match="timed out"):
        assert ternary_lif(x, 2).tolist() == [[1] * 3] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ternary_lif(x, 2, reset="soft")
        ternary_lif(x.double(), 2)
    (child,) = calls.read_text().split()
    for _ in range(100):
        try:
            status = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it is gone
            return
        if status in "ZX":  # dead, which whoever inherited it has yet to look at
            return
        time.sleep(0.1)
    pytest.fail("what the compiler started still runs")


def test_nothing_is_left_where_neither_cache_nor_compiler_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("CXX", shutil.which("false"))
    with pytest.warns(UserWarning, match="could not be compiled"):
        assert ternary_lif(torch.ones(2, 3), 2).tolist() == [[1] * 3] * 2


@pytest.mark.parametrize(("folder", "arguments"), [("my bin", ""), ("my bin", " -DMINE='a b'")])
def test_the_compiler_may_have_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, folder: str
) -> None:
    cxx = tmp_path / folder / "c++"
    cxx.parent.mkdir()
    words = tmp_path / "words"
    script = f'for word; do echo "$word" >> "{words}"; done; exec {shutil.which("c++")} "$@"'
    cxx.write_text(f"#!/bin/sh\n{script}\n")
    cxx.chmod(0o755)
    name = f"'{cxx}'" if arguments else str(cxx)
    monkeypatch.setenv("CXX", name + arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ternary_lif(torch.ones(2, 3), 2)
    assert ("-DMINE=a b" in words.read_text().splitlines()) == bool(arguments)
    assert kernels.can_compile("cpu")


def test_a_compiler_with_half_a_quotation_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "c++ '-O2")
    assert compiled.compiler() == (shutil.which("c++"),)
