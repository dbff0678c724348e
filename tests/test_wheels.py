"""What `make wheels` (.ci/wheels.py) lets pass. That it builds and what it builds is tried by itself, in CI too."""

from __future__ import annotations

import importlib.util
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
GOOD = {"process": {"fast_path": "compiled"}, "ledger": {"open": 0}, "sandbox": {"accepted_events": 2_990}}


@pytest.fixture
def wheels() -> Any:
    """The script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("wheels", ROOT / ".ci" / "wheels.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    ("platforms", "fits"),
    [
        ("manylinux2014_x86_64.manylinux_2_17_x86_64", True),
        ("manylinux_2_28_aarch64", True),
        ("manylinux_2_31_x86_64", False),
        ("manylinux_3_1_x86_64", False),
        ("linux_x86_64", False),
    ],
)
def test_a_wheel_for_a_later_glibc_does_not_pass(wheels: Any, platforms: str, fits: bool) -> None:
    """The Kafka client's wheels need glibc 2.28, ours no later one. Nor passes one that auditwheel has not read."""
    assert wheels.fits(f"pinstream-1.2.3-cp311-cp311-{platforms}.whl") == fits


@pytest.mark.parametrize(
    "wrong",
    [
        {"process": {"fast_path": "python"}},
        {"ledger": {"open": 1}},
        {"sandbox": {"accepted_events": 12}},
    ],
)
def test_a_demo_that_is_not_compiled_or_not_complete_does_not_pass(
    wheels: Any, wrong: dict[str, Any]
) -> None:
    """The last line of the demo has to say that compiled modules delivered everything."""
    wheels.check(f"text\n{json.dumps(GOOD)}", Path("some.whl"))
    with pytest.raises(SystemExit, match=r"^some.whl: the demo ended with "):
        wheels.check(json.dumps({**GOOD, **wrong}), Path("some.whl"))


@pytest.mark.parametrize(
    ("other", "size", "said"), [(b"b", 10, "differ"), (b"a", 0, "has 1 bytes, more than 0")]
)
def test_builds_that_differ_or_are_too_large_do_not_pass(
    wheels: Any, other: bytes, size: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left in the folder of the wheels then."""
    made = iter((b"a", other))

    def build(source: Path, builder: Path, machine: str, folder: Path) -> Path:
        (folder / "some.whl").write_bytes(next(made))
        return folder / "some.whl"

    monkeypatch.setattr(wheels, "build", build)
    monkeypatch.setattr(wheels, "run", lambda *command, **changed: "")
    monkeypatch.setattr(wheels, "MAX_BYTES", size)
    with pytest.raises(SystemExit, match=rf"^some.whl:? .*{said}"):
        wheels.build_twice(Path("source.tar.gz"), sys.executable, "x86_64", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_index_on_this_machine_lists_the_wheel(wheels: Any, tmp_path: Path) -> None:
    """As an index has it: a page for the project, with a link to the file."""
    wheel = tmp_path / "pinstream-1.2.3-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    with wheels.index(wheel) as url:
        page = urllib.request.urlopen(f"{url}/pinstream/", timeout=30).read().decode()
        assert f'href="{wheel.name}"' in page
        assert urllib.request.urlopen(f"{url}/pinstream/{wheel.name}", timeout=30).read() == b"a wheel"


def test_what_is_promised_is_built(wheels: Any) -> None:
    """The Pythons that pyproject.toml names, and not musl, for which the Kafka client has no wheel."""
    classifiers = (ROOT / "pyproject.toml").read_text("utf-8")
    assert all(f'"Programming Language :: Python :: {version}"' in classifiers for version in wheels.PYTHONS)
    assert wheels.PYTHONS[0] == "3.11"
