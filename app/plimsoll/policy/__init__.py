"""The rules: who may run, when, with how much. Pure: no I/O, no thread, the clock passed in."""
