"""docs/runbook.md, run: `page` reads it, `worlds` are the troubles that its sections are for."""
