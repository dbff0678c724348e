"""Tests of `pinstream replay` that need no broker."""
