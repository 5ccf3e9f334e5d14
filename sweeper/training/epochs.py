"""Training images as a pure function of (seed, epoch, index): no augmentation depends on what happened before.

Ultralytics draws augmentations from global random states and mixes images from a buffer of those seen last; a stopped
and resumed run, or one with another number of loader processes, sees other pictures. Here every sample re-seeds.
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

from sweeper.training import models  # noqa: F401  before Ultralytics

# isort: split
from ultralytics.data.augment import Albumentations, Compose
from ultralytics.data.build import InfiniteDataLoader
from ultralytics.data.dataset import DATASET_CACHE_VERSION, YOLODataset
from ultralytics.data.utils import load_dataset_cache_file

Image = tuple[np.ndarray, tuple[int, int], tuple[int, int]]  # pixels, (height, width) before and after resizing


def reseed(*key: int) -> None:
    """Set the random states of python, numpy and torch to a hash of ``key``; some 10 microseconds."""
    value = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    torch.default_generator.manual_seed(value)  # torch.manual_seed asks every kind of device: ten times slower
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # not so in loader processes
        torch.cuda.manual_seed(value)


class ImageCache:
    """The first images of a data set, decoded and resized, in at most ``limit`` bytes.

    The memory is anonymous and shared: loader processes, being forked, use it together, so that an image is decoded
    once. ``bytes``: the size that it may grow to.
    """

    def __init__(self, images: int, image_bytes: int, limit: int) -> None:
        self._slots = min(images, limit // image_bytes)
        self.bytes = self._slots * image_bytes
        self._pixels = _shared(self._slots, image_bytes)
        self._sizes = _shared(self._slots, 20).view(np.int32)  # bytes, height and width before and after resizing
        self._lock = multiprocessing.get_context("fork").Lock()  # who sees an image's sizes sees its pixels

    def get(self, index: int) -> Image | None:
        """A copy (augmentations write in place) of an image that was put here."""
        if index >= self._slots:
            return None
        with self._lock:
            count, *sizes = self._sizes[index].tolist()
        if not count:
            return None
        pixels = self._pixels[index, :count].reshape(*sizes[2:], -1).copy()
        return pixels, (sizes[0], sizes[1]), (sizes[2], sizes[3])

    def put(self, index: int, image: Image) -> None:
        """Keep a copy, if there is a place for it. Two processes may do so at once: the bytes are the same."""
        if index < self._slots:
            pixels, original, resized = image
            self._pixels[index, : pixels.nbytes] = pixels.reshape(-1)
            with self._lock:
                self._sizes[index] = (pixels.nbytes, *original, *resized)


def _shared(rows: int, columns: int) -> np.ndarray:
    """Zeros, uint8 (rows, columns), which forked processes see and change together; untouched pages take no memory."""
    return np.frombuffer(mmap.mmap(-1, max(rows * columns, 1)), np.uint8)[: rows * columns].reshape(rows, columns)


class ExactDataset(YOLODataset):  # type: ignore[misc]
    """Ultralytics' data set, without history. Training items are asked for by (epoch, index), others by index.

    ``mosaic_epochs``: mosaic, mixup, cutmix and copy-paste are on in epochs below it (None: in all). It counts from the
    start of the run, so that a longer run begins as a shorter one.
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
        """As Ultralytics', without mosaic's buffer and without Albumentations (draws numbers if merely installed)."""
        self.cache = "ram"  # read by Mosaic and load_image: pick from all images, keep none in a buffer
        transforms = super().build_transforms(hyp)
        transforms.transforms = [t for t in transforms.transforms if not isinstance(t, Albumentations)]
        return transforms

    def __getitem__(self, key: Any) -> dict[str, Any]:
        if not self.augment:
            item: dict[str, Any] = self.transforms(self.get_image_and_label(key))
            return item
        epoch, index = key
        reseed(self._seed, epoch, index)
        is_open = self._mosaic_epochs is None or epoch < self._mosaic_epochs
        item = (self._with_mosaic if is_open else self._without_mosaic)(self.get_image_and_label(index))
        return item | {"epoch": epoch}

    def load_image(self, i: int, rect_mode: bool = True, resize_short: bool = False) -> Image:
        """The image, decoded and resized, from the cache if it is there."""
        image = self.images.get(i)
        if image is None:
            image = super().load_image(i, rect_mode, resize_short)
            self.images.put(i, image)
        return image

    def _load_or_scan_cache(self, cache_path: Path, cache_hash: str) -> tuple[dict[str, Any], bool]:
        """As Ultralytics', with the file put in place at once: other processes read it at the same time."""
        try:
            cached = load_dataset_cache_file(cache_path)
            if (cached["version"], cached["hash"]) == (DATASET_CACHE_VERSION, cache_hash):
                return cached, True
        except Exception:  # missing or cut short; a pickle raises anything
            pass
        aside = cache_path.with_suffix(f".{os.getpid()}.cache")
        scanned = self.cache_labels(aside)
        if aside.exists():  # it is not where the folder is read-only
            aside.replace(cache_path)
        return scanned, False


class EpochSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """(epoch, index) pairs of one epoch after the other from ``epoch`` on, each epoch in an order of its own."""

    def __init__(self, images: int, seed: int, shuffled: bool) -> None:
        self.images, self.seed, self.shuffled, self.epoch = images, seed, shuffled, 0

    def __len__(self) -> int:
        return self.images

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return iter([(epoch, int(index)) for index in self.order(epoch)])

    def order(self, epoch: int) -> np.ndarray:
        """The images of ``epoch`` in order, int64 (images,)."""
        if not self.shuffled:
            return np.arange(self.images)
        return np.random.default_rng([self.seed, epoch]).permutation(self.images)


def epoch_loader(dataset: ExactDataset, *, batch: int, seed: int, workers: int, pin_memory: bool) -> InfiniteDataLoader:
    """Batches of consecutive epochs; loader processes prepare the next epoch's while this one is evaluated.

    Rectangular batches of several shapes keep their order, as in Ultralytics.
    """
    shuffled = not dataset.rect or bool((dataset.batch_shapes == dataset.batch_shapes[0]).all())
    return InfiniteDataLoader(
        dataset,
        batch_size=min(batch, len(dataset)),
        sampler=EpochSampler(len(dataset), seed, shuffled),
        num_workers=min(workers, -(-len(dataset) // batch)),
        multiprocessing_context="fork" if workers else None,  # shares the image cache
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        collate_fn=dataset.collate_fn,
    )
