"""docs/runbook.md is true: every command in it is run in the trouble that its section is for, and ends that trouble."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest

from consumer import commands
from consumer.engine.figures.statistics import Statistics
from consumer.settings import all_settings
from consumer.web.metrics import FiguresCollector
from tests.end_to_end.api import Api, Loop
from tests.runbook.page import Command, Hook, PageSection, read_page
from tests.runbook.worlds import WORLDS, World
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import Kafka
from tests.web.building import statistics

PAGE = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text("utf-8")
SECTIONS = read_page(PAGE)
COMMAND_SECONDS = 90.0
_LOGGED = re.compile(r"in the log\s+`(\w+)`")
_TIME = re.compile(r"\b20\d\d-\d\d-\d\dT[\d:.]+\d")


@pytest.fixture
def loop() -> Iterator[Loop]:
    """The thread in which the sandbox and the registry run."""
    one = Loop()
    yield one
    one.close()


@pytest.mark.slow("the runbook against the clock")
@pytest.mark.real_kafka
@pytest.mark.timeout(240)
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_the_section_ends_its_errors(
    section: PageSection, kafka: Kafka, loop: Loop, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """All its commands are run in order in a world with that trouble: each ends with 0 and prints what the page
    says; afterwards every event was accepted exactly once, nothing is left to read, and the service is ready."""
    assert section.title in WORLDS, (
        f"no world for the section {section.title}: write one (tests/runbook/worlds.py)"
    )

    def new_kafka() -> Kafka:
        broker: RealBroker = request.getfixturevalue("own_kafka")
        return Kafka(broker.bootstrap_servers, "real")

    with Api(loop) as api, WORLDS[section.title](kafka, api, loop, tmp_path, new_kafka) as world:
        world.prepare()
        assert _follow(section, world) == [step for step in section.steps if isinstance(step, Command)]
        for event in _LOGGED.findall(section.text):
            assert event in world.logged, f"{section.title}: the log never said {event}"
        world.check_well()
        api.check_payloads()


def _follow(section: PageSection, world: World) -> list[Command]:
    """Do what the section says; return the commands that were run."""
    shell = Shell(world)
    hooks, run = dict(world.hooks), []
    for step in section.steps:
        if isinstance(step, Hook):
            assert step.name in hooks, f"{section.title}: nobody knows how to do this: {step.name}"
            hooks.pop(step.name)()
        else:
            shell.run(step)
            run.append(step)
    assert not hooks, f"{section.title} never asks for: {', '.join(hooks)}"
    return run


class Shell:
    """The operator's shell: one bash for each command; what is exported is there in the next.

    Its environment is of when it was opened: settings that the service was given since are not in it.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._exported = world.folder / "exported"
        self._exported.write_text("")
        self._env = world.shell_env
        for tool in ("bash", "curl", "jq", "pinstream"):
            assert shutil.which(tool, path=self._env["PATH"]), (
                f"the runbook needs {tool}, which is not on this machine"
            )

    def run(self, command: Command) -> None:
        """Run a command to its end; it must succeed."""
        text = _rewritten(command.text, self._world.examples)
        state = shlex.quote(str(self._exported))
        script = f". {state}\n{text}\nexport -p >{state}\n"
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            env=self._env,
            cwd=self._world.desk,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"{text}\ndid not end within {COMMAND_SECONDS:g} s:\n{out[-2000:]}{err[-2000:]}")
        print(f"$ {text}\n{out}{err}")
        assert process.returncode == 0, (
            f"{text}\nended with {process.returncode}:\n{out[-2000:]}{err[-2000:]}"
        )
        assert "Traceback" not in err
        if command.says is not None:
            assert command.says in out.splitlines(), f"{text}\nsays, and not {command.says}:\n{out[-2000:]}"


def _rewritten(text: str, examples: Mapping[str, str]) -> str:
    """The command with real values for the page's examples; every word that looks like an example must be known."""
    for moment in _TIME.findall(text):
        assert moment in examples, f"{moment} is no time of the page's examples"
    for theirs, ours in examples.items():
        text = re.sub(rf"(?<![\w/-]){re.escape(theirs)}(?![\w-])", ours, text)
    return text


