"""The item lookup: by words of the title, for people who type, or by ids."""

from __future__ import annotations

from typing import Annotated, Self

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.api import openapi
from server.api.paths import LOOKUP
from server.api.requests import ItemId
from server.api.responses import FoundItem, FoundItems
from server.serving.deployments import Deployments
from server.transport.keys import BEARER

MAX_PREFIX_CHARS = 64
MAX_FOUND = 20
MAX_IDS = 100


class ItemsQuery(BaseModel):
    """Either `prefix` or `id`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefix: str | None = Field(
        None,
        min_length=1,
        max_length=MAX_PREFIX_CHARS,
        description="Words or beginnings of words; each must begin a word of the title. Ignores case and accents.",
        examples=["star wa"],
    )
    id: list[ItemId] = Field(
        default=[],
        max_length=MAX_IDS,
        description="Item ids, one for each `id` parameter; the answer leaves out unknown ids.",
        examples=[["260", "1196"]],
    )
    limit: int = Field(10, ge=1, le=MAX_FOUND, description="Items to return at most, under `prefix`.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prefix is None) == (not self.id):
            raise ValueError("give either 'prefix' or 'id'")
        return self


def lookup(deployments: Deployments) -> APIRouter:
    """Return a router of the lookup, without the version's prefix."""
    router = APIRouter(tags=["items"], responses=openapi.lookup_problems(), dependencies=[Depends(BEARER)])

    @router.get(LOOKUP, operation_id="items", summary="Find items by the beginnings of title words, or by id")
    @router.head(LOOKUP, include_in_schema=False)
    async def items(query: Annotated[ItemsQuery, Query()]) -> FoundItems:
        contents = deployments.current.contents
        catalogue = contents.bundle.index.catalogue
        if query.prefix is not None:
            rows = contents.titles.find(query.prefix, query.limit)
        else:
            rows = [row for row in map(catalogue.row, dict.fromkeys(query.id)) if row is not None]
        return FoundItems(
            items=[FoundItem(item_id=catalogue.item_id(row), title=catalogue.title(row)) for row in rows]
        )

    return router
