"""From the bytes of an image file to RGB pixels: orientation, transparency, and formats of more than eight bits."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from recombine.core.errors import ConfigError

__all__ = ["Decoding", "decode", "is_deep", "open_image", "orientation", "shown"]

ORIENTATION = 0x0112  # EXIF tag
ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, MemoryError)
"""What Pillow raises for files that it cannot read."""


@dataclass(frozen=True)
class Decoding:
    """How image files become pixels; part of the identity of what is stored."""

    background: str | None = "white"
    """What shows through transparent pixels; None: their own colours."""
    exif_orientation: bool = True
    """Whether images are turned as the camera was held."""
    pixel_range: tuple[float, float] | None = None
    """Values that become 0 and 255, of images with more than eight bits; None: 16 bits whole, others not at all."""

    def __str__(self) -> str:
        kept = "" if self.pixel_range is None else "-{:g}..{:g}".format(*self.pixel_range)
        return f"{self.background or 'opaque'}{'-upright' * self.exif_orientation}{kept}"

    def pixels(self, image: Image.Image) -> np.ndarray:
        """RGB uint8 [H, W, 3] of an opened image."""
        if self.exif_orientation and orientation(image) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        if is_deep(image):
            image = Image.fromarray(self._scaled(image))
        elif self.background and image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, self.background), image)
        return np.array(image.convert("RGB"))

    def _scaled(self, image: Image.Image) -> np.ndarray:
        low, high = self.pixel_range or ((0, 65535) if image.mode.startswith("I;16") else (0, 0))
        if low == high:
            raise ConfigError("its pixels have no known range: dataset.pixel_range=[<black>,<white>], such as [0,1]")
        values = np.nan_to_num(np.asarray(image, np.float64), nan=low)
        return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def is_deep(image: Image.Image) -> bool:
    """Whether an image has grey levels of more than eight bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def orientation(image: Image.Image) -> int:
    """How the camera was held, as EXIF numbers it; 1, upright, where nothing is said."""
    with suppress(*ERRORS, TypeError, KeyError):  # metadata may be damaged in an image that is not
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def open_image(data: bytes, where: str) -> Image.Image:
    """An image whose pixels are not yet read; ConfigError naming it if the bytes are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about odd but readable metadata
            return Image.open(io.BytesIO(data))
    except ERRORS as error:
        raise unreadable(data, where, error) from error


def decode(item: np.ndarray | bytes, where: str, decoding: Decoding = Decoding()) -> np.ndarray:
    """RGB pixels, uint8 [H, W, 3]; grey is repeated.

    Raises ConfigError naming the sample if the bytes are no whole image.
    """
    if isinstance(item, np.ndarray):
        return np.ascontiguousarray(np.broadcast_to(item[..., None], (*item.shape, 3)) if item.ndim == 2 else item)
    image = open_image(item, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decoding.pixels(image)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except ERRORS as error:
        raise unreadable(item, where, error) from error


def unreadable(data: bytes, where: str, error: BaseException) -> ConfigError:
    """What is wrong with an image file, in a sentence."""
    if not data:
        return ConfigError(f"{where} is empty: replace or remove it")
    if data.startswith(b"version https://git-lfs"):
        return ConfigError(f"{where} is a pointer of Git LFS, not the image: git lfs pull")
    if data.lstrip()[:1] == b"<" and b"html" in data[:200].lower():
        return ConfigError(f"{where} is a web page, not an image: replace or remove it")
    if isinstance(error, Image.DecompressionBombError):
        limit = f"{2 * (Image.MAX_IMAGE_PIXELS or 0):,}"
        return ConfigError(f"{where} has more than the {limit} pixels that an image may have: shrink or remove it")
    reason = "it is no image of a known format" if "cannot identify" in str(error) else str(error)
    return ConfigError(f"{where} is not a readable image ({reason}): replace or remove it")


def shown(name: str) -> str:
    """A file name that can be printed: bytes that are no UTF-8 as \\xNN."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
