"""What an answer of the API says of each event, and which parts of it may be shown."""
