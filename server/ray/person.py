"""The person of a request, as the router needs it: equal for requests whose prompts begin alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from server.api.paths import ranking_kind
from server.ray.exchange import Sent

# Items of a history that decide. More would send a growing history elsewhere for longer; fewer would send everybody
# who began with a popular item to one replica. Shorter prompts are hardly worth caching.
FIRST_ITEMS = 4


def person_of(sent: Sent) -> str:
    """Return a key of the person of a search or a recommendation; empty for all other requests, and without a history.

    The key is a hash, because routers and their logs are no place for the ids of people. A body that is not valid has
    some key or none; the replica refuses it.
    """
    if ranking_kind(sent.method, sent.path) in (None, "batch"):
        return ""
    try:
        body = from_json(sent.body, allow_inf_nan=False)
    except ValueError:
        return ""
    named = _named(body) if isinstance(body, dict) else None
    if not named:
        return ""
    return hashlib.blake2b(json.dumps(named).encode(), digest_size=16).hexdigest()


def _named(body: dict[str, Any]) -> Sequence[str]:
    """Return what names the person: the `user_id`, else the items that the history begins with."""
    user_id, history = body.get("user_id"), body.get("history")
    if isinstance(user_id, str):
        return ["user", user_id]
    if not isinstance(history, list) or not history:
        return []
    items = [entry.get("item_id") if isinstance(entry, dict) else None for entry in history[:FIRST_ITEMS]]
    return ["history", *(str(item) for item in items)]
