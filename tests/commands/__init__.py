"""The command line as a person uses it: what it prints, what it says when something is wrong, and its exit code."""
