"""Calls to the API: which batch goes when, and what an answer says of each event."""
