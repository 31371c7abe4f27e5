"""The recipes that ship with iiad: `iiad train NAME` finds them by their file names without `.yaml`."""
