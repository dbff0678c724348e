"""The settings: the only reader of the environment.

Every setting is defined once, in `consumer.settings.fields`. `load` turns an environment into `Settings`;
`describe` and `markdown_table` print the same definitions for ``--help`` and docs/settings.md, so neither drifts.
The way of a value::

    environ -> unknown names refused -> X_FILE read -> groups validated -> required ones there?
            -> contradictions refused -> effective values (test mode) -> Settings, with warnings

``KAFKA_…`` and ``SCHEMA_REGISTRY_…`` beyond the named ones pass through to the clients' own properties
(`consumer.settings.passthrough`). A blank value counts as not set, except where empty has a meaning
(``PINSTREAM_HTTP_ADDRESS``). Whatever is wrong becomes a `SettingsError` of one line: the variable, what was
wrong, what is allowed; never a secret, never a value that may hold one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from consumer.errors import SettingsError
from consumer.settings.checks import REVOKE_MARGIN, contradictions, effective, missing_paths, token_trouble
from consumer.settings.fields import (
    REGISTRY,
    REQUIRED,
    Group,
    KafkaSettings,
    PinstreamSettings,
    PinterestSettings,
    RegistrySettings,
    SettingDoc,
    Settings,
)
from consumer.settings.passthrough import (
    FOREIGN_KAFKA_NAME,
    REFUSED_PROPERTIES,
    kafka_properties,
    kafka_variable,
    read_secret_file,
    refusal,
    registry_properties,
    service_link_names,
)
from consumer.settings.values import HttpAddress

__all__ = [
    "DEFAULT_NEEDS",
    "REFUSED_PROPERTIES",
    "REVOKE_MARGIN",
    "HttpAddress",
    "KafkaSettings",
    "PinstreamSettings",
    "PinterestSettings",
    "RegistrySettings",
    "SettingDoc",
    "Settings",
    "describe",
    "kafka_variable",
    "load",
    "markdown_table",
    "packaged_schemas_dir",
    "refusal",
]

DEFAULT_NEEDS = ("kafka", "topics", "account", "token")
"""What ``run`` and ``check`` need: brokers, topics to read, an account and its token."""

_EMPTY_HAS_A_MEANING = frozenset({"PINSTREAM_HTTP_ADDRESS"})
_CLOSED_PREFIXES = ("PINSTREAM_", "PINTEREST_")
"""A name that starts so and is not ours is a slip; other prefixes have other owners."""
_BUILD_NAMES = ("PINSTREAM_NO_COMPILE",)
"""Read by the build (hatch_build.py), not by a command: known, so that an environment may keep it."""
_OUR_PREFIXES = (*_CLOSED_PREFIXES, "KAFKA_", "SCHEMA_REGISTRY_")
_SHOWN_CHARACTERS = 60

_AnyGroup = TypeVar("_AnyGroup", bound=Group)


def load(environ: Mapping[str, str], *, needs: Collection[str] = DEFAULT_NEEDS) -> Settings:
    """The settings of this environment.

    `needs` names what the command cannot do without: ``kafka`` (brokers), ``topics`` (``KAFKA_TOPICS``), ``account``
    (an ad account), ``token`` (its access token). What is not needed may be absent, but a value that is there and
    cannot be is refused all the same. Raises `SettingsError`.
    """
    _refuse_unreadable(environ)
    passed_over = service_link_names(environ)
    _refuse_unknown(environ, passed_over)
    raw = _raw_values(environ)
    foreign = {name for name in environ if FOREIGN_KAFKA_NAME.fullmatch(name)}
    raw["KAFKA_…"] = kafka_properties(environ, passed_over | foreign | REGISTRY.keys())
    raw["SCHEMA_REGISTRY_…"] = registry_properties(environ, passed_over | REGISTRY.keys())
    _work_out_defaults(raw, environ)
    settings = Settings(
        kafka=_validated(KafkaSettings, raw),
        registry=_validated(RegistrySettings, raw),
        pinterest=_validated(PinterestSettings, raw),
        pinstream=_validated(PinstreamSettings, raw),
    )
    _refuse_missing(raw, needs)
    for trouble in chain(missing_paths(settings), contradictions(settings), token_trouble(settings, needs)):
        raise SettingsError(trouble)
    return effective(settings)


def describe() -> list[SettingDoc]:
    """Every setting, in the order of the table."""
    return list(REGISTRY.values())


def markdown_table() -> str:
    """The settings table of docs/settings.md."""
    lines = ["| variable | default | unit | what for, and why |", "| --- | --- | --- | --- |"]
    for doc in describe():
        in_words = " " in doc.default or doc.default in (REQUIRED, "none")
        default = doc.default if in_words else f"`{doc.default}`"
        lines.append(f"| `{doc.name}` | {default} | {doc.unit} | {doc.reason} |")
    return "\n".join(lines) + "\n"


def packaged_schemas_dir() -> Path:
    """The schemas that come with pinstream: inside the installed package, or beside it in the source tree."""
    package = Path(__file__).parent.parent
    inside = package / "schemas"
    return inside if inside.is_dir() else package.parent / "schemas"


def _secret_file_names() -> dict[str, str]:
    """``X_FILE`` -> X for the secrets whose file is read here. (The token's is a setting: it is read again.)"""
    return {
        f"{name}_FILE": name
        for name, doc in REGISTRY.items()
        if doc.secret and f"{name}_FILE" not in REGISTRY
    }


def _refuse_unreadable(environ: Mapping[str, str]) -> None:
    """Python keeps bytes that are not UTF-8 as lone surrogates, which no client takes."""
    for name in sorted(environ):
        text = name + environ[name]
        if (
            name.startswith(_OUR_PREFIXES)
            and not text.isascii()
            and any("\ud800" <= char <= "\udfff" for char in text)
        ):
            raise SettingsError(f"{ascii(name)[1:-1]} is not UTF-8 text; correct it")


def _refuse_unknown(environ: Mapping[str, str], passed_over: Collection[str]) -> None:
    known = [
        name
        for name in (*REGISTRY, *_secret_file_names(), *_BUILD_NAMES)
        if name.startswith(_CLOSED_PREFIXES)
    ]
    for name in sorted(environ):
        if name.startswith(_CLOSED_PREFIXES) and name not in known and name not in passed_over:
            nearest = get_close_matches(name, known, n=1, cutoff=0)[0]
            raise SettingsError(f"{name} is not a setting; the nearest is {nearest}; correct or remove it")


def _raw_values(environ: Mapping[str, str]) -> dict[str, Any]:
    """Variable -> text, for those that are set."""
    raw: dict[str, Any] = {}
    for name in REGISTRY:
        if not name.isascii():
            continue  # KAFKA_… stands for many; a locale without the dots could not even ask for it
        text = environ.get(name, "").strip()
        if text or (name in environ and name in _EMPTY_HAS_A_MEANING):
            raw[name] = text
    for file_name, name in _secret_file_names().items():
        path = environ.get(file_name, "").strip()
        if path and name in raw:
            raise SettingsError(f"{name} and {file_name} are both set; keep one of them")
        if path:
            raw[name] = read_secret_file(file_name, Path(path)).strip()
    return raw


def _work_out_defaults(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    """The defaults that depend on the environment or on another setting."""
    raw.setdefault("PINSTREAM_SCHEMAS_DIR", str(packaged_schemas_dir()))
    raw.setdefault("PINSTREAM_STATE_DIR", _default_state_dir(environ))
    raw.setdefault("PINSTREAM_KEY_STORE", f"lmdb:{raw['PINSTREAM_STATE_DIR']}/keys")


def _default_state_dir(environ: Mapping[str, str]) -> str:
    """By the XDG base directory specification, which says to ignore a relative ``XDG_STATE_HOME``."""
    base = environ.get("XDG_STATE_HOME", "")
    if Path(base).is_absolute():
        return f"{base}/pinstream"
    return f"{environ.get('HOME') or '~'}/.local/state/pinstream"


def _validated(group: type[_AnyGroup], raw: Mapping[str, Any]) -> _AnyGroup:
    """The group made of its variables, the first thing wrong with them as a `SettingsError`."""
    names = [field.alias or "" for field in group.model_fields.values()]
    try:
        return group.model_validate({name: raw[name] for name in names if name in raw})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        what = str(first.get("ctx", {}).get("error") or first["msg"])
        raise SettingsError(f"{name}{_shown(name, raw.get(name))}: {what}") from None


def _shown(name: str, value: object) -> str:
    """The value for a message; nothing where it is, or may hold, a secret."""
    text = str(value)
    if value is None or REGISTRY[name].secret or "@" in text:
        return ""
    return f"={text[:_SHOWN_CHARACTERS]!r}" + ("…" if len(text) > _SHOWN_CHARACTERS else "")


def _refuse_missing(raw: Mapping[str, Any], needs: Collection[str]) -> None:
    """All of them in one line, so that who begins with nothing is told once."""
    missing = [doc for doc in describe() if doc.needed_for in needs and doc.name not in raw]
    names = [doc.name for doc in missing]
    if "token" in needs and not raw.keys() & {"PINTEREST_ACCESS_TOKEN", "PINTEREST_ACCESS_TOKEN_FILE"}:
        names.append("PINTEREST_ACCESS_TOKEN (or PINTEREST_ACCESS_TOKEN_FILE)")
    if not missing:
        return  # a token that is missing alone is told of with what else may be wrong with it
    if len(names) == 1:
        raise SettingsError(f"{names[0]} is not set; it is required: {missing[0].reason}")
    listed = ", ".join(names[:-1])
    raise SettingsError(
        f"{listed} and {names[-1]} are not set; they are required: pinstream run --help says what each is"
    )
