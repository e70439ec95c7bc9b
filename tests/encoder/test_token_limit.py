"""How many tokens of a text a model takes, by catalogue, training and memory."""

import logging
from dataclasses import replace

import pytest

from plimsoll.encoder.catalog import SHAPES
from plimsoll.encoder.known_models import NOMIC_V1_5, KnownModel
from plimsoll.encoder.layout import ATTEND_TOKENS, FLOAT_BYTES
from plimsoll.encoder.token_limit import (
    LEAST_TOKENS,
    SCORES_BYTES,
    lower_token_limit,
    token_limit,
)

NOMIC = SHAPES["nomic-embed-text-v1.5"]


def test_only_a_model_whose_rotation_scales_goes_past_its_trained_length():
    """Vectors of positions that a model was not trained for are near nothing."""
    stranger = KnownModel(name="stranger")
    short = replace(NOMIC, context_tokens=100)

    assert token_limit(stranger, short, linear_attention=True) == 100
    assert token_limit(replace(stranger, token_limit=256), short, linear_attention=True) == 100
    assert token_limit(NOMIC_V1_5, NOMIC, linear_attention=True) == 8192 > NOMIC.context_tokens


def test_attention_that_takes_the_square_lowers_the_limit():
    """Else one long text would take memory that no request was let in for."""
    assert token_limit(NOMIC_V1_5, NOMIC, linear_attention=False) < 8192


@pytest.mark.parametrize("n_heads", [1, 4, 12, 16, 48])
def test_the_lowered_limit_is_the_longest_text_whose_scores_fit(n_heads: int):
    """One token more would not."""

    def scores_bytes(n_tokens: int) -> int:
        return FLOAT_BYTES * n_heads * min(n_tokens, ATTEND_TOKENS) * n_tokens

    limit = lower_token_limit(1 << 20, n_heads)

    assert scores_bytes(limit) <= SCORES_BYTES < scores_bytes(limit + 1)


def test_no_limit_is_lowered_below_a_passage_or_raised(caplog: pytest.LogCaptureFixture):
    """A model of very many heads still has to be of use; a short limit stays, without a word."""
    caplog.set_level(logging.WARNING)

    assert lower_token_limit(256, 12) == 256
    assert caplog.messages == []
    assert lower_token_limit(2048, 4096) == LEAST_TOKENS
    (message,) = caplog.messages
    assert f"{LEAST_TOKENS} tokens a text instead of 2048" in message
