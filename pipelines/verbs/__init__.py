"""The verbs of `midbound`, a module each: its options, its run, what it prints."""
