"""Files that are written whole or not at all, and files that anyone may have made. Each is a module to import from."""
