"""The commands against a broker that production has: TLS, logins, tokens, rights."""
