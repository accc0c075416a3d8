"""How files and folders are written: each file at once, a folder by one process."""
