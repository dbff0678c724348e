"""The compiled modules that run the program; without them conversion is slower."""
