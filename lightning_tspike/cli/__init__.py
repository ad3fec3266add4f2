"""The command line, ``tspike``: one tree of commands, a file for each group of them, put together in ``main.py``."""
