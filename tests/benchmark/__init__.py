"""Tests of the benchmark itself, and the guard on pinstream's cost beside the plain consumer."""
