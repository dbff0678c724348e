"""The build: it compiles or fails, leaves no module of older sources, and packages what belongs to a release."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hatchling", reason="hatchling is not installed")

from consumer import __version__
from tests.support.machine_code import AVX_512, dirty_hashing, functions, hashing

ROOT = Path(__file__).parents[1]
SUFFIX = EXTENSION_SUFFIXES[0]
CODES = "from enum import IntEnum\n\nclass Answer(IntEnum):\n    TO_ALL = 42\n"
SHARED = f"""{CODES}
class Pair(NamedTuple):
    one: int
    other: int

KEPT = 7
SIZE: Final = 16
LEFT = 8
"""
WORKS = 'include "constants.pxi"\n\ndef answer():\n    return ANSWER_TO_ALL\n'
NO_CYTHON = "def answer(:\n"
NO_C = 'cdef extern from *:\n    """\n    #error "not on this machine"\n    """\n'


def load_hook() -> Any:
    """The build's hook, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Build:
    """A package of two modules that was compiled before, and how it is built now."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.core = root / "consumer" / "conversion" / "native"
        self.core.mkdir(parents=True)
        for package in (self.core.parent, self.core):
            (package / "__init__.py").touch()
        (self.core.parent / "codes.py").write_text(CODES)
        for name in ("_one", "_two", "_renamed_since"):
            (self.core / f"{name}{SUFFIX}").write_text("of older sources")
        (self.core / "_one.cpython-38-other-machine.so").write_text("for another Python")
        self.module = module = load_hook()
        monkeypatch.setattr(module, "CONSTANTS", {"consumer/conversion/codes.py": ("Answer",)})
        monkeypatch.setattr(
            module, "MODULES", tuple(f"consumer.conversion.native.{name}" for name in ("_one", "_two"))
        )
        # What Cython remembers of includes is of the folder of the test before.
        monkeypatch.setattr("Cython.Build.Dependencies._dep_tree", None)
        monkeypatch.delenv("PINSTREAM_NO_COMPILE", raising=False)
        self.can_compile = module.can_compile
        nothing: Any = None
        self.hook = module.Compile(str(root), {}, nothing, nothing, str(root), "wheel", nothing)

    def run(self, one: str, two: str) -> dict[str, Any]:
        """Build these modules; return what the hook asks of the wheel."""
        (self.core / "_one.pyx").write_text(one)
        (self.core / "_two.pyx").write_text(two)
        asked: dict[str, Any] = {"pure_python": True, "artifacts": []}
        self.hook.initialize("standard", asked)
        return asked

    @property
    def compiled(self) -> set[str]:
        """Modules that this Python would load."""
        return {file.name.removesuffix(SUFFIX) for file in self.core.glob(f"*{SUFFIX}")}


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A package that was compiled before."""
    return Build(tmp_path, monkeypatch)


@pytest.mark.parametrize("broken", [NO_CYTHON, NO_C])
def test_what_cannot_be_compiled_fails_the_build_and_leaves_no_older_module(
    build: Build, broken: str
) -> None:
    """If nothing can be compiled, or only one of two modules; the error says how to build without."""
    assert build.compiled == {"_one", "_two", "_renamed_since"}
    with pytest.raises(SystemExit, match=r"cannot be compiled(.|\n)*PINSTREAM_NO_COMPILE=1"):
        build.run(WORKS, broken)
    assert build.compiled == set()
    assert (build.core / "_one.cpython-38-other-machine.so").exists()


def test_without_cython_the_build_fails_and_leaves_no_older_module(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same happens on a machine without a compiler."""
    monkeypatch.setitem(sys.modules, "Cython.Build", None)
    with pytest.raises(SystemExit, match="PINSTREAM_NO_COMPILE=1"):
        build.run(WORKS, WORKS)
    assert build.compiled == set()


