"""Collections that mirror a table or files elsewhere, and the vectors that go back there."""
