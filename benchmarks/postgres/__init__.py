"""The same transfers on PostgreSQL: a hand-written double-entry schema, driven by pgbench."""
