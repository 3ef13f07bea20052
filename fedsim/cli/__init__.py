"""The `fedsim` command, one file per command or group of them. Thin: it reads arguments, calls the library, prints."""
