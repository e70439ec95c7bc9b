"""English words that say nothing of what a text is about.

Fastembed's Qdrant/bm25 reads these 179 words from its english.txt, and Qdrant's server has them in
lib/segment (stop_words/english.rs), both under the Apache License 2.0. They are NLTK's list before
it grew, which names Snowball as its source and carries no licence.
A word with an apostrophe never meets a token, because tokens are split there; it stands here so
that the list is the published one.
"""

_PUBLISHED = """
i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself
yourselves he him his himself she she's her hers herself it it's its itself they them their
theirs themselves what which who whom this that that'll these those am is are was were be been
being have has had having do does did doing a an the and but if or because as until while of at
by for with about against between into through during before after above below to from up down
in out on off over under again further then once here there when where why how all any both
each few more most other some such no nor not only own same so than too very s t can will just
don don't should should've now d ll m o re ve y ain aren aren't couldn couldn't didn didn't
doesn doesn't hadn hadn't hasn hasn't haven haven't isn isn't ma mightn mightn't mustn mustn't
needn needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won won't wouldn wouldn't
"""
ENGLISH_STOP_WORDS = frozenset(_PUBLISHED.split())
