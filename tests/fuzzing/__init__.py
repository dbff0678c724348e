"""Coverage-guided fuzzing of everything that reads bytes from outside; how to run it stands in `__main__`."""
