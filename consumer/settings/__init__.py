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
import re
from collections.abc import Collection, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from consumer.errors import SettingsError, nearest
from consumer.settings import checks, network, passthrough
from consumer.settings.checks import COMMIT_INTERVAL, REVOKE_MARGIN
from consumer.settings.fields import DEFAULT_SCHEMA, REGISTRY, PinstreamSettings, SettingDoc, Settings
from consumer.settings.values import SecretFile, parse_path

__all__ = [
    "COMMIT_INTERVAL",
    "DEFAULT_NEEDS",
    "DEFAULT_SCHEMA",
    "REVOKE_MARGIN",
    "PinstreamSettings",
    "Settings",
    "all_settings",
    "load",
    "packaged",
]

# Needs of ``run`` and ``check``: brokers, topics to read, an account and its token.
DEFAULT_NEEDS = ("kafka", "topics", "account", "token")

_EMPTY_HAS_A_MEANING = frozenset({"PINSTREAM_HTTP_ADDRESS"})
# An unknown name with one of these prefixes is a mistake. The other prefixes are shared with other programs.
_CLOSED_PREFIXES = ("PINSTREAM_", "PINTEREST_")
# Names of earlier versions -> what takes their place.
_REMOVED: Mapping[str, str] = {
    "PINSTREAM_BATCH_BYTES": "a call has at most 4 MiB",
    "PINSTREAM_COMMIT_INTERVAL": "settled offsets are committed every second",
    "PINSTREAM_FAST_PATH": "all records take the fast path that can; counts.in_two_steps of /status has the others",
    "PINSTREAM_STALL_AFTER": "a stall is reported after two minutes",
    "PINSTREAM_WIRE_FORMAT": "the format of each record is recognised",
    "PINTEREST_PARTNER_NAME": 'write partner_name = "…" under [constants] in the mapping (PINSTREAM_MAPPING_FILE)',
}
# The build reads it (hatch_build.py), no command does. An environment may keep it all the same.
_BUILD_NAMES = ("PINSTREAM_NO_COMPILE",)
_OUR_PREFIXES = (*_CLOSED_PREFIXES, "KAFKA_", "SCHEMA_REGISTRY_")
# Settings that can also come from the file that ``X_FILE`` names.
_SECRETS = frozenset(row.name for row in REGISTRY.values() if row.secret)
_SHOWN_CHARACTERS = 60


def load(environ: Mapping[str, str], *, needs: Collection[str] = DEFAULT_NEEDS) -> Settings:
    """Read and validate the settings of `environ`. Raises `SettingsError`.

    `needs` names what the command requires: ``kafka`` (brokers), ``topics`` (``KAFKA_TOPICS``), ``account``
    (an ad account), ``token`` (its access token). Other settings may be missing, but an invalid value is refused even
    if the command does not need it. Where librdkafka asks for tokens by way of a proxy, its variables are set for it.
    """
    _refuse_unreadable(environ)
    # Kubernetes sets these for a service named like our prefixes; they say nothing to us.
    ignored = passthrough.service_link_names(environ)
    _refuse_unknown(environ, ignored)
    environ, files = _with_secrets_read(environ)
    # A blank value counts as not set, except where empty has a meaning.
    texts = {name: environ[name].strip() for name in REGISTRY.keys() & environ.keys()}
    texts |= {name: environ[name.lower()].strip() for name in network.EITHER_CASE if name.lower() in environ}
    if not needs:
        for name in network.SHARED:
            texts.pop(name, None)
    raw: dict[str, Any] = {name: text for name, text in texts.items() if text or name in _EMPTY_HAS_A_MEANING}
    raw |= files
    foreign = {name for name in environ if passthrough.FOREIGN_KAFKA_NAME.fullmatch(name)}
    raw["KAFKA_…"] = passthrough.kafka_properties(environ, ignored | foreign | REGISTRY.keys())
    raw["SCHEMA_REGISTRY_…"] = passthrough.registry_properties(environ, ignored | REGISTRY.keys())
    # These defaults depend on the environment or on another setting, so their fields have none.
    raw.setdefault("PINSTREAM_SCHEMAS_DIR", str(packaged("schemas")))
    raw.setdefault("PINSTREAM_STATE_DIR", _default_state_dir(environ))
    raw.setdefault("PINSTREAM_KEY_STORE", f"disk:{raw['PINSTREAM_STATE_DIR']}/keys")
    try:
        # Each group picks its own variables, by their aliases.
        groups = ("kafka", "registry", "pinterest", "pinstream", "network")
        settings = Settings.model_validate(dict.fromkeys(groups, raw))
    except ValidationError as error:
        raise _invalid(error, raw) from None
    # After the validation: a missing setting is a smaller mistake than a wrong one.
    _refuse_missing(raw, needs)
    # The first one only: one mistake is often the cause of others.
    for problem in chain(
        checks.missing_paths(settings),
        network.authority_problems(settings),
        checks.contradictions(settings),
        checks.token_problems(settings, needs),
    ):
        raise SettingsError(problem)
    if needs:
        # curl, as part of librdkafka, reads the environment of the process and nothing else.
        os.environ.update(network.curl_environment(settings))
    kafka = settings.kafka
    trusted = {**kafka.properties, **network.token_authorities(settings)}
    return checks.effective(
        settings.model_copy(update={"kafka": kafka.model_copy(update={"properties": trusted})})
    )


