"""The commands with a broker as in production: TLS, logins, tokens, rights."""
