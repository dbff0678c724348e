"""Compiles the `.pyx` files of `consumer/conversion/native` when the package is built, if Cython and a C compiler are
there.

Without them the build goes on and the package is pure Python: everything works, the fast path is slower. The results
lie beside their sources, so that an editable installation finds it too. So what an earlier build left there goes first:
modules of older sources must neither be loaded beside newer Python nor get into a wheel.
"""

from __future__ import annotations

import sys
import tempfile
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "consumer/conversion/native"
MODULES = ("_slots", "_json", "_usual", "_events")


def sources_digest(root: Path) -> str:
    """What the modules are made of, as one digest: so that modules made of older sources can be told."""
    files = sorted((root / NATIVE).glob("_*.p[yx][xd]"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def remove_compiled(root: Path) -> None:
    """Remove what was compiled here before, for this Python; others' modules are for their own builds to see to."""
    for suffix in EXTENSION_SUFFIXES:
        for file in (root / NATIVE).glob(f"_*{suffix}"):
            if "." not in file.name.removesuffix(suffix):
                file.unlink()


class Compile(BuildHookInterface[Any]):
    """hatchling's hook; `pyproject.toml` names this file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the wheel say for which Python and machine it is."""
        if self.target_name != "wheel":
            return
        remove_compiled(Path(self.root))
        try:
            built = self._compile()
        except (
            Exception
        ) as error:  # no Cython, no compiler, no headers: whatever it is, it is no reason to stop
            remove_compiled(Path(self.root))  # some may have been compiled before one was not
            self.app.display_warning(f"{MODULES} were not compiled, the fast path will be slower: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"] += [f"/{path.relative_to(self.root).as_posix()}" for path in built]

    def _compile(self) -> list[Path]:
        from Cython.Build import cythonize
        from setuptools import Distribution, Extension
        from setuptools.command.build_ext import build_ext

        root = Path(self.root)
        names = [f"consumer.conversion.native.{module}" for module in MODULES]
        with tempfile.TemporaryDirectory() as scratch:
            extensions = [
                Extension(
                    name,
                    [str(root / f"{name.replace('.', '/')}.pyx")],
                    extra_compile_args=["-O3"],
                    define_macros=[("PINSTREAM_SOURCES", f'"{sources_digest(root)}"')],
                )
                for name in names
            ]
            made = cythonize(extensions, build_dir=scratch, include_path=[str(root)], quiet=True)
            command = build_ext(Distribution({"name": "pinstream", "ext_modules": made}))
            command.build_lib, command.build_temp, command.force = str(root), scratch, True
            command.ensure_finalized()
            command.run()
            return [root / command.get_ext_filename(name) for name in names]


if __name__ == "__main__":
    sys.exit("This is a build hook: install the package instead.")
