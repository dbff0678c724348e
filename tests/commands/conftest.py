"""The command line's tests share the servers of the end-to-end tests."""

from tests.end_to_end.conftest import api, servers

__all__ = ["api", "servers"]