# The page itself.


def test_every_world_has_its_section() -> None:
    """A world whose heading was renamed would not be run."""
    assert [section.title for section in SECTIONS] == list(WORLDS)


def test_every_line_of_every_block_is_run() -> None:
    """The steps of the page are all the lines of its blocks, without comments and continuations."""
    lines = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    written = [line for block in lines for line in block.replace("\\\n", "").splitlines() if line.strip()]
    read = [step for section in SECTIONS for step in section.steps if isinstance(step, Command)]
    assert len(read) == len(written) > 40
    assert all(
        one.text.split() == line.partition("  # says: ")[0].split()
        for one, line in zip(read, written, strict=True)
    )


def test_what_it_names_exists() -> None:
    """Variables, metrics, and linked headings exist; log lines that it names are found in the log of its section."""
    assert len(_LOGGED.findall(PAGE)) >= 4
    variables = {one.name for one in all_settings()} | {
        f"{one.name}_FILE" for one in all_settings() if one.secret
    }
    for name in set(re.findall(r"\b(?:PINSTREAM|PINTEREST)_[A-Z_]+", PAGE)):
        assert name in variables, name
    families = {one.name for one in FiguresCollector(Statistics, lambda: [statistics()]).collect()}
    for name in set(re.findall(r"\bpinstream_[a-z_]+", PAGE)):
        assert name.removesuffix("_total") in families, name
    anchors = {
        re.sub(r"[^\w-]", "", one.lower().replace(" ", "-")) for one in re.findall(r"^#+ (.*)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors


def test_every_command_of_pinstream_parses() -> None:
    """Command, options and arguments are those that there are."""
    parsed = 0
    steps = [step for section in SECTIONS for step in section.steps if isinstance(step, Command)]
    for text in re.findall(r"\bpinstream ([^|>;&)\n]+)", "\n".join(step.text for step in steps)):
        line = re.sub(r"\$(FROM|TO)\b", "2026-11-23T18:00", text)
        name, *arguments = shlex.split(line)
        found: click.Command | None = commands.command(name)
        with click.Context(commands.main) as context:
            while isinstance(found, click.Group):
                name, *arguments = arguments
                found = found.get_command(context, name)
            assert found is not None, text
            found.make_context(name, arguments, parent=context)
        parsed += 1
    assert parsed > 30


@pytest.mark.parametrize(
    "page",
    [
        "```sh\npinstream run\n",
        "```bash\npinstream run\n```",
        "    pinstream run",
        "or `pinstream replay --topic orders --from beginning`",
        "<!-- tset: restart -->",
        "## A\n```sh\na\n```\n## A\n```sh\nb\n```",
    ],
)
def test_a_command_that_nobody_would_run_is_an_error(page: str) -> None:
    """Blocks without an end or of another kind, code between the lines, misspelt comments, repeated headings."""
    with pytest.raises(ValueError, match=r"block|code|command|comment|two sections"):
        read_page(page)


def test_reads_commands_and_hooks_in_their_order() -> None:
    """A command with continuations is one; its printed line is not part of it; a hook's comment stands between
    commands."""
    page = (
        "## A\n```sh\na \\\n  b\n\nc | d  # says: 1 2\n```\ntext\n<!-- test: do it -->\n```sh\ne # f\n```\n"
    )
    (section,) = read_page(page)
    assert section.title == "A"
    assert section.steps == [Command("a b"), Command("c | d", "1 2"), Hook("do it"), Command("e # f")]


def test_examples_are_whole_words() -> None:
    """The topic's name is replaced only as a whole word, and whatever looks like a time must be known."""
    known = {"orders": "t-1", "2026-11-23T18:00": "then"}
    text = "x --topic orders orders.dead-letters:0:17 --from 2026-11-23T18:00 /orders/ reorders orders-value"
    assert _rewritten(text, known) == (
        "x --topic t-1 t-1.dead-letters:0:17 --from then /orders/ reorders orders-value"
    )
    with pytest.raises(AssertionError, match="no time"):
        _rewritten("x --to 2026-11-25T00:00", known)
