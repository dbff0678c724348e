"""Compiles the `.pyx` files of the package when it is built, with the parts that they include (`.pxi`).

A build that cannot compile them fails: an image or a wheel without the fast path must not be made by accident.
``PINSTREAM_NO_COMPILE=1`` asks for the plain package, in which everything works and the fast path is slower. `make
setup` sets it on a machine that has no compiler (``python hatch_build.py`` exits with 1 if one is missing). Each `make`
asks whether what is compiled is still what a build would leave (``python hatch_build.py --current``).

The compiled modules lie beside their sources, so that an editable installation finds them too. So the build first
removes what an earlier build left there: modules of older sources must neither be loaded beside newer Python nor get
into a wheel.

README.md is written to be read in the repository. In the package's metadata its links lead there (`Metadata`): an index
shows the page, and has none of the files beside it.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

NO_COMPILE = "PINSTREAM_NO_COMPILE"
MODULES = (
    "consumer.conversion.native._events",
    "consumer.engine.native._keyset",
    "consumer.engine.native._rows",
    "consumer.adapters.key_store.native._keys",
    "consumer.adapters.kafka.native._messages",
    "consumer.adapters.receipts.native._receipts",
)
CONSTANTS = {
    "consumer/adapters/key_store/plain.py": ("BLOCK_BYTES", "ENTRY_BYTES", "MAX_BITS"),
    "consumer/adapters/receipts/encoding.py": ("MAX_RECEIPT_BYTES",),
    "consumer/avro/reading.py": ("MAX_ITEMS",),
    "consumer/conversion/codes.py": ("Code", "Glance", "Canonical", "Way"),
    "consumer/conversion/rules.py": ("LONGEST_CLICK_ID",),
    "consumer/engine/messages.py": ("Found",),
    "consumer/engine/model.py": ("Record", "CURRENCY_BITS"),
    "consumer/engine/reading.py": ("KEY_BYTES", "Kind"),
}
"""What the modules share with Python: numbers, enumerations and tuples with names. They include it (`constants`)."""
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
}
OPTIMISE = [
    "-O3",
    # Functions that are declared inline are made inline, also the larger ones that are called in several places: an
    # event goes through them thirty times. By its own measure the compiler does so or not, whatever changes in other
    # functions.
    *(
        "--param=max-inline-insns-single=1000",
        "--param=inline-unit-growth=200",
        "--param=large-function-growth=1000",
    ),
    # Whatever CFLAGS say: where AVX code has left the upper half of a register in use, instructions for SHA-256
    # take forty times as long on some processors. What is faster with AVX asks for it itself.
    # (The platform is that of the wheel, which may be made on another: .ci/wheels.py.)
    *(["-mno-avx"] if sysconfig.get_platform() == "linux-x86_64" else []),
]


def folders(root: Path) -> list[Path]:
    """The folders of the modules."""
    return sorted({root.joinpath(*module.split(".")[:-1]) for module in MODULES})


def sources_digest(root: Path) -> str:
    """What the modules are made of, as one digest (`SOURCES` in each): those of older sources can be recognised by it.

    Its second half is of the Cython files alone, which the product itself looks at when it starts.
    """
    native = sorted(
        file for folder in folders(root) for end in ("pyx", "pxi") for file in folder.glob(f"_*.{end}")
    )
    shared = [Path(__file__).read_bytes(), constants(root).encode()]
    halves = (shared, [file.read_bytes() for file in native])
    return "".join(sha256(b"".join(half)).hexdigest()[:32] for half in halves)


def constants(root: Path) -> str:
    """Return `CONSTANTS` in Cython and C: an enumeration ``Way`` with ``TOTAL = 4`` becomes ``WAY_TOTAL = 4``, a tuple
    ``Record`` the places of its fields, ``RECORD_OFFSET = 0``, and their number, ``RECORD_FIELDS``."""
    found: dict[str, int] = {}
    for file, names in CONSTANTS.items():
        body = ast.parse((root / file).read_text("utf-8")).body
        found |= {name: value for name, value in _numbers(body).items() if name in names}
        for kind in (node for node in body if isinstance(node, ast.ClassDef) and node.name in names):
            places = [ast.unparse(node.target) for node in kind.body if isinstance(node, ast.AnnAssign)]
            members = _numbers(kind.body) or {name: at for at, name in enumerate([*places, "fields"])}
            found |= {f"{kind.name}_{name}".upper(): value for name, value in members.items()}
    numbers = ", ".join(f"{name} = {value}" for name, value in found.items())
    code = [
        '    """',
        f"    enum {{ {numbers} }};",
        '    """',
        "    enum:",
        *(f"        {name}" for name in found),
    ]
    return "\n".join(["cdef extern from *:", *code, ""])


