"""Similarity of class names against scikit-learn, with a real (character n-gram) text embedding through the plug."""

import logging

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from recombine.flips.semantics import Clip, Similarity, class_similarity

NAMES = ["tabby cat", "tiger cat", "persian cat", "pickup truck", "garbage truck", "trailer truck", "acoustic guitar"]


def embed(names):
    """Character n-grams: names that share words lie close together."""
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform(names).toarray()


def test_mean_and_maximum_against_scikit_learn():
    similarity = class_similarity(embed, NAMES)
    cosine = cosine_similarity(embed(NAMES))
    pairs = [cosine[a, b] for a in (0, 3, 4) for b in (0, 3, 4) if a < b]
    assert similarity.of([4, 0, 3]) == (pytest.approx(np.mean(pairs)), pytest.approx(max(pairs)))
    everything = cosine[np.triu_indices(len(NAMES), 1)].mean()
    assert similarity.overall == pytest.approx(everything)
    assert similarity.relative([0, 3, 4]) == pytest.approx(100 * (np.mean(pairs) / everything - 1))


def test_classes_alike_in_meaning_score_above_the_average():
    similarity = class_similarity(embed, NAMES)
    assert similarity.relative([0, 1, 2]) > 50 > 0 > similarity.relative([0, 3, 6])


def test_length_of_an_embedding_does_not_matter():
    vectors = np.random.default_rng(0).normal(size=(5, 3))
    scaled = vectors * np.arange(1, 6)[:, None]
    np.testing.assert_allclose(Similarity(vectors).cosine, Similarity(scaled).cosine)


def test_one_class_has_no_pairs():
    with pytest.raises(ValueError, match="at least two"):
        Similarity(np.eye(3)).of([1])


def test_a_missing_encoder_is_one_line_and_no_failure(caplog, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with caplog.at_level(logging.INFO):
        assert class_similarity(Clip(), NAMES) is None
    assert len(caplog.records) == 1 and "open_clip" in caplog.text
    assert class_similarity(None, NAMES) is None
