"""The command line, ``tspike``: a file for each group of commands."""
