"""How many tokens of one text a model takes."""

import logging
from math import isqrt

from plimsoll.encoder.architecture import Architecture
from plimsoll.encoder.known_models import KnownModel
from plimsoll.encoder.layout import ATTEND_TOKENS, FLOAT_BYTES

log = logging.getLogger(__name__)

# What the scores of one text may take, where all of them are held; texts are cut to fit.
SCORES_BYTES = 128 << 20
# No limit is lowered further: a passage of this length is what people embed.
LEAST_TOKENS = 512


def token_limit(known: KnownModel, architecture: Architecture, *, linear_attention: bool) -> int:
    """What the catalogue says, else the trained length; lower where attention takes the square."""
    limit = known.token_limit or architecture.context_tokens
    # A file with a linear scaling of its own is not the model that the catalogue's is for.
    if not known.scales_rotation or architecture.rope_factor != 1.0:
        limit = min(limit, architecture.context_tokens)
    return limit if linear_attention else lower_token_limit(limit, architecture.n_heads)


def lower_token_limit(limit: int, n_heads: int) -> int:
    """Lower the limit until a text's scores fit SCORES_BYTES, and say so in the log.

    Scores are float32 (heads, asking tokens, tokens), at most ATTEND_TOKENS asking at a time.
    """
    n_scores = SCORES_BYTES // (FLOAT_BYTES * n_heads)
    lowered = min(limit, max(LEAST_TOKENS, isqrt(n_scores), n_scores // ATTEND_TOKENS))
    if lowered < limit:
        log.warning(
            "attention takes memory with the square of a text's length here (is "
            "ORT_DISABLE_FLASH_ATTENTION set?): the limit is %d tokens a text instead of %d, "
            "which holds a text's scores to %d MiB",
            lowered,
            limit,
            SCORES_BYTES >> 20,
        )
    return lowered
