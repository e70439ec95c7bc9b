"""Figures of a server, as several tests have them."""

from plimsoll.bench.capacity.figures import Figures

# A request costs 2 ms and a token 0.1 ms, as the two rates have it.
FIGURES = Figures(
    version="0.1.0",
    model="nomic-embed-text-v1.5",
    compute="float32",
    dimensions=768,
    cores=2,
    n_threads=2,
    rest_bytes=100 << 20,
    short_tokens=10,
    lone_s=0.008,
    short_per_s=1 / 0.003,
    list_texts=50,
    list_tokens=500,
    list_tokens_per_s=500 / 0.052,
)
