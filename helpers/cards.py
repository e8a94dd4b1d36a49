"""What NVIDIA's cards have: the memory that 'nvidia-smi' reports, and the bandwidth of their data sheets."""

from __future__ import annotations

from typing import NamedTuple

MiB = 2**20
USABLE = 0.95  # of a card's memory: the driver, and gaps between what is allocated, keep the rest


class Card(NamedTuple):
    """A card.

    Attributes:
        memory: bytes in all, as 'nvidia-smi' reports them (total memory).
        bandwidth: bytes per second, by NVIDIA's data sheet of the card; for A100 80 GB and H100 that of the SXM form.
    """

    memory: int
    bandwidth: float


CARDS = {
    "RTX 3060": Card(12288 * MiB, 360e9),
    "T4": Card(15360 * MiB, 320e9),  # product brief PB-09256-001: 'up to'
    "L4": Card(23034 * MiB, 300e9),
    "RTX 4090": Card(24564 * MiB, 1008e9),
    "A100 40 GB": Card(40960 * MiB, 1555e9),
    "A100 80 GB": Card(81920 * MiB, 2039e9),
    "H100": Card(81559 * MiB, 3350e9),
    "H200": Card(143771 * MiB, 4800e9),
}
