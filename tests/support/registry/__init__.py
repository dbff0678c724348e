"""A real schema registry, for tests: `apicurio` starts it."""
