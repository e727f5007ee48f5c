"""JPEGs decoded by the device that computes; nvJPEG through torchvision, on a GPU.

Shapes: B images of a batch, S side of the output in pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from shardsieve.data.location import ShardPath
from shardsieve.shards.images import UNREADABLE, opened, quiet_pillow, turned_by
from shardsieve.shards.pixels import Fit, fast_decoder
from shardsieve.shards.prefetch import Batch, ImageBatches, Rows

# How a tensor (3, H, W) is turned as Pillow turns an image: quarter turns against the clock, then
# mirrored left to right or not.
_TURNS = {
    Image.Transpose.FLIP_LEFT_RIGHT: (0, True),
    Image.Transpose.ROTATE_180: (2, False),
    Image.Transpose.FLIP_TOP_BOTTOM: (2, True),
    Image.Transpose.ROTATE_90: (1, False),
    Image.Transpose.ROTATE_270: (3, False),
    Image.Transpose.TRANSPOSE: (3, True),
    Image.Transpose.TRANSVERSE: (1, True),
}


class DeviceBatches(ImageBatches):
    """Batches whose JPEGs are decoded and resized where the network runs.

    What the device's decoder refuses, and what is no JPEG, is decoded on the CPU image by image.
    """

    def __init__(
        self,
        paths: Sequence[ShardPath],
        shard_N: npt.NDArray[np.int32],
        offset_N: npt.NDArray[np.int64],
        size_N: npt.NDArray[np.int64],
        *,
        fit: Fit,
        device: torch.device,
        key_of: Callable[[int], str],
    ) -> None:
        """Takes the columns of the index, what comes out, and where."""
        decoder = fast_decoder(fit)
        super().__init__(paths, shard_N, offset_N, size_N, decoder, side=fit.side, key_of=key_of)
        self._fit = fit
        self._device = device

    def __call__(self, rows: Rows) -> Batch:
        """Decodes the images of some rows; the pixels lie on the device, ready for any stream."""
        begun = time.perf_counter()
        data = {row: self.read(row) for row in rows.tolist()}
        loaded = time.perf_counter()
        with quiet_pillow(), self._own_stream():
            done = self._on_device({row: turn for row in data if (turn := _turn(data[row]))}, data)
            refused = []
            for row in data:
                if row in done:
                    continue
                try:
                    pixels = torch.from_numpy(self._decode(row, data[row]))
                except ValueError as error:
                    refused.append((row, str(error)))
                else:
                    done[row] = pixels.to(self._device).float()
            good = [row for row in data if row in done]
            pixels = self._stacked([done[row] for row in good])
            if self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
        self.clock.add(read_s=loaded - begun, decode_s=time.perf_counter() - loaded)
        return Batch(pixels, np.array(good, np.int64), refused)

    def _stacked(self, images: list[torch.Tensor]) -> torch.Tensor:
        """Levels as f32 to u8, all at once: a launch costs more than such a small image."""
        if not images:
            shape = (0, 3, self._fit.side, self._fit.side)
            return torch.empty(shape, dtype=torch.uint8, device=self._device)
        levels = torch.stack(images).round_().clamp_(0, 255)
        return levels.to(torch.uint8, memory_format=torch.channels_last)

    def _own_stream(self) -> AbstractContextManager[Any]:
        """A stream of each thread, so that it does not wait for the network.

        Always the same: what torch keeps of the memory of one stream serves no other.
        """
        if self._device.type != "cuda":
            return nullcontext()
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._local.stream)

    def _on_device(
        self, turns: dict[int, tuple[int, bool]], data: dict[int, bytes]
    ) -> dict[int, torch.Tensor]:
        from torchvision.io import ImageReadMode, decode_jpeg

        def decoded(rows: list[int]) -> list[torch.Tensor]:
            # A copy: torch wants memory that may be written to.
            encoded = [torch.frombuffer(bytearray(data[row]), dtype=torch.uint8) for row in rows]
            images: list[torch.Tensor] = decode_jpeg(
                encoded, mode=ImageReadMode.RGB, device=self._device
            )
            return images

        rows = list(turns)
        if not rows:
            return {}
        try:
            images = dict(zip(rows, decoded(rows), strict=True))
        except RuntimeError:
            # One bad image refuses the whole list: one by one, so that only that one is left over.
            images = {}
            if self._device.type == "cuda":
                # The decoder has a stream of its own, and may still write where the next will lie.
                torch.cuda.synchronize(self._device)
            for row in rows:
                try:
                    images[row] = decoded([row])[0]
                except RuntimeError:
                    continue
        return {row: self._resized(image, turns[row]) for row, image in images.items()}

    def _resized(self, image: torch.Tensor, turn: tuple[int, bool]) -> torch.Tensor:
        # A turn of zero would be a copy.
        image = torch.rot90(image, turn[0], (1, 2)) if turn[0] else image
        image = image.flip(2) if turn[1] else image
        height, width = image.shape[1:]
        edge, side = self._fit.edge, self._fit.side
        tall, wide = (int(edge * length / min(height, width) + 1e-9) for length in (height, width))
        whole = functional.interpolate(
            image[None].float(), size=(tall, wide), mode=self._fit.filter, antialias=True
        )
        top, left = round((tall - side) / 2.0), round((wide - side) / 2.0)
        return whole[0, :, top : top + side, left : left + side]


def _turn(data: bytes) -> tuple[int, bool] | None:
    """Returns how a JPEG must be turned, None for what the device's decoder should not get."""
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        image = opened(data)
        method = turned_by(image)
    except UNREADABLE:
        return None
    if image.mode not in ("RGB", "L"):
        return None
    return (0, False) if method is None else _TURNS[method]
