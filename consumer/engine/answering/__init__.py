"""What an answer of the API says of each event, and what may be shown of it."""
