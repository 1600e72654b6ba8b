"""Marks on fields that only a CRD's schema has a word for, such as the width of a number that Go programs expect."""

from typing import Annotated

from msgspec import Meta

REQUIRED = Meta(extra={"crd": "required"})
"""The API server refuses an object without this field, though our Structs would read it."""

type Count = Annotated[int, Meta(ge=0, extra_json_schema={"format": "int64"})]
"""How many addresses: at most what an int64 holds."""
