"""The metadata database: its rows, read from SQLite, MySQL and dumps, and written (FORMAT §2)."""
