"""The declared types of all five event types: data, no logic but its derivation.

`EVENT` mirrors the document as the vendor sends it, with the vendor's keys. A dict is
an object, a list of one node is an array, a `Kind` is a leaf. Whatever needs types
(the parser, the flattening, the empty tables of the first load, the data dictionary)
derives them from here. What is not declared is loaded all the same.

Source of the fields: the vendor's page of `identity.session.finalized` and the union
of its Python SDK 0.4.0 and Go SDK 0.0.2.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import TypeAlias, Union


class Kind(Enum):
    """What a leaf holds; the value is dlt's name of the column type.

    `EPOCH_MS` (a number) and `ISO_TIME` (a string) are two spellings of one column
    type, so they are members of their own with a suffix that `data_type` cuts off.
    """

    TEXT = "text"
    BIGINT = "bigint"
    DOUBLE = "double"
    BOOL = "bool"
    JSON = "json"
    EPOCH_MS = "timestamp:epoch_ms"
    ISO_TIME = "timestamp:iso"

    @property
    def data_type(self) -> str:
        return self.value.partition(":")[0]


Node: TypeAlias = Union[Kind, dict[str, "Node"], list["Node"]]

TEXT, BIGINT, DOUBLE, BOOL = Kind.TEXT, Kind.BIGINT, Kind.DOUBLE, Kind.BOOL
JSON, EPOCH_MS, ISO_TIME = Kind.JSON, Kind.EPOCH_MS, Kind.ISO_TIME

_ADDRESS: Node = {
    "locality": TEXT,
    "region": TEXT,
    "postalCode": TEXT,
    "country": TEXT,
    "countryCode": TEXT,
}

_BASIC_COMPANY: dict[str, Node] = {
    "name": TEXT,
    "_type": TEXT,
    "linkedinId": TEXT,
    "linkedinUrl": TEXT,
    "logoUrl": TEXT,
    "domain": TEXT,
    "website": TEXT,
    "address": _ADDRESS,
    "description": TEXT,
    "industry": TEXT,
    "employeeCount": BIGINT,
    "foundedYear": BIGINT,
}

# Every measured quantity is a double: one document already mixes 12.5 and 300 in the
# same kind of field, and a column typed by whichever came first would split the data.
_FULL_COMPANY: dict[str, Node] = _BASIC_COMPANY | {
    "enrichedAt": ISO_TIME,
    "provider": TEXT,
    "specialties": [TEXT],
    "estimatedRevenue": {"min": DOUBLE, "max": DOUBLE, "currency": TEXT},
    "headcount": {"total": DOUBLE, "growth": {"mom": DOUBLE, "qoq": DOUBLE, "yoy": DOUBLE}},
    "taxonomy": {"linkedinIndustry": TEXT, "linkedinSpecialties": [TEXT]},
    "webTraffic": {
        "monthlyVisitors": DOUBLE,
        "momGrowthPercent": DOUBLE,
        "qoqGrowthPercent": DOUBLE,
        "trafficSources": {
            "socialPercent": DOUBLE,
            "searchPercent": DOUBLE,
            "directPercent": DOUBLE,
            "paidReferralPercent": DOUBLE,
            "referralPercent": DOUBLE,
        },
    },
    "linkedinFollowers": {
        "count": DOUBLE,
        "momGrowthPercent": DOUBLE,
        "qoqGrowthPercent": DOUBLE,
        "yoyGrowthPercent": DOUBLE,
    },
    "funding": {
        "totalRaisedUsd": DOUBLE,
        "lastRoundType": TEXT,
        "lastRoundAmountUsd": DOUBLE,
        "daysSinceLastRound": DOUBLE,
        "investors": [TEXT],
    },
    "seo": {
        "monthlyOrganicClicks": DOUBLE,
        "monthlyPaidClicks": DOUBLE,
        "monthlyOrganicValue": DOUBLE,
        "monthlyAdsSpend": DOUBLE,
        "averageOrganicRank": DOUBLE,
        "averageAdRank": DOUBLE,
        "totalOrganicKeywords": DOUBLE,
    },
}


def _job(company: dict[str, Node]) -> Node:
    return {
        "title": TEXT,
        "description": TEXT,
        "location": TEXT,
        # "YYYY-MM", of varying precision: a timestamp would invent a day.
        "startDate": TEXT,
        "endDate": TEXT,
        "company": company,
    }


_EMAIL_VALIDATION: Node = {
    "email": TEXT,
    "validity": TEXT,
    "provider": TEXT,
    "error": {"code": TEXT, "message": TEXT},
}

_SESSION: Node = {
    "pid": TEXT,
    "vid": TEXT,
    "sid": TEXT,
    "tenant": TEXT,
    "createdAt": EPOCH_MS,
    "endedAt": EPOCH_MS,
    "utm": {"source": TEXT, "medium": TEXT, "campaign": TEXT, "term": TEXT, "content": TEXT},
    "referrer": TEXT,
    "landingPage": TEXT,
    "landingTitle": TEXT,
    "gclid": TEXT,
    "fbclid": TEXT,
    "userAgent": TEXT,
    "screen": {"width": BIGINT, "height": BIGINT},
    "timezone": TEXT,
    "network": {
        "ip": TEXT,
        "country": TEXT,
        "city": TEXT,
        "region": TEXT,
        "regionCode": TEXT,
        "postalCode": TEXT,
        "latitude": TEXT,
        "longitude": TEXT,
        "continent": TEXT,
        "asn": {"code": BIGINT, "name": TEXT},
        "colo": TEXT,
        "metroCode": TEXT,
        "isEU": BOOL,
        "botManagement": {
            "score": DOUBLE,
            "verifiedBot": BOOL,
            "corporateProxy": BOOL,
            "verifiedBotCategory": TEXT,
        },
    },
    "options": JSON,
    "lastActivity": EPOCH_MS,
    "events": [
        {
            "signal": TEXT,
            "url": TEXT,
            "ts": EPOCH_MS,
            "v": TEXT,
            "title": TEXT,
            "ref": TEXT,
            "outlink": TEXT,
            "props": JSON,
        }
    ],
    "enrichments": [{"enrichedAt": EPOCH_MS, "enrichmentData": TEXT}],
}

_PERSON: Node = {
    "firstName": TEXT,
    "lastName": TEXT,
    "fullName": TEXT,
    "linkedinUrl": TEXT,
    "linkedinId": TEXT,
    "headline": TEXT,
    "summary": TEXT,
    "profilePictureUrl": TEXT,
    "email": TEXT,
    "location": {
        "locality": TEXT,
        "region": TEXT,
        "postalCode": TEXT,
        "country": TEXT,
        "countryCode": TEXT,
        "raw": TEXT,
    },
    "connections": BIGINT,
    "skills": [TEXT],
    "languages": [TEXT],
    "employments": [_job(_FULL_COMPANY)],
    "experience": [_job(_BASIC_COMPANY)],
    "education": [
        {
            "instituteName": TEXT,
            "instituteLinkedinId": TEXT,
            "instituteLogoUrl": TEXT,
            "degree": TEXT,
            "fieldOfStudy": TEXT,
            "startDate": TEXT,
            "endDate": TEXT,
        }
    ],
    "enrichedAt": ISO_TIME,
    "provider": TEXT,
}

EVENT: dict[str, Node] = {
    "id": TEXT,
    "type": TEXT,
    "created": EPOCH_MS,
    "data": {
        "attribution": {
            "type": TEXT,
            "pixelId": TEXT,
            "sessionId": TEXT,
            "vid": TEXT,
            "prid": TEXT,
        },
        "identity": {
            "emails": [{"value": TEXT, "type": TEXT}],
            "linkedinUrl": TEXT,
            "phones": [TEXT],
            "demographics": {
                "firstName": TEXT,
                "lastName": TEXT,
                "isHomeowner": BOOL,
                "hasChildren": BOOL,
                "isMarried": BOOL,
            },
            "location": {"city": TEXT, "state": TEXT, "country": TEXT},
            "professional": {"jobTitle": TEXT, "companyName": TEXT},
        },
        "query": {"type": TEXT, "match": TEXT, "value": TEXT},
        "companiesEnriched": BIGINT,
        "validations": [_EMAIL_VALIDATION],
        "session": _SESSION,
        "enrichment": {
            "person": _PERSON,
            "companies": [_FULL_COMPANY],
            "emailValidations": [_EMAIL_VALIDATION],
        },
        "sessionEndedAt": EPOCH_MS,
        "eventCount": BIGINT,
        "finalizedAt": EPOCH_MS,
    },
}

ROOT_TABLE = "events"

# Wrappers that say nothing, left out of names, longest first.
WRAPPERS: tuple[tuple[str, ...], ...] = (("data", "enrichment"), ("data",))

# The arrays that analysts ask for, under the names they would use.
ARRAY_TABLES: dict[tuple[str, ...], str] = {
    ("data", "session", "events"): "page_events",
    ("data", "session", "enrichments"): "session_enrichments",
    ("data", "enrichment", "person", "employments"): "employments",
    ("data", "enrichment", "person", "experience"): "experience",
    ("data", "enrichment", "person", "education"): "education",
    ("data", "enrichment", "person", "skills"): "skills",
    ("data", "enrichment", "person", "languages"): "languages",
    ("data", "enrichment", "companies"): "companies",
    ("data", "enrichment", "emailValidations"): "email_validations",
    ("data", "validations"): "email_validations",
    ("data", "identity", "emails"): "identity_emails",
    ("data", "identity", "phones"): "identity_phones",
}

# On every payload table, so that a question about one table needs no join.
CONTEXT_COLUMNS: dict[str, Kind] = {
    "event_id": TEXT,
    "event_type": TEXT,
    "session_id": TEXT,
    "visitor_id": TEXT,
    "occurred_at": EPOCH_MS,
    "received_at": ISO_TIME,
}
# Where the context is read from: the first path that holds a value wins.
SESSION_ID_PATHS = (("data", "session", "sid"), ("data", "attribution", "sessionId"))
VISITOR_ID_PATHS = (("data", "session", "vid"), ("data", "attribution", "vid"))

ROOT_KEYS: dict[str, Kind] = {"_dlt_id": TEXT}
CHILD_KEYS: dict[str, Kind] = {"_dlt_id": TEXT, "_dlt_parent_id": TEXT, "_dlt_list_idx": BIGINT}


class Outcome(StrEnum):
    """What became of a delivery, as `deliveries.outcome` has it."""

    LOADED = "loaded"
    REPEAT = "repeat"
    CONFLICT = "conflict"
    SET_ASIDE = "set_aside"


# One row per accepted delivery, repeats too.
DELIVERIES_TABLE = "deliveries"
DELIVERIES: dict[str, Kind] = {
    "event_id": TEXT,
    "sent_at": ISO_TIME,
    "received_at": ISO_TIME,
    "loaded_at": ISO_TIME,
    "size_bytes": BIGINT,
    "body_sha256": TEXT,
    "segment": TEXT,
    "line": BIGINT,
    "outcome": TEXT,
    "reason": TEXT,
    "_dlt_id": TEXT,
}

# One row per package that was loaded (a run has one, a backlog several), written around the
# load, not by it.
LOADS_TABLE = "loads"
LOADS: dict[str, Kind] = {
    "load_id": TEXT,
    "status": TEXT,
    "host": TEXT,
    "started_at": ISO_TIME,
    "finished_at": ISO_TIME,
    "duration_s": DOUBLE,
    "segments": BIGINT,
    "deliveries": BIGINT,
    "events": BIGINT,
    "repeats": BIGINT,
    "conflicts": BIGINT,
    "set_aside": BIGINT,
    "damages": BIGINT,
    # JSON as text: no destination takes JSON as a plain parameter everywhere.
    "row_counts": TEXT,
    "new_tables": TEXT,
    "new_columns": TEXT,
}
