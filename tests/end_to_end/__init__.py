"""The whole product as its users run it: processes from a command line, a real broker, and an API that answers."""
