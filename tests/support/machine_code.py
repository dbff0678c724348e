"""What a compiler made: whether SHA instructions can meet registers whose upper halves are in use.

Theory of operation. The SHA instructions have no form that goes with AVX: while AVX code has left something in the
upper half of a vector register, each of them takes forty times as long on some processors (Intel's, with AVX-512). So a
function that uses them has no AVX instruction, and one that uses whole AVX registers clears the upper halves
(``vzeroupper``) before it returns, and before it calls one that uses them. The disassembler comes with every compiler
for Linux, and the instructions are read without running them: so the answer is the same on every processor.
"""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

# For a processor with SHA and AVX-512, whichever one this machine has.
AVX_512 = [["-march=icelake-server"]] if platform.machine() == "x86_64" else []

_FUNCTION = re.compile(r"^[0-9a-f]+ <(?P<name>.+)>:$")
_INSTRUCTION = re.compile(r"^ *[0-9a-f]+:\t(?P<text>.+)$")
# Of a call or a jump to a function's begin.
_BEGIN = re.compile(r"<(?P<name>[^+>]+)>$")
# Only AVX's begin with v, but for two.
_AVX = re.compile(r"v(?!err|erw)")
_WHOLE = re.compile(r"%[yz]mm")
_CLEARS = ("vzeroupper", "vzeroall")


def functions(path: Path) -> dict[str, list[str]]:
    """Return the instructions of each function of an object, a library or a program."""
    done = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", path],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: dict[str, list[str]] = {}
    inside: list[str] = []
    for line in done.stdout.splitlines():
        if begun := _FUNCTION.match(line):
            inside = found.setdefault(begun["name"], [])
        elif instruction := _INSTRUCTION.match(line):
            inside.append(instruction["text"])
    return found


def hashing(found: dict[str, list[str]]) -> set[str]:
    """Return the functions that use the SHA instructions."""
    return {name for name, code in found.items() if any(one.startswith("sha256") for one in code)}


def dirty_hashing(found: dict[str, list[str]]) -> list[str]:
    """Return where SHA instructions may meet upper halves that are in use."""
    hashes = hashing(found)
    wrong = [f"{name} has both" for name in hashes if any(map(_AVX.match, found[name]))]
    for name, code in found.items():
        dirty = False
        for one in code:
            word = one.split()[0]
            reached = _BEGIN.search(one)
            leaves = word == "ret" or (reached is not None and reached["name"] in hashes)
            if word in _CLEARS:
                dirty = False
            elif _WHOLE.search(one):
                dirty = True
            elif dirty and leaves:
                wrong.append(f"{name} leaves upper halves in use: {one}")
    return wrong
