"""The fixture that opens the page in a browser."""

from tests.web.page.browser import visit

__all__ = ["visit"]
