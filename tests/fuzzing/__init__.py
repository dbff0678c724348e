"""Coverage-guided fuzzing of everything that reads bytes from outside; `__main__` says how to run it."""
