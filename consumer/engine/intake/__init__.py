"""Records before they are events: which are read, how many fit, and what they wait for."""
