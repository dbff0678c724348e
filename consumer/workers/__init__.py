"""``pinstream run --workers N``: N group members on one machine, under one supervisor.

The supervisor reads the settings, serves the page, /status, health and metrics, and has no client of Kafka or the API.
Each worker is a process of its own, ``pinstream run`` with its share of the budgets (`shares`): an ordinary member of
the group that serves nothing over HTTP. Two pipes connect it to the supervisor (`line`)::

    supervisor --- stdin: nothing is written; end of file means that the supervisor is gone ---> worker
    supervisor <-- stdout: snapshots of the engine, twice a second, and why the worker ends ---- worker

`supervision` decides what to do when a worker ends or a signal arrives. `merging` makes one snapshot from the snapshots
of all workers, live and dead. Both are synchronous and have no clock. `supervisor` performs the decisions and gives the
merged snapshot to the same web server that a single process has. `worker` is the child's side.
"""