def test_the_plain_package_has_to_be_asked_for(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """PINSTREAM_NO_COMPILE=1: nothing is compiled, older modules are removed, and the wheel fits every machine."""
    monkeypatch.setenv("PINSTREAM_NO_COMPILE", "1")
    asked = build.run(NO_CYTHON, NO_C)
    assert build.compiled == set()
    assert asked == {"pure_python": True, "artifacts": []}


def test_a_module_does_not_say_where_it_was_made(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what a debugger needs, as in a wheel, the bytes are alike in each folder, and nothing is left there."""
    monkeypatch.setenv("CFLAGS", "-g0")
    build.run(WORKS, WORKS)
    module = (build.core / f"_one{SUFFIX}").read_bytes()
    assert b"build/native/constants.pxi" in module
    assert str(tmp_path).encode() not in module
    assert not (tmp_path / "build" / "native").exists()


@pytest.mark.parametrize(("machine", "without_avx"), [("linux-x86_64", True), ("linux-aarch64", False)])
def test_a_wheel_for_another_machine_has_its_options(
    machine: str, without_avx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Python says of the platform counts, and `make wheels` changes that for another machine."""
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", machine)
    assert ("-mno-avx" in load_hook().OPTIMISE) == without_avx


@pytest.mark.parametrize("compiler", ["/nonexistent/cc", "false"])
def test_a_machine_without_a_compiler_is_recognised(
    build: Build, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    """`make setup` asks this, and continues with the plain package."""
    monkeypatch.setenv("CC", compiler)
    assert not build.can_compile()


@pytest.mark.parametrize(("asked", "fails"), [("", 1), ("0", 1), ("false", 1), ("1", 0)])
def test_make_setup_reads_the_switch_as_the_build_does(asked: str, fails: int) -> None:
    """Without a compiler `make setup` says that the package is plain, unless that was asked for: 0 does not ask."""
    environment = {**os.environ, "CC": "/nonexistent/cc", "PINSTREAM_NO_COMPILE": asked}
    done = subprocess.run([sys.executable, "hatch_build.py"], cwd=ROOT, env=environment, check=False)
    assert done.returncode == fails


def test_a_build_replaces_what_was_compiled_before(build: Build) -> None:
    """With a compiler the modules are built from the present sources, and the wheel has them beside the sources."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    assert build.can_compile()
    asked = build.run(WORKS, WORKS)
    assert build.compiled == {"_one", "_two"}
    assert all(
        (build.core / f"{name}{SUFFIX}").read_bytes()[:16] != b"of older sources" for name in build.compiled
    )
    assert asked["artifacts"] == [f"/consumer/conversion/native/{name}{SUFFIX}" for name in ("_one", "_two")]
    assert asked["pure_python"] is False


def test_what_is_compiled_is_current_until_it_or_a_source_changes(build: Build, tmp_path: Path) -> None:
    """A module that is gone, a source that was edited, and another build hook are seen; a new time stamp is nothing."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    is_current = build.module.is_current
    assert not is_current(tmp_path)  # "of older sources"
    build.run(WORKS, WORKS)
    assert is_current(tmp_path)
    (build.core / "_one.pyx").touch()
    assert is_current(tmp_path)
    compiled = build.core / f"_two{SUFFIX}"
    content = compiled.read_bytes()
    compiled.unlink()
    assert not is_current(tmp_path)
    compiled.write_bytes(content)
    assert is_current(tmp_path)
    (build.core / "_one.pyx").write_text(f"{WORKS}\n# edited\n")
    assert not is_current(tmp_path)


def test_the_plain_package_is_current_where_it_was_asked_for_or_nothing_can_compile(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any module the package is what a build would leave only if a build would make none."""
    for compiled in build.core.glob(f"*{SUFFIX}"):
        compiled.unlink()
    monkeypatch.setattr(build.module, "can_compile", lambda: True)
    assert not build.module.is_current(tmp_path)
    monkeypatch.setattr(build.module, "can_compile", lambda: False)
    assert build.module.is_current(tmp_path)
    monkeypatch.setattr(build.module, "can_compile", lambda: True)
    monkeypatch.setenv("PINSTREAM_NO_COMPILE", "1")
    assert build.module.is_current(tmp_path)
    (build.core / f"_one{SUFFIX}").write_text("asked for as plain, and compiled")
    assert not build.module.is_current(tmp_path)


FAKE_PYTHON = """#!/bin/sh
echo "$@" >>"$(dirname "$0")/calls"
case "$*" in *--current*) exit "$(cat "$(dirname "$0")/stale")" ;; esac
"""


def test_make_sets_up_again_only_if_something_changed(tmp_path: Path) -> None:
    """`make setup` asks what is compiled each time. If that is gone or of other sources, it compiles and says so."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    calls, stale = python.with_name("calls"), python.with_name("stale")

    def make(answer: int) -> tuple[bool, str]:
        """Whether `make setup` installed, and what it said."""
        calls.unlink(missing_ok=True)
        stale.write_text(str(answer))
        command = ["make", "setup", f"PYTHON={python}"]
        # Not with the variables of a make that runs the tests.
        alone = {key: value for key, value in os.environ.items() if "MAKE" not in key and key != "MFLAGS"}
        done = subprocess.run(
            command, cwd=tmp_path, env=alone, capture_output=True, text=True, check=True, timeout=60
        )
        return "--editable ." in calls.read_text(), done.stderr

    first, again, gone, after = make(0), make(0), make(1), make(0)
    assert [installs for installs, _ in (first, again, gone, after)] == [True, False, True, False]
    assert again[1] == after[1] == ""
    assert gone[1].startswith("what is compiled is gone, or not of these sources: building it again\n")
    (tmp_path / "pyproject.toml").touch()
    assert make(0)[0]


FALLBACKS = {
    "consumer.conversion.program": "consumer.conversion.native._events",
    "consumer.engine.dedup.claims": "consumer.engine.native._keyset",
    "consumer.engine.native": "consumer.engine.native._rows",
    "consumer.adapters.kafka.native": "consumer.adapters.kafka.native._messages",
    "consumer.adapters.key_store.native": "consumer.adapters.key_store.native._keys",
}
"""Modules that fall back to plain Python, and the compiled module of each."""

HASHES = """
import hashlib
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset
"""


@pytest.mark.parametrize("options", AVX_512)
def test_what_hashes_meets_no_avx_whatever_it_is_compiled_for(
    build: Build, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """Somebody who builds for a processor with AVX-512 (CFLAGS) gets hashes that are as fast as in a wheel."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    monkeypatch.setenv("CFLAGS", " ".join(options))
    source = HASHES + (ROOT / "consumer/conversion/native/_sha256.pxi").read_text("utf-8")
    build.run(source, WORKS)
    found = functions(build.core / f"_one{SUFFIX}")
    assert hashing(found)
    assert dirty_hashing(found) == []


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        (
            {
                "hash": ["sha256rnds2 %xmm0,%xmm1", "ret"],
                "other": ["vmovdqu %ymm0,(%rax)", "vzeroupper", "ret"],
            },
            0,
        ),
        ({"hash": ["sha256rnds2 %xmm0,%xmm1", "vmovdqa %xmm0,%xmm1", "ret"]}, 1),
        (
            {
                "hash": ["sha256msg1 %xmm0,%xmm1"],
                "other": ["vpxor %zmm0,%zmm0,%zmm0", "call   40 <hash>", "vzeroupper"],
            },
            1,
        ),
        ({"other": ["vpxor %ymm0,%ymm0,%ymm0", "ret"]}, 1),
    ],
)
def test_which_machine_code_is_slow(code: dict[str, list[str]], wrong: int) -> None:
    """The two tests around this one find AVX beside SHA instructions, and upper halves that are left in use."""
    assert len(dirty_hashing(code)) == wrong


@pytest.mark.parametrize("module", FALLBACKS.values())
def test_no_hash_of_this_build_meets_avx(module: str) -> None:
    """In the modules that are tested here, no SHA instruction meets what AVX code has left in a register."""
    compiled = ROOT.joinpath(*module.split(".")).with_name(f"{module.rpartition('.')[2]}{SUFFIX}")
    if not compiled.exists():
        pytest.skip("the package was built without a C compiler")
    assert dirty_hashing(functions(compiled)) == []


def test_source_and_wheel_carry_licence_version_and_schemas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source package is all that a wheel needs; both carry the licence's text."""
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    name = f"pinstream-{__version__}"
    [source] = SdistBuilder(str(ROOT)).build(directory=str(tmp_path))
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / name
    licence = (ROOT / "LICENSE").read_bytes()
    assert (unpacked / "LICENSE").read_bytes() == licence
    assert not list(unpacked.rglob("*.so"))
    monkeypatch.setenv("PINSTREAM_NO_COMPILE", "1")
    [wheel] = WheelBuilder(str(unpacked)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive_of_wheel:
        metadata = message_from_bytes(archive_of_wheel.read(f"{name}.dist-info/METADATA"))
        assert archive_of_wheel.read(f"{name}.dist-info/licenses/LICENSE") == licence
        data = {
            "schemas/commerce_event.avsc",
            "schemas/receipt.avsc",
            "demo/request.schema.json",
            "demo/shop.toml",
        }
        example = (path for path in (ROOT / "examples" / "shop").rglob("*") if path.is_file())
        data |= {path.relative_to(ROOT).as_posix() for path in example}
        assert {f"consumer/{name}" for name in data} <= {*archive_of_wheel.namelist()}
    assert (metadata["Version"], metadata["License-Expression"]) == (__version__, "Apache-2.0")
    assert metadata["Author"] == "pinstream contributors"


@pytest.mark.parametrize("module", FALLBACKS.values())
def test_the_compiled_modules_are_of_these_sources(module: str) -> None:
    """What is tested here was made of the present sources, not of older ones."""
    try:
        made = importlib.import_module(module).SOURCES
    except ModuleNotFoundError:
        pytest.skip("the package was built without a C compiler")
    assert made == load_hook().sources_digest(ROOT), "run `make setup`"


def test_the_digest_reports_each_source(build: Build, tmp_path: Path) -> None:
    """Of a module, of a part that it includes, and of what Python shares with it; nothing else changes it."""
    (build.core / "_one.pyx").write_text(WORKS)
    (build.core / "_part.pxi").write_text("cdef int one = 1\n")
    seen = [build.module.sources_digest(tmp_path)]
    for file in (build.core / "_one.pyx", build.core / "_part.pxi", build.core.parent / "codes.py"):
        file.write_text(file.read_text().replace("42", "43") + "\n# later\n")
        seen.append(build.module.sources_digest(tmp_path))
    (build.core.parent / "other.py").write_text("ANSWER = 42\n")
    assert seen[-1] == build.module.sources_digest(tmp_path)
    assert len({*seen}) == 4


def test_what_modules_share_with_python_is_read_from_it(build: Build, tmp_path: Path) -> None:
    """Numbers, enumerations and the places of a tuple's fields get a name in C, and nothing else of the file does."""
    (build.core.parent / "codes.py").write_text(SHARED)
    build.module.CONSTANTS = {"consumer/conversion/codes.py": ("Answer", "Pair", "KEPT", "SIZE")}
    found = build.module.constants(tmp_path)
    wanted = {"KEPT": 7, "SIZE": 16, "ANSWER_TO_ALL": 42, "PAIR_ONE": 0, "PAIR_OTHER": 1, "PAIR_FIELDS": 2}
    assert f"enum {{ {', '.join(f'{name} = {value}' for name, value in wanted.items())} }};" in found
    assert re.findall(r"^        (\w+)$", found, re.MULTILINE) == list(wanted)


IMPORTED_WITH = """
import importlib, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {compiled!r}:
            raise {error}({compiled!r}, name=name)

sys.meta_path.insert(0, Finder())
importlib.import_module({module!r})
"""


@pytest.mark.parametrize("module", FALLBACKS)
def test_a_missing_compiled_module_is_replaced_and_a_broken_one_is_an_error(module: str) -> None:
    """Without a compiler the plain twin does the work. A module that was built and cannot be loaded ends the process:
    nothing else would say that events now cost about twelve times as much."""

    def imported_with(error: str) -> subprocess.CompletedProcess[str]:
        program = IMPORTED_WITH.format(compiled=FALLBACKS[module], error=error, module=module)
        return subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
        )

    missing, broken = imported_with("ModuleNotFoundError"), imported_with("ImportError")
    assert (missing.returncode, missing.stderr) == (0, "")
    assert broken.returncode == 1
    assert broken.stderr.endswith(f"ImportError: {FALLBACKS[module]}\n")
