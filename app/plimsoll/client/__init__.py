"""Ask a running server from Python: `plimsoll.Client` and `plimsoll.AsyncClient`.

What is asked, waited for and raised is written once, as generators without a socket; the two
classes only send what these yield, in a thread or on an event loop.
"""
