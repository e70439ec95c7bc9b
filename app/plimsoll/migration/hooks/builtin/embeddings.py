"""Whether the new vectors are accurate enough, by what the verdict measured."""

from typing import Annotated

from pydantic import Field

from plimsoll.errors import HookError
from plimsoll.migration.hooks.occasion import Occasion
from plimsoll.migration.hooks.records import Answer
from plimsoll.migration.hooks.written import Options


class ValidateEmbeddings(Options):
    """accuracy_threshold: of cosines."""

    accuracy_threshold: Annotated[float, Field(ge=0, le=1)] = 0.99


class EmbeddingValidation:
    """Stops a run whose stored vectors are not what their texts give, or which moved to another
    quantization and left its place.
    """

    def __init__(self, options: ValidateEmbeddings) -> None:
        self._least = options.accuracy_threshold

    async def __call__(self, occasion: Occasion) -> Answer:
        """Look at the verdict."""
        verdict = None if occasion.status is None else occasion.status.counts.migration.verdict
        if verdict is None:
            raise HookError("there is no verdict yet: it looks at one after a run")
        checks = {check["name"]: check["figures"] for check in verdict["checks"]}
        sound, again = checks["sound"], checks["embedded_again"]
        cosines = {"embedded_again": 1 - float(again["greatest_distance"])}
        if "least_cosine" in checks.get("same_model", {}):
            cosines["same_model"] = float(checks["same_model"]["least_cosine"])
        wrong = [
            f"{name}: the least cosine is {cosine:.4f}, below {self._least:g}"
            for name, cosine in cosines.items()
            if cosine < self._least
        ]
        n_wrong = int(sound["n_not_finite"]) + int(sound["n_not_unit"])
        if n_wrong:
            wrong.append(f"{n_wrong} vectors are not finite or not of length 1")
        n = int(again["sampled"])
        n_compared = int(again.get("compared", n))  # which older verdicts do not have
        if n_compared < n or (n == 0 and sound["n_vectors"]):
            wrong.append(f"only {n_compared} of {n} sampled documents could be embedded again")
        return Answer(
            bool(wrong),
            "; ".join(wrong) or f"of {n} documents none has a cosine below {self._least:g}",
            {**cosines, "sampled": n, "not_sound": n_wrong, "threshold": self._least},
        )
