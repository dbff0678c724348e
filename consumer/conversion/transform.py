"""``PINSTREAM_TRANSFORM``: loads and calls the user's function.

Theory of operation. The function stands between decoding and converting. It gets a record in plain Python, with times
as `datetime` objects, and returns it changed, or None (docs/transform.md has the table of types). Its result is fitted
into the schema again: the converter gets the same types as without a function, and an error shows where it was made.
`Transformer.apply` never raises because of what the function does: an exception is the record's verdict, and so is a
result that is no record.

Verdicts name types, fields of the schema, and lines of the user's code. They never show a value of the record, nor the
text of an exception, which may quote one.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import FunctionType, TracebackType
from typing import Any, Final, TypeAlias

from consumer.avro.fitting import Misfit, TooMuch
from consumer.avro.paths import ORIGIN
from consumer.avro.schema import label, parse, printable
from consumer.avro.shape import MAX_CHARACTERS, MAX_VALUES, Shape
from consumer.engine.model import (
    TRANSFORM_FAILED,
    TRANSFORM_MISFIT,
    CommerceEvent,
    Filtered,
    Rejection,
    SectionEvent,
    Stage,
    section_of,
)
from consumer.errors import SettingsError, nearest

TransformFunction: TypeAlias = (
    Callable[[dict[str, Any]], dict[str, Any] | None]
    | Callable[[dict[str, Any], str], dict[str, Any] | None]
    | Callable[[dict[str, Any], str, dict[str, Any]], dict[str, Any] | None]
)
"""The function that ``PINSTREAM_TRANSFORM`` names: from a record to the record that is sent; None filters it.

