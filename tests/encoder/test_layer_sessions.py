"""Layers' sessions that open when they are needed; sessions here are words."""

from collections.abc import Callable
from typing import Any

import pytest

from plimsoll.encoder.backends.layer_sessions import LayerPair, LazyLayers

FIRST: Any = ("project 0", "transform 0")


def words(layer: int) -> Any:
    return f"project {layer}", f"transform {layer}"


def layers(
    n_layers: int,
    open_layer: Callable[[int], LayerPair],
    verify: Callable[[int], None] = lambda layer: None,
) -> LazyLayers:
    return LazyLayers(FIRST, n_layers, verify, open_layer)


def test_nothing_opens_before_a_second_layer_is_asked_for():
    """A server that is only sent single texts needs none of them."""
    opened: list[int] = []

    def open_layer(layer: int) -> Any:
        opened.append(layer)
        return words(layer)

    project, transform = layers(4, open_layer).parts()

    assert (project[0], transform[0]) == FIRST
    assert opened == []
    assert project[1] == "project 1"
    assert sorted(opened) == [1, 2, 3]
    assert list(transform) == [f"transform {layer}" for layer in range(4)]
    assert sorted(opened) == [1, 2, 3]


def test_nothing_opens_that_is_damaged():
    """A session reads what it opens over, and would hold it while the damaged file is closed."""

    def verify(layer: int) -> None:
        raise ValueError(f"layer {layer} is damaged")

    project, _ = layers(2, pytest.fail, verify).parts()

    with pytest.raises(ValueError, match="damaged"):
        project[1]


def test_one_layer_can_open_alone():
    """Under a hard limit there is no room for what opening all of them at once reads."""
    opened: list[int] = []

    def open_layer(layer: int) -> Any:
        opened.append(layer)
        return words(layer)

    lazy = layers(4, open_layer)
    project, _ = lazy.parts()

    lazy.open(2)
    lazy.open(2)

    assert project[2] == "project 2"
    assert opened == [2]
    assert 2 in lazy
    assert 1 not in lazy


def test_a_layer_that_would_not_open_is_tried_again():
    """Memory may have been short for a moment; a model must not be lost by that."""
    left = [MemoryError("no memory")]

    def open_layer(layer: int) -> Any:
        if layer == 2 and left:
            raise left.pop()
        return words(layer)

    project, _ = layers(3, open_layer).parts()

    with pytest.raises(MemoryError):
        project[1]
    assert list(project) == ["project 0", "project 1", "project 2"]
