"""The command's verbs, a file each: settings and `run`."""
