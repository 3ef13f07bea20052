"""The `fedsim` command: each module reads the arguments of some commands, calls the library and prints results."""
