"""The page on which people judge pairs, its server, and their decisions."""
