"""The write-ahead log: its files and records, and what replaying them adds and takes away (FORMAT §5)."""
