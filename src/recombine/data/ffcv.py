"""The default loader: FFCV reads, decodes, cuts and collates in compiled code; the rest is shared.

FFCV's own random operations draw from unseeded numba state, its decoder uses a fast approximate JPEG transform (up to
11 grey levels off), its thread waits for ever when a batch fails, and it changes torch's thread count. Hence a separate
decoder, an epoch thread around FFCV's, and no FFCV augmentation. Rectangles and data sizes travel in FFCV's sample
table, an argument of the compiled code: anything captured by the compiled code would be frozen at its first value.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from functools import cache, cached_property
from queue import Empty
from typing import Any

import numba
import numpy as np
from torch import Tensor

from recombine.core.errors import RecombineError
from recombine.data.crop import center_square
from recombine.data.loading import BatchLoader
from recombine.data.threads import keep_torch_threads
from recombine.data.write import ensure

with keep_torch_threads():
    import ffcv
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.libffcv import resize_crop
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.transforms import ToTensor

__all__ = ["FFCVLoader"]

TABLE = np.dtype(
    [("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8"), ("bytes", "<u8"), ("part", "<i8", 5)]
)
"""FFCV's row of an image with the length of its data and the part to cut (top, left, height, width, mirrored)."""
RGB = 0  # TJPF_RGB
SECONDS = 1.0

_library = ctypes.CDLL(ffcv.libffcv.lib._name)  # also reaches libturbojpeg, which it is linked to
_open_decoder, _decode, _close_decoder = (
    getattr(_library, name) for name in ("tjInitDecompress", "tjDecompress2", "tjDestroy")
)
_open_decoder.argtypes, _open_decoder.restype = [], ctypes.c_int64
_decode.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, *5 * [ctypes.c_int32]]
_close_decoder.argtypes = [ctypes.c_int64]


def _set_threads(cls: Any, count: int) -> None:
    """Compiler.set_num_threads without its torch.set_num_threads: the training's threads are not FFCV's business."""
    cls.num_threads = count
    numba.set_num_threads(count)


Compiler.set_num_threads = classmethod(_set_threads)


class FFCVLoader(BatchLoader):
    """One FFCV loader object, compiled once and used for every epoch."""

    def _pixels(self, epoch: int, batches: list[np.ndarray]) -> Generator[Tensor]:
        loader, table = self._loader, self._table.copy()
        if self.crop is not None:
            index = np.arange(len(table))
            heights, widths = (table["f0"][side].astype(np.int64) for side in ("height", "width"))
            table["f0"]["part"] = self.crop.rectangles((self.seed, epoch), index, heights, widths)
        with closing(_Epoch(loader, np.concatenate(batches).astype(np.uint64), table)) as iterator:
            for (images,) in iterator:
                yield images

    @cached_property
    def _loader(self) -> ffcv.Loader:
        path = ensure(self.split)
        rank_batch = -(-self.batch_size // self.world)
        pipelines = {"image": [_CutDecoder(self.size), ToTensor()], "label": None, "index": None}
        threads = min(max(1, self.workers), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
        return ffcv.Loader(str(path), rank_batch, threads, os_cache=True, seed=0, pipelines=pipelines, drop_last=False)

    @cached_property
    def _table(self) -> np.ndarray:
        reader, manager = self._loader.reader, self._loader.memory_manager
        table = np.zeros(len(reader.metadata), [("f0", TABLE)])
        for name in ("mode", "width", "height", "data_ptr"):
            table["f0"][name] = reader.metadata["f0"][name]
        table["f0"]["bytes"] = manager.sizes[np.searchsorted(manager.ptrs, table["f0"]["data_ptr"])]
        heights, widths = (table["f0"][side].astype(np.int64) for side in ("height", "width"))
        table["f0"]["part"] = center_square(heights, widths)
        return table


class _Epoch(EpochIterator):
    """FFCV's producer thread, which passes on its exception instead of dying silently, and can be stopped."""

    def __init__(self, loader: ffcv.Loader, order: np.ndarray, table: np.ndarray) -> None:
        self.failure: BaseException | None = None
        self.table = table
        Compiler.set_num_threads(loader.num_workers)
        super().__init__(loader, order)

    def run_pipeline(self, b_ix, batch_indices, batch_slot, cuda_event):
        self.metadata = self.table
        return super().run_pipeline(b_ix, batch_indices, batch_slot, cuda_event)

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:  # of any kind: it is raised again in the consumer's thread
            self.failure = error

    def __next__(self):
        while True:
            try:
                result = self.output_queue.get(timeout=SECONDS)
            except Empty:
                if self.is_alive():
                    continue
                self._raise_failure()
            if result is None:
                raise StopIteration
            return result[1]

    def _raise_failure(self) -> None:
        if isinstance(self.failure, RecombineError | MemoryError | KeyboardInterrupt):
            raise self.failure
        raise RecombineError(f"reading {self.loader.fname} failed: {self.failure!r}") from self.failure

    def close(self) -> None:
        """Stop the thread, wait for it and give up its buffers."""
        self.terminate_event.set()
        while self.is_alive():
            try:
                self.output_queue.get_nowait()  # makes room for a thread that waits to put its last item
            except Empty:
                self.join(0.01)


class _CutDecoder(SimpleRGBImageDecoder):
    """Decode, cut the table's rectangle and resize it to a square by area averaging."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def declare_state_and_memory(self, previous_state):
        shape, kind = (self.size, self.size, 3), np.dtype("<u1")
        return replace(previous_state, jit_mode=True, shape=shape, dtype=kind), AllocationQuery(shape, kind)

    def generate_code(self) -> Callable:
        kernel = _kernel(Compiler.num_threads > 1)

        def decode(batch_indices, destination, table, storage):
            kernel(batch_indices, destination, table, storage[0])
            return destination[: len(batch_indices)]

        return decode


@numba.njit(nogil=True)
def _mirror(image):
    """Swap left and right of [H, W, 3] in place; compiled, plain loops are faster here than a reversed copy."""
    last = image.shape[1] - 1
    for y in range(image.shape[0]):
        for x in range(image.shape[1] // 2):
            for c in range(3):
                image[y, x, c], image[y, last - x, c] = image[y, last - x, c], image[y, x, c]


@cache
def _kernel(parallel: bool) -> Callable:
    """The compiled loop over a batch, shared by all loaders of the process."""
    each = numba.prange if parallel else range
    resize = numba.njit(nogil=True)(resize_crop)

    def kernel(indices, destination, table, file):
        for k in each(len(indices)):
            row = table[indices[k]]
            height, width = np.int64(row["height"]), np.int64(row["width"])
            data = file[row["data_ptr"] : row["data_ptr"] + row["bytes"]]
            if row["mode"] == 0:
                image = np.empty((height, width, 3), np.uint8)
                decoder = _open_decoder()
                _decode(decoder, data.ctypes.data, data.size, image.ctypes.data, width, 0, height, RGB, 0)
                _close_decoder(decoder)
            else:
                image = data.reshape((height, width, 3))
            top, left, tall, wide, mirrored = row["part"]
            resize(image, top, top + tall, left, left + wide, destination[k])
            if mirrored:
                _mirror(destination[k])

    return numba.njit(parallel=parallel, nogil=True, error_model="numpy")(kernel)
