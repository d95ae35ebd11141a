"""The `emit` section of a pipeline file: output formats."""

from typing import Annotated, Literal

from pydantic import Field

from capfilt.config.yaml_file import ConfigModel


class EmitParquet(ConfigModel):
    """`data/train-*.parquet` in the layout of `datasets`: one row per kept pair."""

    format: Literal["parquet"]
    rows_per_file: int = Field(default=10_000, ge=1)
    """Pairs per file; the last file may have fewer."""


class EmitWebDataset(ConfigModel):
    """`webdataset/*.tar`: key.jpg (the original file), key.txt, key.json."""

    format: Literal["webdataset"]
    rows_per_file: int = Field(default=10_000, ge=1)
    """Pairs per tar; the last tar may have fewer."""


class EmitBlipJson(ConfigModel):
    """`blip_json/`: one list each of web, synthetic and human texts, like the lists that BLIP released."""

    format: Literal["blip_json"]
    link: Literal["image", "url"] = "image"
    """image: image files are written too. url: entries {"url", "caption"}; texts without a url are left out."""


class EmitPairs(ConfigModel):
    """`pairs/pairs.parquet`: uids and texts, no images."""

    format: Literal["pairs"]


EmitFormat = Annotated[EmitParquet | EmitWebDataset | EmitBlipJson | EmitPairs, Field(discriminator="format")]
