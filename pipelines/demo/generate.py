"""Generate the events of visits: five types, people who return, companies that repeat.

A visit goes as the vendor describes it: resolved at once, qualified, enriched, then
validated and finalized. Not every visit gets that far, so no join may be assumed
complete. The same seed gives the same events, byte for byte.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files

from pipelines.demo.world import BOOKING, PAGES, SITE, Person, World, make_id
from pipelines.json_types import Json

PIXEL_ID = "mdb_pxl_01KGR7E2S9JK6813H42SCG3QLP"
TENANT = "ws_01KGR7E2S9JK6813H42SCG3QLP"
PROVIDER = "jNNdd"
MINUTE_MS = 60_000
FIRST_VISIT = datetime(2026, 10, 15, 8, 0, tzinfo=UTC)
CAMPAIGNS: tuple[tuple[str | None, str | None, str | None], ...] = (
    ("google", "cpc", "q4_brand"),
    ("newsletter", "email", "october"),
    ("linkedin", "paid-social", "data_teams"),
    (None, None, None),
)
FUNNELS = (
    ("/", "/features", "/pricing"),
    ("/pricing", "/features", "/"),
    ("/", "/docs", "/pricing"),
    ("/", "/customers"),
    ("/docs",),
    ("/", "/features", "/docs", "/customers", "/pricing"),
    ("/", "/features", "/pricing", "/docs", "/pricing", "/customers", "/features", "/pricing"),
)


@dataclass(frozen=True, slots=True)
class GeneratedEvent:
    """An event as it would be sent: its id, its type, its body."""

    webhook_id: str
    type: str
    body: bytes


def sample_event() -> GeneratedEvent:
    """Give the vendor's published sample, on one line."""
    text = files("pipelines.demo").joinpath("identity.session.finalized.json").read_text("utf-8")
    return _to_event(json.loads(text))


def generate_events(
    count: int, seed: int = 1, *, types: frozenset[str] | None = None, company_count: int = 24
) -> Iterator[GeneratedEvent]:
    """Generate this many events, of all types or of `types` only, in the order of sending."""
    people = World(seed, company_count).people
    chance = random.Random(seed + 1)
    now_ms = int(FIRST_VISIT.timestamp() * 1000)
    while True:
        now_ms += chance.randint(20 * MINUTE_MS, 8 * 60 * MINUTE_MS)
        visit = Visit(chance, chance.choice(people), now_ms)
        for document in visit.events():
            if types is None or document["type"] in types:
                if count <= 0:
                    return
                count -= 1
                yield _to_event(document)


def _to_event(document: dict[str, Json]) -> GeneratedEvent:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return GeneratedEvent(str(document["id"]), str(document["type"]), body)


