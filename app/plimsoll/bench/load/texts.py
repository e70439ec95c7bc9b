"""Texts to send: given ones, or made of words that are one token each."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

# Each is one token of BERT's vocabulary, so that words count as tokens.
COMMON_WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from "
    "or had an they which one you were all her she there would their we him been has when who "
    "will no more if out so up said what its about than into them can only other time new some "
    "could these two may first then do any like my now over such our man me even most made after "
    "also did many off before must well back through years much where your way down should because "
    "long each just state those people too mr how little good world make very year still see own "
    "work men day get here old life both between being under three never know same last another "
    "while us might great since against go came right states used take house use again place "
    "around water ship sea load line weight deep hold hull mark"
)
WORDS = tuple(COMMON_WORDS.split())
GENERATED_WORDS = (3, 40)


@dataclass(frozen=True)
class TextSource:
    """Where texts are drawn from; without texts of its own it makes some up."""

    texts: Sequence[str] = ()

    def draw(self, random: Random) -> str:
        """One text of any length that the source has."""
        if self.texts:
            return random.choice(self.texts)
        return words(random, random.randint(*GENERATED_WORDS))


def words(random: Random, n_words: int) -> str:
    """A text of so many words."""
    return " ".join(random.choices(WORDS, k=n_words))
