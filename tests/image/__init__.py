"""The image that the Dockerfile makes: really built, and run as a container runtime would."""
