"""The compiled modules; without them the package works, and the conversion is slower (see
`consumer.conversion.reading`)."""
