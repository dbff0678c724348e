"""Schemas and their resolution; from a record's bytes to a commerce event.

Reading order: `schema` (what a schema is), `resolution` (writer's against reader's), `decode` (one record).
"""
