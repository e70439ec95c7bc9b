"""What a migration does about refusals and about texts that cannot be embedded."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from plimsoll.corpora.patient_embedder import (
    MOST_ATTEMPTS,
    QUERIES_AT_ONCE,
    DocumentVectors,
    PatientEmbedder,
)
from plimsoll.corpora.records import Space, StoredDocument
from plimsoll.errors import (
    EncodeError,
    EncodeMemoryError,
    ModelError,
    ModelLoadingError,
    QueueFullError,
    SpaceMismatchError,
    TooLargeError,
)
from plimsoll.policy.priority import Priority
from plimsoll.serving.tasks import Embeddings, EmbedTask, TextFailure
from tests.fakes import fake_traits

SPACE = Space("v1:made-up", 2, "made-up")


class MadeUpService:
    """Answers each text by its length, unless `answer` has something else to say."""

    def __init__(self, answer: Callable[[Sequence[str]], str | None]) -> None:
        self.tasks: list[EmbedTask] = []
        self.fingerprint = SPACE.fingerprint
        self._answer = answer

    async def embed_dense(self, task: EmbedTask, permit: Any) -> Embeddings:
        self.tasks.append(task)
        failing = self._answer(task.texts)
        answer = Embeddings(fake_traits(), task.input_type, 2, self.fingerprint, [])
        answer.n_tokens = len(task.texts)
        for index, text in enumerate(task.texts):
            if text == failing:
                answer.failures.append(TextFailure(index, "non_finite", "NaN"))
            answer.vectors.append(None if text == failing else np.full(2, len(text), np.float32))
        return answer


class MadeUpPermit:
    """One that counts whether it was left."""

    def __init__(self, left: list[None]) -> None:
        self._left = left

    def leave(self) -> None:
        self._left.append(None)


class MadeUpGate:
    """Gives permits."""

    def __init__(self) -> None:
        self.left: list[None] = []

    def permit(self) -> MadeUpPermit:
        return MadeUpPermit(self.left)


class Scene:
    """An embedder over a made-up service, the seconds that it waited and what it told."""

    def __init__(self, answer: Callable[[Sequence[str]], str | None]) -> None:
        self.service, self.gate = MadeUpService(answer), MadeUpGate()
        self.waits_s: list[float] = []
        self.told: list[str | None] = []

        async def pause(seconds: float) -> None:
            self.waits_s.append(seconds)

        self.embedder = PatientEmbedder(
            self.service,  # type: ignore[arg-type]
            self.gate,  # type: ignore[arg-type]
            "ships",
            SPACE,
            self.told.append,
            pause,
        )

    def embed(self, *texts: str) -> DocumentVectors:
        documents = [
            StoredDocument(row, f"d{row}", text, "{}", b"") for row, text in enumerate(texts, 1)
        ]
        return asyncio.run(self.embedder.embed_documents(documents))


def refusing(*errors: Exception) -> Callable[[Sequence[str]], None]:
    """Refuse with each of these, one a time, then answer."""
    left = list(errors)

    def answer(texts: Sequence[str]) -> None:
        if left:
            raise left.pop(0)

    return answer


def test_a_refusal_is_waited_out_as_long_as_it_asks_and_is_shown():
    """The run stands back for live requests and for memory, and its status says why."""
    scene = Scene(
        refusing(
            QueueFullError("the queue is full", retry_after_s=7),
            ModelLoadingError("being made ready", retry_after_s=5),
        )
    )
    found = scene.embed("ship", "sea")

    assert scene.waits_s == [7, 5]
    assert scene.told == ["the queue is full", "being made ready", None]
    assert {row: vector[0] for row, vector in found.vectors.items()} == {1: 4, 2: 3}
    assert len(scene.gate.left) == len(scene.service.tasks) == 3
    assert {task.priority for task in scene.service.tasks} == {Priority.BULK}
    assert {task.dimensions for task in scene.service.tasks} == {2}


def test_a_text_that_fails_is_tried_again_and_then_left_out():
    scene = Scene(lambda texts: "poison")
    found = scene.embed("ship", "poison", "sea")

    assert set(found.vectors) == {1, 3}
    assert found.failures == {2: ("non_finite: NaN", MOST_ATTEMPTS)}
    assert [len(task.texts) for task in scene.service.tasks] == [3, 1, 1]


def test_a_text_that_fails_once_has_its_vector():
    n_calls = 0

    def answer(texts: Sequence[str]) -> str | None:
        nonlocal n_calls
        n_calls += 1
        return "flaky" if n_calls == 1 else None

    found = Scene(answer).embed("ship", "flaky")

    assert (set(found.vectors), found.failures) == ({1, 2}, {})
    assert found.n_tokens == 3  # two of the list, which failed for one, and that again


@pytest.mark.parametrize(
    ("error", "n_attempts"),
    [
        (EncodeError("the engine"), MOST_ATTEMPTS),
        (EncodeMemoryError("no memory"), MOST_ATTEMPTS),
        (TooLargeError("too large"), 1),  # for an idle server, so that trying again is no use
    ],
)
def test_a_text_that_fails_its_whole_list_is_found_among_its_neighbours(
    error: Exception, n_attempts: int
):
    """One text that the engine cannot do must not keep the other documents from moving."""

    def answer(texts: Sequence[str]) -> None:
        if "poison" in texts:
            raise error

    scene = Scene(answer)
    found = scene.embed(*"abcde", "poison", *"fg")

    assert set(found.vectors) == {1, 2, 3, 4, 5, 7, 8}
    assert found.failures == {6: (str(error), n_attempts)}
    alone = [task for task in scene.service.tasks if task.texts == ["poison"]]
    assert len(alone) == n_attempts


def test_a_text_that_is_found_too_large_when_it_is_tried_again_is_left_out_at_once():
    scene = Scene(refusing(EncodeError("the engine"), TooLargeError("too large")))

    assert scene.embed("ship").failures == {1: ("too large", 2)}
    assert len(scene.service.tasks) == 2


def test_a_model_that_cannot_be_used_ends_the_run():
    """Waiting does not mend it."""
    scene = Scene(refusing(ModelError("no such file")))
    with pytest.raises(ModelError, match="no such file"):
        scene.embed("ship")
    assert len(scene.gate.left) == 1


def test_vectors_of_another_space_are_never_taken():
    """The model's file was changed under the migration."""
    scene = Scene(lambda texts: None)
    scene.service.fingerprint = "v1:another"
    with pytest.raises(SpaceMismatchError):
        scene.embed("ship")


@pytest.mark.parametrize("error", [TooLargeError, EncodeError])
def test_one_query_that_cannot_be_embedded_leaves_the_others_their_vectors(
    error: type[TooLargeError | EncodeError],
):
    """A judged query that is too long must not stop a migration at its end."""

    def answer(texts: Sequence[str]) -> None:
        if "too long" in texts:
            raise error("no room for it")

    scene = Scene(answer)
    queries = ["query"] * 70 + ["too long"] + ["query"] * 70
    found = asyncio.run(scene.embedder.embed_queries(queries))
    assert [place for place, vector in enumerate(found) if vector is None] == [70]
    assert len(found) == len(queries)
    assert max(len(task.texts) for task in scene.service.tasks) == QUERIES_AT_ONCE
    assert {task.input_type for task in scene.service.tasks} == {"search_query"}
