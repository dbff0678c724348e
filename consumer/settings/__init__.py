"""The settings: the only reader of the environment.

Every setting is defined once, in `consumer.settings.fields`. `load` turns an environment into `Settings`;
`all_settings` and `markdown_table` give the same definitions to ``--help`` and the docs, so neither drifts.
A value passes these steps::

    environ -> refuse unknown names -> read X_FILE -> validate each group -> refuse missing settings
            -> refuse contradictions -> effective values (test mode) -> Settings, with warnings

``KAFKA_…`` and ``SCHEMA_REGISTRY_…`` beyond the named ones pass through to the clients' own properties
(`consumer.settings.passthrough`). A blank value counts as not set, except where empty has a meaning
(``PINSTREAM_HTTP_ADDRESS``). Every mistake becomes a `SettingsError` of one line that names the variable, the mistake
and what is allowed. It never shows a secret or a value that may contain one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from consumer.errors import SettingsError, nearest
from consumer.settings.checks import REVOKE_MARGIN, contradictions, effective, missing_paths, token_trouble
from consumer.settings.fields import (
    REGISTRY,
    REQUIRED,
    KafkaSettings,
    PinstreamSettings,
    PinterestSettings,
    RegistrySettings,
    SettingDoc,
    Settings,
    SettingsGroup,
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
    "all_settings",
    "kafka_variable",
    "load",
    "markdown_table",
    "packaged_schemas_dir",
    "refusal",
]

DEFAULT_NEEDS = ("kafka", "topics", "account", "token")
"""Needs of ``run`` and ``check``: brokers, topics to read, an account and its token."""

_EMPTY_HAS_A_MEANING = frozenset({"PINSTREAM_HTTP_ADDRESS"})
_CLOSED_PREFIXES = ("PINSTREAM_", "PINTEREST_")
"""An unknown name with one of these prefixes is a mistake. The other prefixes are shared with other programs."""
_BUILD_NAMES = ("PINSTREAM_NO_COMPILE",)
"""Read by the build (hatch_build.py), not by a command. Accepted, so that an environment may keep it."""
_OUR_PREFIXES = (*_CLOSED_PREFIXES, "KAFKA_", "SCHEMA_REGISTRY_")
_SHOWN_CHARACTERS = 60

_AnyGroup = TypeVar("_AnyGroup", bound=SettingsGroup)


def load(environ: Mapping[str, str], *, needs: Collection[str] = DEFAULT_NEEDS) -> Settings:
    """Read and validate the settings of `environ`. Raises `SettingsError`.

    `needs` names what the command requires: ``kafka`` (brokers), ``topics`` (``KAFKA_TOPICS``), ``account``
    (an ad account), ``token`` (its access token). Other settings may be missing, but an invalid value is refused even
    if the command does not need it.
    """
    _refuse_unreadable(environ)
    ignored = service_link_names(environ)
    _refuse_unknown(environ, ignored)
    raw = _raw_values(environ)
    foreign = {name for name in environ if FOREIGN_KAFKA_NAME.fullmatch(name)}
    raw["KAFKA_…"] = kafka_properties(environ, ignored | foreign | REGISTRY.keys())
    raw["SCHEMA_REGISTRY_…"] = registry_properties(environ, ignored | REGISTRY.keys())
    # Defaults that depend on the environment or on another setting.
    raw.setdefault("PINSTREAM_SCHEMAS_DIR", str(packaged_schemas_dir()))
    raw.setdefault("PINSTREAM_STATE_DIR", _default_state_dir(environ))
    raw.setdefault("PINSTREAM_KEY_STORE", f"lmdb:{raw['PINSTREAM_STATE_DIR']}/keys")
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


def all_settings() -> list[SettingDoc]:
    """Return every setting, in the order of the table."""
    return list(REGISTRY.values())


def markdown_table() -> str:
    """Return the settings table of the docs as Markdown."""
    lines = ["| variable | default | unit | meaning |", "| --- | --- | --- | --- |"]
    for doc in all_settings():
        in_words = " " in doc.default or doc.default in (REQUIRED, "none")
        default = doc.default if in_words else f"`{doc.default}`"
        lines.append(f"| `{doc.name}` | {default} | {doc.unit} | {doc.reason} |")
    return "\n".join(lines) + "\n"


def packaged_schemas_dir() -> Path:
    """Return the folder of the packaged schemas: inside the installed package, or beside it in the source tree."""
    package = Path(__file__).parent.parent
    inside = package / "schemas"
    return inside if inside.is_dir() else package.parent / "schemas"


def _secret_file_names() -> dict[str, str]:
    """``X_FILE`` -> X for the secrets whose file is read here. (A token's file is a setting: it is read repeatedly.)"""
    return {
        f"{name}_FILE": name
        for name, doc in REGISTRY.items()
        if doc.secret and f"{name}_FILE" not in REGISTRY
    }


def _refuse_unreadable(environ: Mapping[str, str]) -> None:
    """Refuse text that is not UTF-8: Python keeps such bytes as lone surrogates, which no client accepts."""
    for name in sorted(environ):
        text = name + environ[name]
        if (
            name.startswith(_OUR_PREFIXES)
            and not text.isascii()
            and any("\ud800" <= char <= "\udfff" for char in text)
        ):
            raise SettingsError(f"{ascii(name)[1:-1]} is not UTF-8 text; correct it")


def _refuse_unknown(environ: Mapping[str, str], ignored: Collection[str]) -> None:
    known = [
        name
        for name in (*REGISTRY, *_secret_file_names(), *_BUILD_NAMES)
        if name.startswith(_CLOSED_PREFIXES)
    ]
    for name in sorted(environ):
        if name.startswith(_CLOSED_PREFIXES) and name not in known and name not in ignored:
            raise SettingsError(
                f"{name} is not a setting; did you mean {nearest(name, known)}? Correct or remove it"
            )


def _raw_values(environ: Mapping[str, str]) -> dict[str, Any]:
    """Variable -> text, for the variables that are set."""
    raw: dict[str, Any] = {}
    for name in REGISTRY:
        if not name.isascii():
            continue  # KAFKA_… is a placeholder, and an ASCII locale cannot look up its name
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


def _default_state_dir(environ: Mapping[str, str]) -> str:
    """Follow the XDG base directory specification, which says to ignore a relative ``XDG_STATE_HOME``."""
    base = environ.get("XDG_STATE_HOME", "")
    if Path(base).is_absolute():
        return f"{base}/pinstream"
    return f"{environ.get('HOME') or '~'}/.local/state/pinstream"


def _validated(group: type[_AnyGroup], raw: Mapping[str, Any]) -> _AnyGroup:
    """Build a group from its variables; the first invalid one becomes a `SettingsError`."""
    names = [field.alias or "" for field in group.model_fields.values()]
    try:
        return group.model_validate({name: raw[name] for name in names if name in raw})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        what = str(first.get("ctx", {}).get("error") or first["msg"])
        raise SettingsError(f"{name}{_shown(name, raw.get(name))}: {what}") from None


def _shown(name: str, value: object) -> str:
    """Return the value for a message; empty if it is, or may contain, a secret."""
    text = str(value)
    if value is None or REGISTRY[name].secret or "@" in text:
        return ""
    return f"={text[:_SHOWN_CHARACTERS]!r}" + ("…" if len(text) > _SHOWN_CHARACTERS else "")


def _refuse_missing(raw: Mapping[str, Any], needs: Collection[str]) -> None:
    """Name all missing settings in one line, so that a new user sees them at once."""
    missing = [doc for doc in all_settings() if doc.needed_for in needs and doc.name not in raw]
    names = [doc.name for doc in missing]
    if "token" in needs and not raw.keys() & {"PINTEREST_ACCESS_TOKEN", "PINTEREST_ACCESS_TOKEN_FILE"}:
        names.append("PINTEREST_ACCESS_TOKEN (or PINTEREST_ACCESS_TOKEN_FILE)")
    if not missing:
        return  # `token_trouble` reports a token that is the only thing missing
    if len(names) == 1:
        reason = missing[0].reason
        raise SettingsError(f"{names[0]} is not set; it is required: {reason[0].lower()}{reason[1:]}")
    listed = ", ".join(names[:-1])
    raise SettingsError(
        f"{listed} and {names[-1]} are not set; they are required: see pinstream run --help for each"
    )
