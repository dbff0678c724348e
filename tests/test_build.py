"""The build hook: whatever a build comes to, no module of older sources is left to be loaded or packaged."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import types
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hatchling", reason="hatchling is not installed")

ROOT = Path(__file__).parents[1]
SUFFIX = EXTENSION_SUFFIXES[0]
WORKS = "def answer():\n    return 42\n"
NO_CYTHON = "def answer(:\n"
NO_C = 'cdef extern from *:\n    """\n    #error "not on this machine"\n    """\n'


class Build:
    """A package of two modules, compiled before, and how it is built now."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.core = root / "consumer" / "conversion" / "native"
        self.core.mkdir(parents=True)
        for package in (self.core.parent, self.core):
            (package / "__init__.py").touch()
        for name in ("_one", "_two", "_renamed_since"):
            (self.core / f"{name}{SUFFIX}").write_text("of older sources")
        (self.core / "_one.cpython-38-other-machine.so").write_text("for another Python")
        spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(module, "MODULES", ("_one", "_two"))
        self.warnings: list[str] = []
        app: Any = types.SimpleNamespace(display_warning=self.warnings.append)
        self.hook = module.Compile(str(root), {}, None, None, str(root), "wheel", app)

    def run(self, one: str, two: str) -> dict[str, Any]:
        """Build these; gives what the hook asks of the wheel."""
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
def test_a_build_that_fails_leaves_no_module_of_an_older_one(build: Build, broken: str) -> None:
    """Neither where nothing can be compiled nor where one of two can: it warns, and the package is pure Python."""
    assert build.compiled == {"_one", "_two", "_renamed_since"}
    asked = build.run(WORKS, broken)
    assert build.compiled == set()
    assert asked == {"pure_python": True, "artifacts": []}
    assert len(build.warnings) == 1
    assert (build.core / "_one.cpython-38-other-machine.so").exists()


def test_without_cython_no_module_of_an_older_build_is_left(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the package is built on a machine that has no compiler."""
    monkeypatch.setitem(sys.modules, "Cython.Build", None)
    build.run(WORKS, WORKS)
    assert build.compiled == set()
    assert len(build.warnings) == 1


def test_a_build_replaces_what_was_compiled_before(build: Build) -> None:
    """With a compiler: the modules that there are now, and they are what the wheel holds beside the sources."""
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    asked = build.run(WORKS, WORKS)
    assert build.warnings == []
    assert build.compiled == {"_one", "_two"}
    assert all(
        (build.core / f"{name}{SUFFIX}").read_bytes()[:16] != b"of older sources" for name in build.compiled
    )
    assert asked["artifacts"] == [f"/consumer/conversion/native/{name}{SUFFIX}" for name in ("_one", "_two")]
    assert asked["pure_python"] is False
