"""The generated events: always the same, about nobody, and of the vendor's shape."""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from midbound_cloud.types import (
    identity_enriched_webhook_event,
    identity_qualified_webhook_event,
    identity_resolved_webhook_event,
    identity_session_finalized_webhook_event,
    identity_validated_webhook_event,
)

from pipelines.demo.generate import generate_events, sample_event

EVENTS = list(generate_events(600, seed=3))
DOCUMENTS: list[dict[str, Any]] = [json.loads(event.body) for event in EVENTS]
RESERVED = [
    ipaddress.ip_network(block)
    for block in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]
MODELS: dict[str, type[Any]] = {
    "identity.resolved": identity_resolved_webhook_event.IdentityResolvedWebhookEvent,
    "identity.qualified": identity_qualified_webhook_event.IdentityQualifiedWebhookEvent,
    "identity.enriched": identity_enriched_webhook_event.IdentityEnrichedWebhookEvent,
    "identity.validated": identity_validated_webhook_event.IdentityValidatedWebhookEvent,
    "identity.session.finalized": (
        identity_session_finalized_webhook_event.IdentitySessionFinalizedWebhookEvent
    ),
}


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in _texts(item)] if isinstance(value, list) else []


def test_the_same_seed_gives_the_same_events_and_another_seed_others() -> None:
    assert list(generate_events(600, seed=3)) == EVENTS
    assert {event.webhook_id for event in generate_events(50, seed=4)}.isdisjoint(
        event.webhook_id for event in EVENTS
    )


def test_all_five_types_come_and_every_id_is_its_own() -> None:
    assert set(Counter(event.type for event in EVENTS)) == set(MODELS)
    assert len({event.webhook_id for event in EVENTS}) == len(EVENTS)
    assert all(
        event.webhook_id == document["id"]
        for event, document in zip(EVENTS, DOCUMENTS, strict=True)
    )


def test_types_can_be_picked() -> None:
    picked = list(generate_events(20, types=frozenset({"identity.validated"})))
    assert {event.type for event in picked} == {"identity.validated"}
    assert len(picked) == 20


@pytest.mark.parametrize("kind", MODELS)
def test_every_event_has_the_shape_of_the_vendors_model(kind: str) -> None:
    documents = [document for document in DOCUMENTS if document["type"] == kind]
    for document in documents:
        MODELS[kind].model_validate(document)


def test_the_ids_of_one_visit_agree_in_all_its_events() -> None:
    visitor_of: dict[str, str] = {}
    for document in DOCUMENTS:
        data = document["data"]
        session, attribution = data.get("session"), data.get("attribution")
        for session_id, visitor in (
            (session["sid"], session["vid"]) if session else (None, None),
            (attribution["sessionId"], attribution["vid"]) if attribution else (None, None),
        ):
            if session_id is not None:
                assert visitor_of.setdefault(session_id, visitor) == visitor


def test_visitors_return_and_companies_have_several_people() -> None:
    sessions = [d["data"]["session"] for d in DOCUMENTS if d["type"].endswith("finalized")]
    assert max(Counter(session["vid"] for session in sessions).values()) > 1
    people: dict[str, set[str]] = {}
    for document in DOCUMENTS:
        enrichment = document["data"].get("enrichment")
        if enrichment:
            domain = enrichment["companies"][0]["domain"]
            people.setdefault(domain, set()).add(enrichment["person"]["linkedinUrl"])
    assert max(map(len, people.values())) > 1


def test_nobody_in_there_exists() -> None:
    for document in DOCUMENTS:
        for text in _texts(document):
            for host in re.findall(r"https?://([^/]+)", text):
                assert host.endswith((".example", "example.com", "www.google.com"))
            for email in re.findall(r"\S+@(\S+)", text):
                assert email.endswith(".example") or " " in text
        session = document["data"].get("session")
        if session:
            address = ipaddress.ip_address(session["network"]["ip"])
            assert any(address in block for block in RESERVED)
        for phone in document["data"].get("identity", {}).get("phones", []):
            assert re.fullmatch(r"\+120255501\d\d", phone)


def test_the_sample_is_the_vendors_byte_for_value() -> None:
    path = Path(__file__).with_name("identity.session.finalized.json")
    assert json.loads(sample_event().body) == json.loads(path.read_text("utf-8"))