def _numbers(body: list[ast.stmt]) -> dict[str, int]:
    """Return the whole numbers among these assignments, by name."""
    found = {}
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if type(node.value.value) is int:
                found[ast.unparse(target)] = node.value.value
    return found


def remove_compiled(root: Path) -> None:
    """Remove what was compiled here before, for this Python; others' modules are for their own builds to see to."""
    for suffix in EXTENSION_SUFFIXES:
        for file in (file for folder in folders(root) for file in folder.glob(f"_*{suffix}")):
            if "." not in file.name.removesuffix(suffix):
                file.unlink()


def plain_asked_for() -> bool:
    """Return whether the environment asks for the plain package; the Makefile asks here too."""
    return os.environ.get(NO_COMPILE, "") not in ("", "0", "false")


def can_compile() -> bool:
    """Return whether this machine has a C compiler and Python's headers."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    command = [*compiler, "-fsyntax-only", f"-I{sysconfig.get_path('include')}", "-x", "c", "-"]
    try:
        done = subprocess.run(  # noqa: S603 - the compiler that the build itself would call
            command, input=b"#include <Python.h>\n", capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def is_current(root: Path) -> bool:
    """Return whether a build would leave what is here: the modules of these sources, or none."""
    files = [
        root.joinpath(*name.split(".")).with_name(name.split(".")[-1] + EXTENSION_SUFFIXES[0])
        for name in MODULES
    ]
    found = [file.read_bytes() for file in files if file.exists()]
    if plain_asked_for() or not found:
        return not found and (plain_asked_for() or not can_compile())
    digest = sources_digest(root).encode()
    return len(found) == len(files) and all(digest in module for module in found)


class Metadata(MetadataHookInterface):
    """Fills in README, and the addresses that stand in pyproject.toml for now."""

    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        addresses = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["pinstream"][
            "addresses"
        ]
        repository, version = addresses["repository"], metadata["version"]
        metadata["urls"] = {
            "Documentation": addresses["site"],
            "Source": repository,
            "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        }
        readme = (root / "README.md").read_text("utf-8")
        for mark, form in (("!", "raw"), ("", "blob")):
            # Of links to files; those to headings and to other places stay. What is replaced is no such link any more.
            link = rf"({mark}\[[^\]]*\]\()(?![a-z]+:|#)"
            readme = re.sub(link, rf"\g<1>{repository}/{form}/v{version}/", readme)
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}


class Compile(BuildHookInterface[Any]):
    """hatchling's hook; `pyproject.toml` names this file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and make the wheel say for which Python and machine it is; exit if that is not possible."""
        if self.target_name != "wheel":
            return
        remove_compiled(Path(self.root))
        if plain_asked_for():
            return
        try:
            built = self._compile()
        except Exception as error:  # Cython, compiler or headers are missing, or the source is wrong
            remove_compiled(Path(self.root))  # some may have been compiled before the one that failed
            sys.exit(
                f"pinstream's fast path cannot be compiled: {error}\nInstall a C compiler and Python's headers, or"
                f" set {NO_COMPILE}=1 for the plain package, which works the same and is slower."
            )
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"] += [f"/{path.relative_to(self.root).as_posix()}" for path in built]

    def _compile(self) -> list[Path]:
        from Cython.Build import cythonize
        from setuptools import Distribution, Extension
        from setuptools.command.build_ext import build_ext

        # Relative, and always the same: the modules contain the paths of their sources, and a build in
        # another folder has to make the same bytes.
        scratch = Path("build", "native")
        with contextlib.chdir(self.root):
            shutil.rmtree(scratch, ignore_errors=True)
            for folder in folders(scratch):  # Cython makes each once in a process, wherever that is then
                folder.mkdir(parents=True)
            shared = f'SOURCES = "{sources_digest(Path())}"\n{constants(Path())}'
            (scratch / "constants.pxi").write_text(shared, "utf-8")
            extensions = [
                Extension(name, [f"{name.replace('.', '/')}.pyx"], extra_compile_args=OPTIMISE)
                for name in MODULES
            ]
            made = cythonize(
                extensions,
                build_dir=str(scratch),
                include_path=[".", str(scratch)],
                compiler_directives=DIRECTIVES,
                quiet=True,
            )
            command = build_ext(Distribution({"name": "pinstream", "ext_modules": made}))
            command.build_lib, command.build_temp, command.force = ".", str(scratch), True
            command.ensure_finalized()
            command.run()
            shutil.rmtree(scratch)
        return [Path(self.root, command.get_ext_filename(name)) for name in MODULES]


if __name__ == "__main__":
    answer = (
        is_current(Path(__file__).parent) if "--current" in sys.argv else plain_asked_for() or can_compile()
    )
    sys.exit(not answer)
