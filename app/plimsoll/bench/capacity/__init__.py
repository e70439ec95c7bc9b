"""How many servers a load takes: figures of one, measured, and what follows from them."""
