"""What weights take, and how many layers of them have room. Pure."""

from dataclasses import dataclass

# The layer that computes and the one that is read ahead.
LAYERS_UNDER_WAY = 2


@dataclass(frozen=True, slots=True)
class WeightSizes:
    """What a model's weights take, and how much of it each of its layers."""

    weights_bytes: int
    layer_bytes: int
    n_layers: int

    def fitting_layers(self, room_bytes: int) -> int:
        """How many layers may stay beside those under way."""
        n_layers = room_bytes // max(1, self.layer_bytes)
        if n_layers >= self.n_layers:
            return self.n_layers
        return max(0, n_layers - LAYERS_UNDER_WAY)
