"""The command line as a person meets it: what it prints, what it says when something is wrong, how it ends."""
