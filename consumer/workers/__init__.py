"""``pinstream run --workers N``: so many group members on one machine, under one supervisor.

Theory of operation. The supervisor reads the settings, serves page, /status, health and metrics, and holds no client of
Kafka or the API. Each worker is a process of its own, ``pinstream run`` with its share of the budgets (`shares`): an
ordinary member of the group, which serves nothing over HTTP. Two pipes join it to the supervisor (`line`)::

    supervisor --- stdin: nothing is ever written; its end says that the supervisor is gone ---> worker
    supervisor <-- stdout: snapshots of the core, twice a second, and why it ends -------------- worker

What to do when a worker ends or a signal comes is decided in `supervision`, which is synchronous and has no clock; the
snapshots of all workers, and what dead ones left behind, become one in `merging`, likewise. `supervisor` does what the
one says and shows what the other gives to the same web server that a single process has. `worker` is the child's side.
"""
