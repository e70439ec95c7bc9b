"""How a run's texts are laid out for the engine, and what memory that takes.

The words for sizes, from the largest to the smallest:

    request   texts that came together: t1 … t200
    window    those of them that stand in the engine's queue: t1 … t128
    run       what the engine takes through the layers at once, of one or several requests
    pack      short texts of a run, joined for the token-wise operations; a text that fills a pack
              is one by itself
    slice     what such an operation takes at once: a whole pack, or a part of a long one

    run     [ t1                        t2 t5 t6 t9     t3 t4 t7 t8 ]
    packs   [ t1                    ] [ t2 t5 t6 t9 ] [ t3 t4 t7 t8 ]
    slices  [ t1    ] [ t1  ] [ t1  ] [ t2 t5 t6 t9 ] [ t3 t4 t7 t8 ]

Attention always sees one whole text.

Pure: lengths and sizes in, packs and bytes out. The engine runs exactly this layout, so that
what admission predicts is what the engine does.
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import accumulate, pairwise

from plimsoll.encoder.architecture import Architecture

# Joining more than this many tokens gains nothing: the kernels are at full speed.
PACK_TOKENS = 512
# So few tokens are not worth splitting between threads.
SHARED_TOKENS = 256
# Token-wise intermediates take tens of kilobytes a token, so long texts are cut for them;
# the kernels reach full speed well below.
SLICE_TOKENS = 512
# A smaller rest of a long text is shared out with the slice before it.
SLIVER_TOKENS = 64
# Attention reads a whole text, but answers for so many of its tokens at a time: beside keys and
# values only those rows stand in memory. A slice follows from the text alone, and so do its bits.
ATTEND_TOKENS = 1024

# Of what is left, for each thread: packs of nearly equal size run side by side instead.
MOST_OF_THE_WORK = 1.2

FLOAT_BYTES = 4
# Ids and positions of a token, int64 each.
INDEX_BYTES = 16
# What a pack takes at any size: bindings, the allocator's rounding. Measured.
PACK_BASE_BYTES = 1 << 18
# Threads that run different sizes side by side break up the arena that they share: each beyond
# the first takes so much more than its intermediates. Measured with two threads.
SIDE_BY_SIDE = 1.4


def slices(rows: slice, most: int) -> list[slice]:
    """Cut rows into slices of `most`, never growing from one to the next.

    Memory that a slice has used then fits every later one. What is left over is not a sliver,
    whose cost would be that of packing the weights again; above all it is never a single row.
    """
    n_rows = rows.stop - rows.start
    n_slices = -(-n_rows // most)
    sizes = [most] * (n_slices - 1) + [n_rows - most * (n_slices - 1)]
    if n_slices > 1 and sizes[-1] < SLIVER_TOKENS:
        both = most + sizes[-1]
        sizes[-2:] = [both - both // 2, both // 2]
    bounds = list(accumulate(sizes, initial=rows.start))
    return [slice(a, b) for a, b in pairwise(bounds)]


def pack_texts(
    lengths: Sequence[int],
    *,
    n_threads: int,
    context_tokens: int,
    pack_tokens: int = PACK_TOKENS,
) -> list[list[int]]:
    """Indices of the texts of each pack, the largest slice and then the largest pack first.

    A text that fills a pack is alone in it, and so is one beyond the context that the model was
    trained for, whose positions are rotated by tables of its own. The others go, longest first, to
    the lightest of as many packs as keep every thread busy to the end of a layer; few tokens stay
    one pack, which all threads share.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    most_joined = min(pack_tokens - 1, context_tokens)
    alone = [[index] for index in order if lengths[index] > most_joined]
    short = order[len(alone) :]
    n_tokens = sum(lengths[index] for index in short)
    rounds = -(-n_tokens // (pack_tokens * n_threads))
    n_packs = 1 if n_tokens <= SHARED_TOKENS else min(len(short), rounds * n_threads)
    joined: list[list[int]] = [[] for _ in range(n_packs if short else 0)]
    loads = [(0, place) for place in range(len(joined))]
    for index in short:
        load, place = heappop(loads)
        joined[place].append(index)
        heappush(loads, (load + lengths[index], place))
    return sorted(alone + joined, key=lambda pack: _size(lengths, pack), reverse=True)


def _size(lengths: Sequence[int], pack: Sequence[int]) -> tuple[int, int]:
    n_tokens = sum(lengths[index] for index in pack)
    return largest_slice(n_tokens), n_tokens


def largest_slice(n_tokens: int) -> int:
    """Rows of the largest slice of a pack."""
    first = slices(slice(0, n_tokens), SLICE_TOKENS)[0]
    return int(first.stop - first.start)


def n_shared_packs(pack_sizes: Sequence[int], n_threads: int) -> int:
    """How many packs, from the first, all threads work on together.

    A pack that is most of the work left would keep one thread busy while the others wait.
    pack_sizes: tokens of each pack.
    """
    left = sum(pack_sizes)
    shared = 0
    while shared < len(pack_sizes) and pack_sizes[shared] * n_threads > MOST_OF_THE_WORK * left:
        left -= pack_sizes[shared]
        shared += 1
    return shared


def attention_bytes(architecture: Architecture, n_tokens: int, *, linear: bool) -> int:
    """What attention to a whole text takes beside its inputs.

    Its own copies of keys, values and the asking slice. Where it is not linear, also the slice's
    scores in every head, and its answers in the order of the copies.
    """
    n_asking = min(n_tokens, ATTEND_TOKENS)
    row_bytes = FLOAT_BYTES * architecture.hidden
    copies = (2 * n_tokens + n_asking) * row_bytes
    if linear:
        return copies
    return copies + n_asking * row_bytes + FLOAT_BYTES * architecture.n_heads * n_asking * n_tokens


def run_bytes(
    architecture: Architecture,
    lengths: Sequence[int],
    *,
    n_threads: int,
    pack_tokens: int = PACK_TOKENS,
    linear_attention: bool = True,
) -> int:
    """Peak of the memory that a run of texts takes on top of an idle engine.

    A run holds its states. Each pack under way holds queries, keys and values, what attention
    takes, and the intermediates of one slice: up, gate and its activation (without a gate, up and
    its activation) at the feed-forward's width, three more at the model's.
    linear_attention: as the backend has found it.
    `scripts/benchmark.py --only footprint` compares it with what processes really take.
    """
    if not lengths:
        return 0
    row_bytes = FLOAT_BYTES * architecture.hidden
    packs = pack_texts(
        lengths,
        n_threads=n_threads,
        context_tokens=architecture.context_tokens,
        pack_tokens=pack_tokens,
    )
    n_wide = 3 if architecture.rotary else 2
    scratch_row_bytes = FLOAT_BYTES * (n_wide * architecture.ffn + 3 * architecture.hidden)

    def pack_bytes(pack: Sequence[int], *, beside_others: bool) -> int:
        n_tokens = sum(lengths[index] for index in pack)
        longest = max(lengths[index] for index in pack)
        attention = attention_bytes(architecture, longest, linear=linear_attention)
        scratch = largest_slice(n_tokens) * scratch_row_bytes
        factor = SIDE_BY_SIDE if beside_others else 1.0
        return 3 * n_tokens * row_bytes + attention + round(factor * scratch) + PACK_BASE_BYTES

    n_shared = n_shared_packs([sum(lengths[i] for i in pack) for pack in packs], n_threads)
    alone = [pack_bytes(pack, beside_others=False) for pack in packs]
    # The largest slices come first, and so the largest packs run beside each other.
    together = sum(
        pack_bytes(pack, beside_others=place > 0)
        for place, pack in enumerate(packs[n_shared : n_shared + n_threads])
    )
    return sum(lengths) * (row_bytes + INDEX_BYTES) + max([*alone, together])
