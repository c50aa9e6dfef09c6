"""Amazon reviews of 2023 (Hou et al., 2024): `<category>.jsonl` beside `meta_<category>.jsonl`, packed or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedrec.core.registry import datasets
from fedrec.datasets.amazon import Reviews, ReviewsConfig


@dataclass(frozen=True)
class Amazon2023Config(ReviewsConfig):
    """Configuration of `amazon_2023`."""

    name: Literal["amazon_2023"]


@datasets.register("amazon_2023")
class Amazon2023(Reviews):
    """One category of the 2023 release. An item is a `parent_asin`: its colours and sizes are one product."""

    config_class = Amazon2023Config
    suffix, release = ".jsonl", "2023"
    review = ("user_id", "parent_asin", "timestamp", "rating")
    attributes = ("store", "main_category", "categories", "features", "description")
