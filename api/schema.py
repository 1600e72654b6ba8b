"""Marks on fields that only a CRD's schema has a word for, and number types with the width that Go programs expect."""

from typing import Annotated

from msgspec import Meta

REQUIRED = Meta(extra={"crd": "required"})
"""The API server refuses an object without this field, though our Structs would read it."""

type Int32 = Annotated[int, Meta(extra_json_schema={"format": "int32"})]
type Int64 = Annotated[int, Meta(extra_json_schema={"format": "int64"})]
type Count = Annotated[int, Meta(ge=0, extra_json_schema={"format": "int64"})]
"""How many addresses: at most what an int64 holds."""
