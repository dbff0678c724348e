"""The settings: the only reader of the environment.

Every setting is defined once, in `consumer.settings.fields`. `load` turns an environment into `Settings`;
`all_settings` gives the same definitions to ``--help`` and to the test of the docs, so neither drifts.
A value passes these steps::

    environ -> refuse unknown names -> read X_FILE -> validate each group -> refuse missing settings
            -> refuse contradictions -> effective values (test mode) -> Settings, with warnings

``KAFKA_…`` and ``SCHEMA_REGISTRY_…`` beyond the named ones pass through to the clients' own properties
(`consumer.settings.passthrough`). A blank value counts as not set, except where empty has a meaning
(``PINSTREAM_HTTP_ADDRESS``). Every mistake becomes a `SettingsError` of one line that names the variable, the mistake
and what is allowed. It never shows a secret or a value that may contain one.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from consumer.errors import SettingsError, nearest
from consumer.settings.checks import REVOKE_MARGIN, contradictions, effective, missing_paths, token_trouble
from consumer.settings.fields import (
    DEFAULT_SCHEMA,
    REGISTRY,
    KafkaSettings,
    NetworkSettings,
    PinstreamSettings,
    PinterestSettings,
    RegistrySettings,
    SettingDoc,
    Settings,
    SettingsGroup,
)
from consumer.settings.network import (
    EITHER_CASE,
    SHARED,
    authorities_trouble,
    curl_environment,
    token_authorities,
)
from consumer.settings.passthrough import (
    FOREIGN_KAFKA_NAME,
    is_secret,
    kafka_properties,
    read_secret_file,
    registry_properties,
    service_link_names,
)

__all__ = [
    "DEFAULT_NEEDS",
    "DEFAULT_SCHEMA",
    "REVOKE_MARGIN",
    "PinstreamSettings",
    "Settings",
    "all_settings",
    "load",
    "packaged_schemas_dir",
]

# Needs of ``run`` and ``check``: brokers, topics to read, an account and its token.
DEFAULT_NEEDS = ("kafka", "topics", "account", "token")

_EMPTY_HAS_A_MEANING = frozenset({"PINSTREAM_HTTP_ADDRESS"})
# An unknown name with one of these prefixes is a mistake. The other prefixes are shared with other programs.
_CLOSED_PREFIXES = ("PINSTREAM_", "PINTEREST_")
# The build reads it (hatch_build.py), no command does. An environment may keep it all the same.
_BUILD_NAMES = ("PINSTREAM_NO_COMPILE",)
_OUR_PREFIXES = (*_CLOSED_PREFIXES, "KAFKA_", "SCHEMA_REGISTRY_")
_SHOWN_CHARACTERS = 60

_AnyGroup = TypeVar("_AnyGroup", bound=SettingsGroup)


def load(environ: Mapping[str, str], *, needs: Collection[str] = DEFAULT_NEEDS) -> Settings:
    """Read and validate the settings of `environ`. Raises `SettingsError`.

    `needs` names what the command requires: ``kafka`` (brokers), ``topics`` (``KAFKA_TOPICS``), ``account``
    (an ad account), ``token`` (its access token). Other settings may be missing, but an invalid value is refused even
    if the command does not need it. Where librdkafka asks for tokens by way of a proxy, its variables are set for it.
    """
    _refuse_unreadable(environ)
    # Kubernetes sets these for a service named like our prefixes; they say nothing to us.
    ignored = service_link_names(environ)
    _refuse_unknown(environ, ignored)
    environ = _with_secrets_read(environ)
    # A blank value counts as not set, except where empty has a meaning.
    texts = {name: environ[name].strip() for name in REGISTRY.keys() & environ.keys()}
    texts |= {name: environ[name.lower()].strip() for name in EITHER_CASE if name.lower() in environ}
    if not needs:
        for name in SHARED:
            texts.pop(name, None)
    raw: dict[str, Any] = {name: text for name, text in texts.items() if text or name in _EMPTY_HAS_A_MEANING}
    foreign = {name for name in environ if FOREIGN_KAFKA_NAME.fullmatch(name)}
    raw["KAFKA_…"] = kafka_properties(environ, ignored | foreign | REGISTRY.keys())
    raw["SCHEMA_REGISTRY_…"] = registry_properties(environ, ignored | REGISTRY.keys())
    # These defaults depend on the environment or on another setting, so their fields have none.
    raw.setdefault("PINSTREAM_SCHEMAS_DIR", str(packaged_schemas_dir()))
    raw.setdefault("PINSTREAM_STATE_DIR", _default_state_dir(environ))
    raw.setdefault("PINSTREAM_KEY_STORE", f"disk:{raw['PINSTREAM_STATE_DIR']}/keys")
    settings = Settings(
        kafka=_validated(KafkaSettings, raw),
        registry=_validated(RegistrySettings, raw),
        pinterest=_validated(PinterestSettings, raw),
        pinstream=_validated(PinstreamSettings, raw),
        network=_validated(NetworkSettings, raw),
    )
    # After the validation: a missing setting is a smaller mistake than a wrong one.
    _refuse_missing(raw, needs)
    for trouble in chain(
        missing_paths(settings),
        authorities_trouble(settings),
        contradictions(settings),
        token_trouble(settings, needs),
    ):
        raise SettingsError(trouble)
    if needs:
        os.environ.update(curl_environment(settings))
    kafka = settings.kafka
    trusted = {**kafka.properties, **token_authorities(settings)}
    return effective(settings.model_copy(update={"kafka": kafka.model_copy(update={"properties": trusted})}))


def all_settings() -> list[SettingDoc]:
    """Return every setting, in the order of the table."""
    return list(REGISTRY.values())


def packaged_schemas_dir() -> Path:
    """Return the folder of the packaged schemas: inside the installed package, or beside it in the source tree."""
    package = Path(__file__).parent.parent
    inside = package / "schemas"
    return inside if inside.is_dir() else package.parent / "schemas"


def _refuse_unreadable(environ: Mapping[str, str]) -> None:
    """Refuse text that is not UTF-8."""
    # Python keeps such bytes as lone surrogates, which cannot be encoded and which no client accepts.
    for name in sorted(name for name in environ if name.startswith(_OUR_PREFIXES)):
        try:
            f"{name}{environ[name]}".encode()
        except UnicodeEncodeError:
            raise SettingsError(f"{ascii(name)[1:-1]} is not UTF-8 text; correct it") from None


def _refuse_unknown(environ: Mapping[str, str], ignored: Collection[str]) -> None:
    known = [
        name
        for name in (
            *REGISTRY,
            *(f"{one.name}_FILE" for one in REGISTRY.values() if one.secret),
            *_BUILD_NAMES,
        )
        if name.startswith(_CLOSED_PREFIXES)
    ]
    for name in sorted(environ):
        if name.startswith(_CLOSED_PREFIXES) and name not in known and name not in ignored:
            # Without the prefix, which all have in common and which would make any two names alike.
            prefix, _, rest = name.partition("_")
            bare = {one.partition("_")[2]: one for one in known if one.startswith(prefix)}
            near = rest if rest in SHARED else bare.get(nearest(rest, bare))
            hint = f"did you mean {near}? Correct" if near else "docs/settings.md lists them: correct"
            raise SettingsError(f"{name} is not a setting; {hint} or remove it")


def _with_secrets_read(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return `environ` with X in place of ``X_FILE``, the file that holds it, for each secret X."""
    read = dict(environ)
    for file_name in sorted(environ):
        name, path = file_name.removesuffix("_FILE"), environ[file_name].strip()
        # A token's file is a setting of its own: it is read again when it changes.
        if name == file_name or file_name in REGISTRY or not path or not _is_secret(name):
            continue
        if environ.get(name, "").strip():
            raise SettingsError(f"{name} and {file_name} are both set; keep one of them")
        read[name] = read_secret_file(file_name, Path(path))
        del read[file_name]
    return read


def _is_secret(variable: str) -> bool:
    return REGISTRY[variable].secret if variable in REGISTRY else is_secret(variable)


def _default_state_dir(environ: Mapping[str, str]) -> str:
    base = environ.get("XDG_STATE_HOME", "")
    # The XDG base directory specification says to ignore a relative path.
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
        # The message of our own parser, without what pydantic puts around it.
        what = str(first.get("ctx", {}).get("error") or first["msg"])
        either = f" (or {name.lower()})" if name in EITHER_CASE else ""
        raise SettingsError(f"{name}{either}{_shown(name, raw.get(name))}: {what}") from None


def _shown(name: str, value: object) -> str:
    """Return the value for a message; empty if it is, or may contain, a secret."""
    text = str(value)
    # An @ may stand after a user and a password.
    if value is None or REGISTRY[name].secret or "@" in text:
        return ""
    return f"={text[:_SHOWN_CHARACTERS]!r}" + ("…" if len(text) > _SHOWN_CHARACTERS else "")


def _refuse_missing(raw: Mapping[str, Any], needs: Collection[str]) -> None:
    # All in one line, so that a new user does not find one after the other.
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
