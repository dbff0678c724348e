"""Amazon's services: logging in to MSK (`msk`), Glue's schemas (`glue`), and how both find credentials and a region.

botocore finds both by AWS's conventions: variables, web identity (EKS), profiles, containers, instances.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from consumer.errors import SettingsError

# At lower levels botocore logs each time where it found credentials, and what it signs, including a session's token.
logging.getLogger("botocore").setLevel(logging.WARNING)

# Seconds. With botocore's own 60, callers would wait for minutes.
_CONNECT, _READ, _ATTEMPTS = 3, 5, 2
_MAX_CHARACTERS: Final = 300


def new_session() -> Any:
    """Return a session of botocore, whose calls are bounded. Raises `ImportError` without botocore.

    A new session reads files again, so it sees changes on disk.
    """
    from botocore.config import Config
    from botocore.session import Session

    # botocore itself knows only the second of these variables; the other SDKs of AWS know the first.
    session = Session(session_vars={"region": ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], None, None)})
    limits = Config(connect_timeout=_CONNECT, read_timeout=_READ, retries={"total_max_attempts": _ATTEMPTS})
    session.set_default_client_config(limits)
    return session


def find_region(what: str) -> str:
    """Return the region by AWS's conventions: variables, then the profile; empty: there is none.

    Raises `SettingsError`, which names `what` needs the region, if it cannot be read.
    """
    try:
        return str(new_session().get_config_variable("region") or "")
    except Exception as error:  # a profile that does not exist, a file that cannot be parsed
        raise SettingsError(f"the region of {what} cannot be read: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """Return an error of botocore on one bounded line. No such error shows a credential."""
    words = " ".join(str(error).split()).rstrip(".")
    return words[:_MAX_CHARACTERS] or type(error).__name__
