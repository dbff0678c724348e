"""One outside system each: translate, set a time limit, try once, decide nothing.

`kafka` is the brokers, `conversions_api` the destination, `key_store` the memory of delivered keys, `schemas` the
writers' schemas (a folder and a registry), whose answers `bounded_answers` limits, whose errors `registry_errors`
explains and whose schemas `schemas_on_disk` keeps, `files` the files of the commands. `disk` writes files durably.
`thread` is the one thread class, for all that blocks. Retries, backoff and what a failure means are up to the engine.
"""