def all_settings() -> list[SettingDoc]:
    """Return every setting, in the order of the table."""
    return list(REGISTRY.values())


def packaged(name: str) -> Path:
    """Return a packaged folder (`schemas`): inside the installed package, or beside it in the source tree."""
    package = Path(__file__).parent.parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def _refuse_unreadable(environ: Mapping[str, str]) -> None:
    """Refuse text that is not UTF-8."""
    # Python keeps such bytes as lone surrogates, which cannot be encoded and which no client accepts.
    for name in sorted(name for name in environ if name.startswith(_OUR_PREFIXES)):
        try:
            f"{name}{environ[name]}".encode()
        except UnicodeEncodeError:
            raise SettingsError(f"{ascii(name)[1:-1]} is not UTF-8 text; correct it") from None


def _refuse_unknown(environ: Mapping[str, str], ignored: Collection[str]) -> None:
    names = (*REGISTRY, *(f"{name}_FILE" for name in _SECRETS), *_BUILD_NAMES)
    known = sorted(name for name in names if name.startswith(_CLOSED_PREFIXES))
    required = {row.name for row in REGISTRY.values() if row.needed_for}
    for name in sorted(environ):
        if name in _REMOVED:
            raise SettingsError(f"{name} is no longer a setting: {_REMOVED[name]}; remove it")
        if name.startswith(_CLOSED_PREFIXES) and name not in known and name not in ignored:
            # Without the prefix, which all have in common and which would make any two names alike.
            prefix, _, rest = name.partition("_")
            bare = {one.partition("_")[2]: one for one in known if one.startswith(prefix)}
            # Of two that end as the name does, the one that everybody needs is meant.
            needed = [one for one in bare if one.endswith(f"_{rest}") and bare[one] in required]
            near = rest if rest in network.SHARED else bare.get(nearest(rest, needed or bare))
            hint = f"did you mean {near}? Correct" if near else "docs/settings.md lists them: correct"
            raise SettingsError(f"{name} is not a setting; {hint} or remove it")


def _with_secrets_read(environ: Mapping[str, str]) -> tuple[Mapping[str, str], Mapping[str, SecretFile]]:
    """Return `environ` with X in place of ``X_FILE``, the file that holds it, for each secret X; and the files of those
    that are read again when they change."""
    read, files = dict(environ), dict[str, SecretFile]()
    for file_name in sorted(environ):
        name, path = file_name.removesuffix("_FILE"), environ[file_name].strip()
        if name == file_name or not path or not (name in _SECRETS or passthrough.is_secret(name)):
            continue
        if environ.get(name, "").strip():
            raise SettingsError(f"{name} and {file_name} are both set; keep one of them")
        del read[file_name]
        if name in REGISTRY and REGISTRY[name].reread:
            try:
                files[name] = SecretFile(file_name, parse_path(path))
            except ValueError as error:
                raise SettingsError(f"{file_name}: {error}") from None
        else:
            read[name] = passthrough.read_secret_file(file_name, Path(path))
    return read, files


def _default_state_dir(environ: Mapping[str, str]) -> str:
    base = environ.get("XDG_STATE_HOME", "")
    # The XDG base directory specification says to ignore a relative path.
    if Path(base).is_absolute():
        return f"{base}/pinstream"
    # Without HOME, the parser of paths asks the system for the home folder, or says what to do.
    return f"{environ.get('HOME') or '~'}/.local/state/pinstream"


def _invalid(error: ValidationError, raw: Mapping[str, Any]) -> SettingsError:
    """Return the error for the first invalid setting. Its value is shown, unless that is or may contain a secret."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][1])  # after the group
    text, shown = str(raw[name]), ""
    if first["type"] == "literal_error":
        # pydantic names them as 'a', 'b' or 'c'.
        choices = re.findall(r"'([^']+)'", first["ctx"]["expected"])
        near = nearest(text, choices)
        what = f"unknown; allowed: {', '.join(choices)}" + (f"; did you mean {near}?" if near else "")
    else:
        # The message of our own parser, without what pydantic puts around it.
        what = str(first["ctx"]["error"])
    # An @ may stand after a user and a password.
    if name not in _SECRETS and "@" not in text:
        shown = f"={text[:_SHOWN_CHARACTERS]!r}" + ("…" if len(text) > _SHOWN_CHARACTERS else "")
    either = f" (or {name.lower()})" if name in network.EITHER_CASE else ""
    return SettingsError(f"{name}{either}{shown}: {what}")


def _refuse_missing(raw: Mapping[str, Any], needs: Collection[str]) -> None:
    missing = [row for row in REGISTRY.values() if row.needed_for in needs and row.name not in raw]
    if not missing:
        return
    if len(missing) == 1:
        reason = missing[0].reason
        raise SettingsError(f"{missing[0].name} is not set; it is required: {reason[0].lower()}{reason[1:]}")
    # All in one line, so that a new user does not find one after the other.
    names = [f"{row.name} (or {row.name}_FILE)" if row.secret else row.name for row in missing]
    listed = ", ".join(names[:-1])
    raise SettingsError(
        f"{listed} and {names[-1]} are not set; they are required: see pinstream run --help for each"
    )
