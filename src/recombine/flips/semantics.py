"""Areas of expertise: are the classes that hold the complementary knowledge alike in meaning?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Clip", "Similarity", "class_similarity"]

log = logging.getLogger(__name__)

TextEncoder = Callable[[list[str]], ArrayLike]
"""Class names to their embeddings [C, D]."""


class Clip:
    """CLIP's text encoder through open_clip; class names are embedded as they are, without a prompt around them."""

    def __init__(self, architecture: str = "ViT-B-32-quickgelu", weights: str = "openai") -> None:
        """`weights` is one of open_clip's tags or the path of a local file."""
        self.architecture, self.weights = architecture, weights

    def __call__(self, names: list[str]) -> NDArray[np.float32]:
        """Embed names as float32 [C, D]; ImportError or OSError where the package or the weights are missing."""
        import open_clip
        import torch

        model = open_clip.create_model(self.architecture, pretrained=self.weights).eval()
        tokenize = open_clip.get_tokenizer(self.architecture)
        with torch.inference_mode():
            parts = [model.encode_text(tokenize(names[i : i + 256])) for i in range(0, len(names), 256)]
        return torch.cat(parts).float().numpy()


class Similarity:
    """Cosine similarity of classes by the embeddings [C, D] of their names."""

    def __init__(self, embeddings: ArrayLike) -> None:
        vectors = np.asarray(embeddings, dtype=np.float64)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.cosine = vectors @ vectors.T
        self.overall = self.of(np.arange(len(vectors)))[0]
        """Mean over all pairs of classes; the authors write 0.61 for ImageNet's names."""

    def of(self, classes: Sequence[int] | NDArray) -> tuple[float, float]:
        """Mean and maximum over the pairs of at least two classes."""
        if len(classes) < 2:
            raise ValueError(f"similarity needs at least two classes, got {len(classes)}")
        pairs = self.cosine[np.ix_(np.asarray(classes), np.asarray(classes))][np.triu_indices(len(classes), k=1)]
        return float(pairs.mean()), float(pairs.max())

    def relative(self, classes: Sequence[int] | NDArray) -> float:
        """How much more alike these classes are than all classes, percent of the overall mean."""
        return 100.0 * (self.of(classes)[0] - self.overall) / self.overall


def class_similarity(encoder: TextEncoder | None, names: Sequence[str]) -> Similarity | None:
    """The similarity of named classes, or None with one line in the log where no text encoder is available."""
    if encoder is None or len(names) < 2:
        return None
    try:
        return Similarity(encoder(list(names)))
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        log.info("Semantic similarity of the classes is left out: no text encoder (%s).", reason)
        return None
