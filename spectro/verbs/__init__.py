"""The verbs of the command line, one file each: settings and `run`."""
