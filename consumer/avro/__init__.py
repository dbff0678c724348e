"""Avro: a writer's schema, resolved against ours, becomes a plan; a record's bytes become a commerce event by it.

Reading order: `schema` (what a schema is), `resolution` (writer's against reader's), `decode` (one record).
"""
