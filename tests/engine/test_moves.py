"""One file moves records: what `consumer.engine.steps` alone may do, read off the source of the engine.

The parts are containers: they hand back what they have, move no record, and write no field of another module's object
beyond a few. The number of these writes is a limit that only goes down.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from consumer.engine.records.stages import MOVES, SETTLED_AS, RecordStage
from consumer.engine.steps import Steps

ENGINE = Path(__file__).parents[2] / "consumer" / "engine"
STEPS = "steps"
MOVERS = ("move_all", "settle", "free", "free_leaders", "transfer", "move")
"""What moves a record, or gives its claim away."""
BELOW = {"records.runs": {"move"}, "records.ledger": {"move"}}
"""Where moves are made: `move_all` and `Ledger.settle` call `Block.move`."""
NOT_BY_STEPS = {RecordStage.PASSED, RecordStage.REWOUND}
"""A block makes a row PASSED, and the ledger REWOUND: other rows, or another assignment, settle these records."""
FILES = 12
"""Files in a folder of the engine at most."""
WRITES = 14
"""Writes of a field of another module's object, in the whole engine. Lower it where there are fewer."""
NAMES = {
    "state": "AssignmentState",
    "assignment": "AssignmentState",
    "queue": "AccountQueue",
    "wanted": "_Wanted",
}
"""Variables that are not named like their class."""
COUNTED = {"Counters", "Samples", "Context"}
"""Whoever counts something counts it here; and all parts share the context."""


class Of(NamedTuple):
    """A class of the engine: its module, its fields, and the methods that only set fields."""

    module: str
    name: str
    fields: frozenset[str]
    setters: frozenset[str]
    methods: frozenset[str]


@cache
def modules() -> dict[str, ast.Module]:
    """The modules of the engine, by their path."""
    paths = sorted(ENGINE.rglob("*.py"))
    return {
        ".".join(path.relative_to(ENGINE).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
        for path in paths
    }


def targets(node: ast.AST) -> Iterator[ast.Attribute]:
    """The attributes that a statement assigns or deletes, or of which it assigns an item."""
    if isinstance(node, ast.Assign | ast.Delete):
        found: list[ast.expr] = [*node.targets]
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        found = [node.target]
    else:
        return
    while found:
        one = found.pop()
        if isinstance(one, ast.Tuple | ast.List):
            found += one.elts
        elif isinstance(one, ast.Starred | ast.Subscript):
            found.append(one.value)
        elif isinstance(one, ast.Attribute):
            yield one


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def only_sets(method: ast.FunctionDef) -> bool:
    """Whether a method does nothing but set fields to arguments or constants."""
    body = [
        one for one in method.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
    ]
    return bool(body) and all(
        isinstance(one, ast.Assign | ast.AugAssign)
        and [*targets(one)]
        and "[" not in ast.unparse(one).partition("=")[0]  # an item is added to what a part holds
        and not any(isinstance(part, ast.Attribute | ast.Call | ast.IfExp) for part in ast.walk(one.value))
        for one in body
    )


@cache
def classes() -> tuple[Of, ...]:
    """All classes of the engine whose objects can be written."""
    found = []
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef) or any(
                ast.unparse(base) == "NamedTuple" for base in node.bases
            ):
                continue
            if any(
                mark in ast.unparse(one)
                for one in node.decorator_list
                for mark in ("frozen=True", "snapshot")
            ):
                continue
            methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
            fields = {
                one.target.id
                for one in node.body
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
            }
            fields |= {
                one.attr
                for method in methods
                for each in ast.walk(method)
                for one in targets(each)
                if is_self(one.value)
            }
            setters = {one.name for one in methods if one.name != "__init__" and only_sets(one)}
            names = {one.name for one in methods}
            found.append(Of(module, node.name, frozenset(fields), frozenset(setters), frozenset(names)))
    return tuple(found)


