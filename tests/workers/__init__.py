"""``consumer/workers``: the supervisor's decisions and figures, without a process."""
