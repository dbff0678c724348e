"""Tests of the commands that read receipts."""
