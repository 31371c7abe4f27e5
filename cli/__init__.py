"""The command line: one module a verb, each a few lines that call the library."""
