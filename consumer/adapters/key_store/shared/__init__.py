"""The key store that members on several machines share: `store` uses it, `address` finds it, the scripts run in it."""