class Visit:
    """One session of one person on the site, and the events that are sent about it."""

    def __init__(self, chance: random.Random, person: Person, started_ms: int) -> None:
        self._chance = chance
        self._person = person
        self._started_ms = started_ms
        self._session_id = make_id(chance)
        self._pages = self._view_pages()
        self._ended_ms = int(str(self._pages[-1]["ts"])) + chance.randint(5_000, 120_000)
        self._campaign = chance.choice(CAMPAIGNS)

    def events(self) -> Iterator[dict[str, Json]]:
        """Yield the events of the visit, from recognition to the end."""
        yield self._event("identity.resolved", 900, self._identified())
        if self._chance.random() < 0.8:
            yield self._event("identity.qualified", 4_000, self._identified())
        has_enrichment = self._chance.random() < 0.85
        if has_enrichment:
            yield self._event("identity.enriched", 11_000, self._enriched())
            yield self._event("identity.validated", 15_000, self._validated())
        yield self._event(
            "identity.session.finalized",
            self._ended_ms - self._started_ms + 107_000,
            self._finalized(has_enrichment=has_enrichment),
        )

    def _event(self, kind: str, after_ms: int, data: dict[str, Json]) -> dict[str, Json]:
        return {
            "id": make_id(self._chance, "evt_"),
            "type": kind,
            "created": self._started_ms + after_ms,
            "data": data,
        }

    def _identified(self) -> dict[str, Json]:
        return {
            "attribution": self._attribution(),
            "identity": self._person.identity,
            "session": self._try_session(),
        }

    def _enriched(self) -> dict[str, Json]:
        return {
            "attribution": self._attribution(),
            "query": {
                "type": "person",
                "match": "linkedinUrl",
                "value": self._person.enriched["linkedinUrl"],
            },
            "companiesEnriched": 1,
            "enrichment": self._enrichment(),
            "session": self._try_session(),
        }

    def _validated(self) -> dict[str, Json]:
        return {
            "attribution": self._attribution(),
            "validations": [self._validation()],
            "session": self._try_session(),
        }

    def _finalized(self, *, has_enrichment: bool) -> dict[str, Json]:
        return {
            "session": self._session()
            | {
                "endedAt": self._ended_ms,
                "lastActivity": self._ended_ms - 2_000,
                "events": [*self._pages],
                "enrichments": [
                    {
                        "enrichedAt": self._started_ms + 11_000,
                        "enrichmentData": make_id(self._chance, "enr_"),
                    }
                ],
            },
            "enrichment": self._enrichment() if has_enrichment else None,
            "sessionEndedAt": self._ended_ms,
            "eventCount": len(self._pages),
            "finalizedAt": self._ended_ms + 107_000,
        }

    def _attribution(self) -> dict[str, Json]:
        return {
            "type": "website",
            "pixelId": PIXEL_ID,
            "sessionId": self._session_id,
            "vid": self._person.visitor_id,
            "prid": PROVIDER,
        }

    def _enrichment(self) -> dict[str, Json]:
        return {
            "person": self._person.enriched,
            "companies": [self._person.company.full],
            "emailValidations": [self._validation()],
        }

    def _validation(self) -> dict[str, Json]:
        validity = self._chance.choice(("valid", "valid", "valid", "catch_all", "invalid", None))
        error: Json = None if validity else {"code": "timeout", "message": "no answer"}
        return {
            "email": self._person.email,
            "validity": validity,
            "provider": "millionverifier",
            "error": error,
        }

    def _try_session(self) -> dict[str, Json] | None:
        return None if self._chance.random() < 0.05 else self._session()

    def _session(self) -> dict[str, Json]:
        source, medium, campaign = self._campaign
        return {
            "pid": PIXEL_ID,
            "vid": self._person.visitor_id,
            "sid": self._session_id,
            "tenant": TENANT,
            "createdAt": self._started_ms,
            "endedAt": None,
            "utm": {
                "source": source,
                "medium": medium,
                "campaign": campaign,
                "term": None,
                "content": None,
            },
            "referrer": "https://www.google.com/" if source == "google" else None,
            "landingPage": self._pages[0]["url"],
            "landingTitle": self._pages[0]["title"],
            "gclid": make_id(self._chance) if medium == "cpc" else None,
            "fbclid": None,
            "userAgent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/141.0 Safari",
            "screen": {"width": 1920, "height": 1080},
            "timezone": "Europe/Lisbon",
            "network": self._person.network,
            "options": {"plan": "trial"} if self._chance.random() < 0.01 else {},
        }

    def _view_pages(self) -> list[dict[str, Json]]:
        at_ms = self._started_ms + 400
        views: list[dict[str, Json]] = []
        before: Json = None
        for path in self._chance.choice(FUNNELS):
            url = SITE + path
            views.append(
                {
                    "signal": "pageview",
                    "url": url,
                    "ts": at_ms,
                    "v": "1",
                    "title": PAGES[path],
                    "ref": before,
                    "outlink": None,
                    "props": None,
                }
            )
            before = url
            at_ms += self._chance.randint(4_000, 180_000)
        if self._chance.random() < 0.3:
            views[-1]["outlink"] = BOOKING
        return views
