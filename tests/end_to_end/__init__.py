"""The whole product as its users run it: processes on a command line, a real broker, an API that answers."""