def owner(base: ast.expr, among: list[Of], module: str) -> Of | None:
    """The class of the object that `base` stands for, of `among`: by its name, else of this module, if one is."""
    name = base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
    name = name.lstrip("_")
    by_name = [one for one in among if one.name.lower() == NAMES.get(name, name).lower()]
    here = [one for one in among if one.module == module]
    return next(iter([*by_name, *here, *among]), None)


def writes() -> list[str]:
    """Where a module of the engine writes a field of another module's object, or calls a method that only does that."""
    found = []
    for module, tree in modules().items():
        for node in ast.walk(tree):
            for one in targets(node):
                of = owner(one.value, [each for each in classes() if one.attr in each.fields], module)
                if (
                    not is_self(one.value)
                    and of is not None
                    and of.module != module
                    and of.name not in COUNTED
                ):
                    found.append(f"{module}:{one.lineno} {ast.unparse(one)} ({of.name})")
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and not is_self(node.func.value)
            ):
                name = node.func.attr
                of = owner(node.func.value, [each for each in classes() if name in each.methods], module)
                if of is not None and of.module != module and name in of.setters:
                    found.append(f"{module}:{node.lineno} {ast.unparse(node.func)}() ({of.name})")
    return sorted(found)


@pytest.mark.parametrize("module", [one for one in modules() if one != STEPS])
def test_no_other_module_moves_a_record(module: str) -> None:
    """Outside `steps` nothing moves, settles or frees a record, or gives a claim away."""
    called = {
        node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        for node in ast.walk(modules()[module])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
    }
    assert called & {*MOVERS} == BELOW.get(module, set())


def test_only_a_block_writes_the_stages_of_its_rows() -> None:
    """No module but `records.block` writes the column of stages."""
    found = {
        module
        for module, tree in modules().items()
        for node in ast.walk(tree)
        for one in targets(node)
        if one.attr == "stages"
    }
    assert found == {"records.block"}


def test_the_table_of_moves_names_the_steps() -> None:
    """`MOVES` names, for each stage, exactly the methods of `Steps` that move a record there."""
    [steps] = [
        node for node in modules()[STEPS].body if isinstance(node, ast.ClassDef) and node.name == "Steps"
    ]
    settled = {one.name: stage for one, stage in SETTLED_AS.items()}
    found: dict[RecordStage, set[str]] = {}
    for method in (one for one in steps.body if isinstance(one, ast.FunctionDef)):
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "Disposition":
                    found.setdefault(settled[node.attr], set()).add(method.name)
                elif node.value.id == "RecordStage":
                    found.setdefault(RecordStage[node.attr], set()).add(method.name)
    assert found.pop(RecordStage.READ) == {"enter"}
    assert found == {
        stage: set(move.by.split(", ")) for stage, move in MOVES.items() if stage not in NOT_BY_STEPS
    }


def test_no_part_holds_the_steps_or_a_callback() -> None:
    """No class but the pipeline refers to `Steps`, and none is given a function that does something for it."""

    def is_one(node: ast.AST) -> bool:
        annotation = node.annotation if isinstance(node, ast.arg | ast.AnnAssign) else None
        text = "" if annotation is None else ast.unparse(annotation)
        calls_back = "Callable" in text and "None]" in text
        return calls_back or (isinstance(node, ast.Name) and node.id == Steps.__name__)

    holders = {
        (module, node.name)
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(is_one(one) for one in ast.walk(node))
    }
    assert holders == {("pipeline", "Pipeline")}


def test_no_folder_has_more_than_twelve_files() -> None:
    """The folders of the engine, in the order of a record's way, can each be read in one go."""
    folders = [path.parent for path in ENGINE.rglob("*.py*") if path.suffix in (".py", ".pyx")]
    assert max(folders.count(one) for one in folders) <= FILES


def test_few_fields_are_written_by_other_modules() -> None:
    """Fields are written where they are defined. The limit is the number of exceptions: it only goes down."""
    found = writes()
    assert len(found) == WRITES, "\n".join(found)
