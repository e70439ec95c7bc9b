"""The command line: one module a command."""

FAILED = 2  # exit code of a command that could not do what it was asked
INTERRUPTED = 130  # exit code after Ctrl-C, as a shell has it
