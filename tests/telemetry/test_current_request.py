"""The stages that a request keeps: how many, and how exact."""

from concurrent.futures import ThreadPoolExecutor

from plimsoll.telemetry.current_request import MOST_STAGES, CurrentRequest, Stage


def test_stages_are_kept_in_the_order_in_which_they_ended():
    """With name, start and end, as a trace shows them."""
    request = CurrentRequest("mine")
    request.add_stage("queue", 1.0, 3.0)
    request.add_stage("encode", 3.0, 7.5)

    times = request.stage_times()
    assert times.kept == (Stage("queue", 1.0, 3.0), Stage("encode", 3.0, 7.5))
    assert times.total_s == {"queue": 2.0, "encode": 4.5}
    assert times.n_left_out == 0


def test_of_a_long_request_some_stages_are_kept_and_all_are_summed():
    """A list of thousands must not fill memory, and its total must not stop at the bound."""
    request = CurrentRequest("mine")
    for n in range(MOST_STAGES + 7):
        request.add_stage("encode", n, n + 0.25)
        request.add_stage("pool", n, n + 0.5)

    times = request.stage_times()
    n_stages = MOST_STAGES + 7
    assert len(times.kept) == MOST_STAGES
    assert times.n_left_out == 2 * n_stages - MOST_STAGES
    assert times.total_s == {"encode": 0.25 * n_stages, "pool": 0.5 * n_stages}


def test_what_was_read_does_not_change():
    """A reply that is being written must not change under its writer."""
    request = CurrentRequest("mine")
    request.add_stage("encode", 0.0, 1.0)
    before = request.stage_times()
    request.add_stage("encode", 1.0, 2.0)

    assert before.total_s == {"encode": 1.0}
    assert len(before.kept) == 1


def test_no_stage_is_lost_between_threads():
    """The engine's thread and the event loop note stages of one request."""
    request = CurrentRequest("mine")

    def note() -> None:
        for _ in range(5000):
            request.add_stage("encode", 0.0, 1.0)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(note) for _ in range(4)]:
            done.result()

    times = request.stage_times()
    assert times.total_s == {"encode": 20_000.0}
    assert len(times.kept) + times.n_left_out == 20_000
