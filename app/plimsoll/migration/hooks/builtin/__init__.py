"""The hooks that Plimsoll brings; each is written as on a command line, with its options."""
