"""Members on several machines share this store: `store` asks it, `address` finds it, the scripts run in it."""
