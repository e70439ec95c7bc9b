"""When a call is tried again, for how long, and what it ends in."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from math import inf

import pytest

from plimsoll.client.asking import FIRST_PAUSE_S, MOST_LOST, Answer, Ask, ask
from plimsoll.errors import NoAnswerError, RefusedError, ServerError
from tests.client.driven import Driven, answer, refusal

QUESTION = Ask("GET", "/health")
BUSY = refusal(429, "queue_full", retry_after="7")


def served(*answers: Answer | NoAnswerError) -> Driven:
    """A server that gives these answers, one after another."""
    left: Iterator[Answer | NoAnswerError] = iter(answers)

    def reply(asked: Ask) -> Answer:
        found = next(left)
        if isinstance(found, NoAnswerError):
            raise found
        return found

    return Driven(reply)


def test_what_is_refused_for_now_is_asked_again_when_the_server_says():
    """Sooner is in vain, and later wastes the place."""
    told: list[tuple[str, float]] = []
    driven = served(
        BUSY, refusal(503, "memory_pressure", retry_after="2"), answer({"status": "ok"})
    )

    def on_wait(error: ServerError, seconds: float) -> None:
        told.append((error.code, seconds))

    assert driven.run(ask(QUESTION, driven.patience(60, on_wait=on_wait))) == {"status": "ok"}
    assert driven.pauses == [7, 2]
    assert told == [("queue_full", 7), ("memory_pressure", 2)]


def test_retry_after_may_be_a_date():
    """A proxy before the server may write it so."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    driven = served(refusal(503, "x", retry_after=date), answer({}))
    driven.run(ask(QUESTION, driven.patience(60)))
    assert 27 < driven.pauses[0] <= 30


@pytest.mark.parametrize(
    "header", ["0", "-5", "Wed, 21 Oct 2015 07:28:00", "Wed, 21 Oct 2015 07:28:00 -0000"]
)
def test_a_time_that_has_passed_is_waited_for_a_moment(header: str):
    """A gateway that says so each time would be asked without an end and without a rest."""
    driven = served(refusal(503, "x", retry_after=header), answer({}))
    driven.run(ask(QUESTION, driven.patience(inf)))
    assert driven.pauses == [FIRST_PAUSE_S]


@pytest.mark.parametrize(
    "header", ["soon", "", "Mon, 99 Foo 2026", "Mon, 01 Jan 99999999999 00:00:00 GMT"]
)
def test_a_retry_after_that_says_nothing_is_none(header: str):
    driven = served(refusal(503, "x", retry_after=header))
    with pytest.raises(RefusedError):
        driven.run(ask(QUESTION, driven.patience(60)))
    assert driven.pauses == []


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 500, 503])
def test_a_refusal_without_a_time_is_final_and_says_all_that_the_server_said(status: int):
    """The request has to be mended first, or the server."""
    content = {"error": {"message": "no such model", "code": "model_not_found", "param": "model"}}
    driven = served(answer(content, status))
    with pytest.raises(RefusedError, match=rf"refused \({status}\): no such model") as refused:
        driven.run(ask(QUESTION, driven.patience(60)))
    found = refused.value
    assert (found.status, found.code, found.param) == (status, "model_not_found", "model")
    assert found.retry_after_s is None


def test_no_wait_begins_that_would_end_after_the_deadline():
    """The caller gets the refusal while there is still time to do something else."""
    driven = served(*[BUSY] * 9)
    with pytest.raises(RefusedError, match="queue_full") as refused:
        driven.run(ask(QUESTION, driven.patience(20)))
    assert driven.pauses == [7, 7]
    assert refused.value.retry_after_s == 7


def test_each_request_may_take_what_is_left_of_the_deadline():
    """It is one for the whole call, tries and waits included."""
    driven = served(BUSY, BUSY, answer({}))
    driven.request_s = 1
    driven.run(ask(QUESTION, driven.patience(20)))
    assert [asked.timeout_s for asked in driven.sent] == [20, 12, 4]


def test_a_number_of_retries_may_be_set():
    """For a caller that would rather do something else."""
    driven = served(*[BUSY] * 3)
    with pytest.raises(RefusedError):
        driven.run(ask(QUESTION, driven.patience(inf, max_retries=1)))
    assert driven.pauses == [7]


def test_a_server_that_restarts_is_waited_for():
    """Connections are refused, then a proxy answers in its place, then it is there."""
    driven = served(
        NoAnswerError("refused", sent=False), Answer(502, {}, b"<html>"), answer({"status": "ok"})
    )
    assert driven.run(ask(QUESTION, driven.patience(60))) == {"status": "ok"}
    assert driven.pauses == [0.5, 1]


def test_a_server_that_stays_away_is_given_up():
    """Even without a deadline."""
    driven = served(*[NoAnswerError("refused", sent=False)] * 9)
    with pytest.raises(NoAnswerError, match="refused"):
        driven.run(ask(QUESTION, driven.patience(inf)))
    assert len(driven.sent) == MOST_LOST


def test_what_may_be_done_already_is_not_asked_for_twice():
    """The answer to a POST was lost: the migration may have begun."""
    begin = Ask("POST", "/migrations", is_repeatable=False)
    lost = served(NoAnswerError("lost"))
    with pytest.raises(NoAnswerError):
        lost.run(ask(begin, lost.patience(60)))
    assert len(lost.sent) == 1

    never_sent = served(NoAnswerError("refused", sent=False), answer({"id": 1}))
    assert never_sent.run(ask(begin, never_sent.patience(60))) == {"id": 1}


@pytest.mark.parametrize("page", [b"<html>", b'{"a": '])
def test_what_is_no_json_is_no_answer(page: bytes):
    """Another program listens there, or the answer was cut off."""
    driven = served(Answer(200, {}, page))
    with pytest.raises(NoAnswerError, match="no Plimsoll"):
        driven.run(ask(QUESTION, driven.patience(60, max_retries=0)))


def test_a_redirect_is_a_refusal():
    """It is not followed: a key would go to an address that its owner did not name."""
    driven = served(Answer(301, {"location": "https://elsewhere"}, b""))
    with pytest.raises(RefusedError, match="301"):
        driven.run(ask(QUESTION, driven.patience(60)))
