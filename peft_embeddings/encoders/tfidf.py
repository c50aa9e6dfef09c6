"""Bags of words: term frequency times inverse document frequency. Needs no model, so it is the embedded default.

Source: Salton and Buckley (1988), as scikit-learn computes it (smoothed idf, rows of unit length).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le
from pydantic import Strict
from typing_extensions import override

from fedrec.core.errors import ConfigError, DataError
from fedrec.core.registry import MemberConfig, encoders
from peft_embeddings.encoders.base import Arrays, Encoded, Progress, TextEncoder, TextVectors

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer


@dataclass(frozen=True)
class TfidfConfig(MemberConfig):
    """Configuration of `tfidf`.

    Attributes:
        analyzer: `word`, or `char_wb` (characters inside words: for languages whose words change their endings).
        ngrams: Shortest and longest run of words (or characters) that is a term.
        min_df: A term counts if at least this many items have it.
        max_features: Only the most frequent terms are kept (null: all).
        sublinear: Whether a term that occurs t times in one item counts 1 + ln t instead of t.
    """

    name: Literal["tfidf"]
    analyzer: Literal["word", "char_wb"]
    ngrams: Annotated[tuple[Annotated[int, Ge(1), Le(100)], Annotated[int, Ge(1), Le(100)]], Strict(False)]
    min_df: Annotated[int, Ge(1), Le(1_000_000_000)]
    max_features: Annotated[int, Ge(1), Le(100_000_000)] | None
    sublinear: bool


@encoders.register("tfidf")
class TfidfEncoder(TextEncoder):
    """Sparse vectors [items, terms]: memory follows the words in the texts, not items times terms."""

    config_class = TfidfConfig
    config: TfidfConfig

    @override
    def fingerprint(self) -> str:
        return json.dumps([dataclasses.asdict(self.config), version("scikit-learn")])

    @override
    def encode(self, sentences: Sequence[str], progress: Progress) -> TextVectors:
        return self.fit(sentences, progress).vectors

    @override
    def fit(self, sentences: Sequence[str], progress: Progress) -> Encoded:
        from scipy.sparse import csr_array

        config = self.config
        if config.ngrams[0] > config.ngrams[1]:
            raise ConfigError([f"encoder.ngrams={list(config.ngrams)}: expected [shortest, longest]"])
        described = sum(1 for sentence in sentences if sentence.strip())
        if config.min_df > described:
            raise DataError(
                f"encoder.min_df={config.min_df}: only {described} of {len(sentences)} items have any text, "
                "so no term can be frequent enough; lower encoder.min_df"
            )
        vectorizer = self._vectorizer(min_df=config.min_df, max_features=config.max_features)
        progress("tf-idf", 0, len(sentences))
        try:
            vectors = csr_array(vectorizer.fit_transform(sentences))
        except ValueError as error:
            # scikit-learn's word for "no term is left": by then all of our own arguments are known to be right.
            raise DataError(
                f"encoder=tfidf: the {described} item texts have no term that at least {config.min_df} items share "
                f"(scikit-learn: {error}); lower encoder.min_df, or set encoder.analyzer=char_wb if the texts are not "
                "separated into words of two or more letters"
            ) from error
        progress("tf-idf", len(sentences), len(sentences))
        # No term has a line break in it: it is made of words, or of characters with single spaces.
        terms = "\n".join(vectorizer.get_feature_names_out())
        return Encoded(vectors, {"terms": np.frombuffer(terms.encode(), dtype=np.uint8), "idf": vectorizer.idf_})

    @override
    def encode_new(self, sentences: Sequence[str], learned: Arrays, progress: Progress) -> TextVectors:
        from scipy.sparse import csr_array

        vectorizer = self._vectorizer(vocabulary=learned["terms"].tobytes().decode().split("\n"))
        vectorizer.idf_ = learned["idf"]
        return csr_array(vectorizer.transform(sentences))

    def _vectorizer(self, **settings: Any) -> TfidfVectorizer:
        from sklearn.feature_extraction.text import TfidfVectorizer

        config = self.config
        return TfidfVectorizer(
            analyzer=config.analyzer,
            ngram_range=config.ngrams,
            sublinear_tf=config.sublinear,
            dtype=np.float32,
            **settings,
        )
