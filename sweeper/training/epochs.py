"""Training images as a pure function of (seed, epoch, index): no augmentation depends on earlier batches.

Ultralytics draws augmentations from global random states and mixes each image with the last loaded ones, so a resumed
run, or one with another number of loader processes, gets other images. Here every sample sets the random states anew.
"""

import hashlib
import mmap
import multiprocessing
import os
import random
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sweeper.training import models  # noqa: F401  imported before Ultralytics, which it isolates

# isort: split
from ultralytics.data.augment import Albumentations, Compose
from ultralytics.data.build import InfiniteDataLoader
from ultralytics.data.dataset import DATASET_CACHE_VERSION, YOLODataset
from ultralytics.data.utils import load_dataset_cache_file

Image = tuple[np.ndarray, tuple[int, int], tuple[int, int]]  # pixels, (height, width) before and after resizing


def reseed(*key: int) -> None:
    """Set the random states of Python, numpy and torch to a hash of ``key``. It takes some 10 microseconds."""
    value = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    torch.default_generator.manual_seed(value)  # torch.manual_seed seeds every kind of device: ten times slower
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # It is not in loader processes.
        torch.cuda.manual_seed(value)


class ImageCache:
    """The first images of a data set, decoded and resized, in at most ``limit`` bytes.

    The memory is anonymous and shared between the forked loader processes, so that an image is decoded once.
    ``bytes``: its size when all images are cached.
    """

    def __init__(self, images: int, image_bytes: int, limit: int) -> None:
        self._count = min(images, limit // image_bytes)
        self.bytes = self._count * image_bytes
        self._pixels = _shared(self._count, image_bytes)
        self._sizes = _shared(self._count, 20).view(np.int32)  # bytes, height and width before and after resizing
        self._lock = multiprocessing.get_context("fork").Lock()  # A process that reads sizes also sees the pixels.

    def get(self, index: int) -> Image | None:
        """A copy of a cached image, because augmentations write in place; None if it is not cached."""
        if index >= self._count:
            return None
        with self._lock:
            count, *sizes = self._sizes[index].tolist()
        if not count:
            return None
        pixels = self._pixels[index, :count].reshape(*sizes[2:], -1).copy()
        return pixels, (sizes[0], sizes[1]), (sizes[2], sizes[3])

    def put(self, index: int, image: Image) -> None:
        """Cache a copy, if the limit allows it. Two processes may do so at once, because they write the same bytes."""
        if index < self._count:
            pixels, original, resized = image
            self._pixels[index, : pixels.nbytes] = pixels.reshape(-1)
            with self._lock:
                self._sizes[index] = (pixels.nbytes, *original, *resized)


def _shared(rows: int, columns: int) -> np.ndarray:
    """Zeros, uint8 (rows, columns), in memory that forked processes share. Pages never written to take no memory."""
    return np.frombuffer(mmap.mmap(-1, max(rows * columns, 1)), np.uint8)[: rows * columns].reshape(rows, columns)


class ExactDataset(YOLODataset):  # type: ignore[misc]
    """Ultralytics' data set without its random history. The key of a training item is (epoch, index), else the index.

    ``mosaic_epochs``: mosaic, mixup, cutmix and copy-paste are on in epochs below it (None: in all). It counts from the
    start of the run, so that a longer run begins exactly as a shorter one.
    """

    def __init__(self, *args: Any, seed: int, mosaic_epochs: int | None, cache_bytes: int, **kwargs: Any) -> None:
        self._seed, self._mosaic_epochs = seed, mosaic_epochs
        super().__init__(*args, **kwargs)
        self.images = ImageCache(self.ni, self.imgsz * self.imgsz * self.channels, cache_bytes)
        self._with_mosaic = self.transforms
        if self.augment:
            closed = copy(kwargs["hyp"])
            closed.mosaic = closed.mixup = closed.cutmix = closed.copy_paste = 0.0
            self._without_mosaic = self.build_transforms(closed)

    def build_transforms(self, hyp: Any) -> Compose:
        """Ultralytics' transforms, without mosaic's buffer and without Albumentations.

        Albumentations draws random numbers as soon as it is installed.
        """
        self.cache = "ram"  # With it, Mosaic picks from all images, and load_image fills no buffer.
        transforms = super().build_transforms(hyp)
        transforms.transforms = [t for t in transforms.transforms if not isinstance(t, Albumentations)]
        return transforms

    def __getitem__(self, key: Any) -> dict[str, Any]:
        if not self.augment:
            item: dict[str, Any] = self.transforms(self.get_image_and_label(key))
            return item
        epoch, index = key
        reseed(self._seed, epoch, index)
        mosaic = self._mosaic_epochs is None or epoch < self._mosaic_epochs
        item = (self._with_mosaic if mosaic else self._without_mosaic)(self.get_image_and_label(index))
        return item | {"epoch": epoch}

    def load_image(self, i: int, rect_mode: bool = True, resize_short: bool = False) -> Image:
        """The image, decoded and resized, from the cache if possible."""
        image = self.images.get(i)
        if image is None:
            image = super().load_image(i, rect_mode, resize_short)
            self.images.put(i, image)
        return image

    def _load_or_scan_cache(self, cache_path: Path, cache_hash: str) -> tuple[dict[str, Any], bool]:
        """Ultralytics' method, but the cache file is renamed into place, because other processes may read it."""
        try:
            cached = load_dataset_cache_file(cache_path)
            if (cached["version"], cached["hash"]) == (DATASET_CACHE_VERSION, cache_hash):
                return cached, True
        except Exception:  # The file is missing or incomplete; an incomplete pickle raises any class.
            pass
        temporary = cache_path.with_suffix(f".{os.getpid()}.cache")
        scanned = self.cache_labels(temporary)
        if temporary.exists():  # In a read-only folder it was not written.
            temporary.replace(cache_path)
        return scanned, False


class EpochSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """The (epoch, index) pairs of ``epoch``, in this epoch's order; each iteration goes on to the next epoch."""

    def __init__(self, images: int, seed: int, shuffled: bool) -> None:
        self.images, self.seed, self.shuffled, self.epoch = images, seed, shuffled, 0

    def __len__(self) -> int:
        return self.images

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return iter([(epoch, int(index)) for index in self.order(epoch)])

    def order(self, epoch: int) -> np.ndarray:
        """The indices of the images in the order of ``epoch``, int64 (images,)."""
        if not self.shuffled:
            return np.arange(self.images)
        return np.random.default_rng([self.seed, epoch]).permutation(self.images)


def epoch_loader(dataset: ExactDataset, *, batch: int, seed: int, workers: int, pin_memory: bool) -> InfiniteDataLoader:
    """A loader of the batches of consecutive epochs; its processes prepare the next epoch while one is evaluated.

    Rectangular batches of several shapes are not shuffled, as in Ultralytics.
    """
    shuffled = not dataset.rect or bool((dataset.batch_shapes == dataset.batch_shapes[0]).all())
    return InfiniteDataLoader(
        dataset,
        batch_size=min(batch, len(dataset)),
        sampler=EpochSampler(len(dataset), seed, shuffled),
        num_workers=min(workers, -(-len(dataset) // batch)),
        multiprocessing_context="fork" if workers else None,  # so that they share the image cache
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        collate_fn=dataset.collate_fn,
    )