A function that needs two arguments also gets the full name of the record's type; one that needs three, what the record
has in Kafka beside its value.
"""

FILTERED: Final = Filtered("transform")
# What a record of a file may lack of what records have in Kafka.
_NOTHING: Final[dict[str, Any]] = {
    **dict.fromkeys(("key", "timestamp", "topic", "partition", "offset")),
    "header": {},
}

_SETTING: Final = "PINSTREAM_TRANSFORM"
_LONGEST_NAME: Final = 100


# -- at start


def load_transform(name: str) -> TransformFunction:
    """Import the function that ``package.module:function`` names. Raises `SettingsError`."""
    module_name, _, function_name = name.partition(":")
    where = f"{_SETTING}={name!r}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise SettingsError(
                f"{where}: there is no module {missing!r} in the folders where Python looks; add the folder that "
                f"contains it to PYTHONPATH, or correct the name"
            ) from None
        raise SettingsError(f"{where}: {module_name} imports {missing!r}, which is not installed") from error
    # Any error of the module while it is imported, including `sys.exit`. Its text may hold anything.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        at = _place(error.__traceback__, module_name)
        raise SettingsError(
            f"{where}: {module_name} cannot be imported: {_name_of(error)}{at}; correct the module"
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        functions = [one for one, value in vars(module).items() if isinstance(value, FunctionType)]
        near = nearest(function_name, functions)
        hint = f"; did you mean {near}?" if near else "; correct the name"
        raise SettingsError(f"{where}: {module_name} has no {function_name!r}{hint}")
    if (problem := _unfit(function)) is not None:
        raise SettingsError(f"{where}: {problem}")
    transform: TransformFunction = function
    return transform


def _unfit(function: object) -> str | None:
    """Return why this cannot be the function; None: it can."""
    wanted = "name a function that takes a record and returns it, or None"
    if not callable(function) or isinstance(function, type):
        return f"it is {'a class' if isinstance(function, type) else 'not a function'}; {wanted}"
    # For a callable object, its `__call__` counts.
    for called in (function, getattr(function, "__call__", None)):  # noqa: B004
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            return "it is an async function; define it with def, and let it return the record"
        if inspect.isgeneratorfunction(called):
            return "it is a generator; one record comes in, and one goes out, or none: use return, not yield"
    if not any(_takes(function, count) for count in (1, 2, 3)):
        return (
            "it cannot be called with one argument, the record; define it as def function(record), as "
            "def function(record, record_type), or as def function(record, record_type, origin)"
        )
    return None


def _takes(function: Callable[..., object], arguments: int) -> bool:
    """Return whether the function can be called with this number of arguments."""
    try:
        inspect.signature(function).bind(*range(arguments))
    except ValueError:  # some C functions have no signature: they are called with the record alone
        return arguments == 1
    except TypeError:
        return False
    return True


# -- for each record


class Transformer:
    """The function for records of one schema (JSON), or of several: one for each section of the mapping, in its order.

    `name` is the text of the setting.
    """

    def __init__(self, function: TransformFunction, name: str, *schemas: dict[str, Any]) -> None:
        self.name = name
        self._function: Callable[..., object] = function
        self._module = name.partition(":")[0]
        nodes = [parse(schema) for schema in schemas]
        # A second parameter with a default is for the function's own use.
        self._more: list[tuple[Any, ...]] = [() if _takes(function, 1) else (label(node),) for node in nodes]
        # Whether the function takes what a record has in Kafka.
        self.takes_origin = not (_takes(function, 1) or _takes(function, 2))
        self._shapes = [Shape(node) for node in nodes]

    def apply(self, event: CommerceEvent) -> CommerceEvent | Filtered | Rejection:
        """Return what the function makes of a decoded record. Raises only `KeyboardInterrupt`."""
        at, origin = section_of(event) - 1, event.pop(ORIGIN, None)
        more = self._more[at]
        if self.takes_origin:
            more = (*more, {**_NOTHING, **(origin or {})})
        try:
            returned = self._function(self._shapes[at].give(event), *more)
        except KeyboardInterrupt:
            raise  # Ctrl-C in `explain`; in a thread it can only be the function's own
        # SystemExit, too: a function must not end the process that reads other people's records.
        except BaseException as error:
            return self.failed(error)
        taken = _fitted(returned, self._shapes[at])
        if isinstance(taken, dict) and origin is not None:
            taken[ORIGIN] = origin
        # The function's result is a plain dict, without the section that the converter needs.
        return SectionEvent.of(at + 1, taken) if isinstance(taken, dict) else taken

    def failed(self, error: BaseException) -> Rejection:
        """Return the verdict on a record for which the function raised `error`."""
        at = _place(error.__traceback__, self._module)
        return Rejection(
            Stage.CONVERT, TRANSFORM_FAILED, f"{_SETTING} {self.name} raised {_name_of(error)}{at}"
        )


def _fitted(returned: object, shape: Shape) -> CommerceEvent | Filtered | Rejection:
    """Return what the function returned as a record of the schema."""
    if returned is None:
        return FILTERED
    if not isinstance(returned, dict):
        close = getattr(returned, "close", None)
        if inspect.iscoroutine(returned) and close is not None:
            close()  # or Python writes a warning for each
        kind = printable(type(returned).__name__, _LONGEST_NAME)
        article = "an" if kind[:1].lower() in "aeiou" else "a"
        return _misfit(f"returned {article} {kind}, neither a dict nor None")
    try:
        taken: CommerceEvent = shape.take(returned)
    except Misfit as misfit:
        return _misfit(f"returned what does not fit the schema: {misfit.described('the record')}")
    except TooMuch:
        return _misfit(f"returned more than {MAX_VALUES:,} values or {MAX_CHARACTERS >> 20} MiB of text")
    except RecursionError:
        return _misfit("returned a record that contains itself, or is nested too deeply")
    except Exception as error:  # the result may be an object with any behaviour
        return _misfit(f"returned values that cannot be read ({_name_of(error)})")
    return taken


def _misfit(what: str) -> Rejection:
    return Rejection(Stage.CONVERT, TRANSFORM_MISFIT, printable(f"{_SETTING} {what}", 500))


def _name_of(error: BaseException) -> str:
    name = type(error).__name__
    # A class that is made while a record is read may have a value of the record as its name.
    return printable(name, _LONGEST_NAME) if name.isidentifier() else "an exception"


def _place(traceback: TracebackType | None, module: str) -> str:
    """Return the last place of an error in the user's module, as text; empty if it has none there."""
    package, found = module.partition(".")[0], ""
    while traceback is not None:
        name = traceback.tb_frame.f_globals.get("__name__")
        if isinstance(name, str) and (name == package or name.startswith(f"{package}.")):
            found = f" at {printable(name, _LONGEST_NAME)}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found
