"""The invented companies, people and pages that generated events are about.

Nobody in here exists: names are put together from short lists, domains end in
`.example`, addresses are from the ranges that are reserved for documentation, and phone
numbers from those reserved for fiction.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from pipelines.json_types import Json

FIRST_NAMES = (
    "Ada Bela Cleo Dario Edda Finn Greta Hugo Ines Jonas Kaia Levin Mira Nilo Odile Pavel "
    "Quinn Runa Sami Tilda Ugo Vera Wanda Xenia Yara Zeno"
).split()
LAST_NAMES = (
    "Ashdown Birkholt Carrow Dunmere Eastvale Fenwick Grauland Hollowell Ironby Jarnholm "
    "Kestrel Lindqvale Marrow Northam Oakenfell Pellworm Quarrie Ravensby Stonebeck Thornvik"
).split()
COMPANY_STEMS = (
    "Amber Basalt Cobalt Delta Ember Fjord Granite Harbor Indigo Juniper Krypton Lumen "
    "Meridian Nimbus Obsidian Pylon Quartz Rivet Slate Tundra"
).split()
COMPANY_ENDS = ("Analytics", "Cloud", "Freight", "Labs", "Robotics", "Systems")
INDUSTRIES = ("Software Development", "Logistics", "Financial Services", "Machinery", "Retail")
TITLES = (
    "Head of Growth", "Data Engineer", "VP Sales", "Marketing Manager", "Chief Revenue Officer",
    "Product Manager", "Analytics Engineer", "Account Executive", "Founder",
)  # fmt: skip
SKILLS = (
    "SQL", "Python", "HubSpot", "Negotiation", "dbt", "Salesforce", "Copywriting", "Kafka",
    "Figma", "Forecasting", "Public Speaking", "Kubernetes", "Excel", "Go-to-market",
)  # fmt: skip
SPECIALTIES = ("B2B", "SaaS", "MarTech", "Data", "Intent", "Logistics", "Billing")
INVESTORS = ("Fictional Capital", "Oakenfell Ventures")
LANGUAGES = ("English", "German", "Portuguese", "Spanish", "French")
SCHOOLS = ("Northam University", "Institute of Oakenfell", "Ravensby College")
# Country, region, city, region code with its leading zero, whether it is in the EU.
PLACES = (
    ("PT", "Lisbon", "Lisbon", "11", True),
    ("DE", "Saxony", "Leipzig", "SN", True),
    ("US", "Oregon", "Portland", "OR", False),
    ("GB", "England", "Leeds", "ENG", False),
    ("FR", "Occitanie", "Toulouse", "02", True),
)
SITE = "https://www.example.com"
PAGES = {
    "/": "Example Inc",
    "/features": "Features | Example Inc",
    "/pricing": "Pricing Plans | Example Inc",
    "/docs": "Documentation | Example Inc",
    "/customers": "Customers | Example Inc",
}
BOOKING = "https://booking.example.com/example-inc/demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """One invented company, as the enrichment describes it: briefly and in full."""

    basic: dict[str, Json]
    full: dict[str, Json]

    @property
    def name(self) -> str:
        return str(self.basic["name"])

    @property
    def domain(self) -> str:
        return str(self.basic["domain"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """One invented person with a browser, and the company that employs them."""

    visitor_id: str
    company: Company
    identity: dict[str, Json]
    enriched: dict[str, Json]
    network: dict[str, Json]
    email: str


@dataclass(slots=True)
class World:
    """Companies and people that come back: the same seed gives the same world."""

    seed: int
    company_count: int = 24
    people: list[Person] = field(init=False)

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        companies = [make_company(chance, number) for number in range(self.company_count)]
        # Some companies send a buying committee, most send one or two.
        self.people = [
            make_person(chance, company, companies)
            for company in companies
            for _ in range(chance.choice((1, 1, 2, 2, 3, 5)))
        ]


def make_id(chance: random.Random, prefix: str = "") -> str:
    """Make an id of 26 characters that looks like the vendor's."""
    return prefix + "".join(chance.choices("0123456789ABCDEFGHJKMNPQRSTVWXYZ", k=26))


def make_company(chance: random.Random, number: int) -> Company:
    name = f"{COMPANY_STEMS[number % len(COMPANY_STEMS)]} {chance.choice(COMPANY_ENDS)}"
    slug = f"{name.lower().replace(' ', '-')}-{number}"
    employee_count = chance.choice((8, 35, 120, 450, 2600))
    basic: dict[str, Json] = {
        "name": name,
        "_type": "basic",
        "linkedinId": str(90_000_000 + number),
        "linkedinUrl": f"https://linkedin.example/company/{slug}",
        "logoUrl": f"https://img.example/{slug}.png",
        "domain": f"{slug}.example",
        "website": f"https://www.{slug}.example",
        "address": _address(chance),
        "description": f"{name} builds tools for teams that ship.",
        "industry": chance.choice(INDUSTRIES),
        "employeeCount": employee_count,
        "foundedYear": chance.randint(1985, 2024),
    }
    full = basic | _figures(chance, employee_count)
    return Company(basic=basic, full=full)


def _figures(chance: random.Random, employee_count: int) -> dict[str, Json]:
    return {
        "_type": "full",
        "enrichedAt": "2026-10-14T22:05:10Z",
        "provider": chance.choice(("xK9mP", "qR7nL")),
        "specialties": _some(chance, SPECIALTIES, chance.randint(2, 6)),
        "estimatedRevenue": {"min": 1_000_000, "max": 5_000_000, "currency": "USD"},
        "headcount": {
            "total": employee_count,
            "growth": {name: _growth(chance) for name in ("mom", "qoq", "yoy")},
        },
        "taxonomy": {
            "linkedinIndustry": "Software Development",
            "linkedinSpecialties": ["B2B", "SaaS"],
        },
        "webTraffic": {
            "monthlyVisitors": chance.randint(500, 90_000),
            "momGrowthPercent": _growth(chance),
            "qoqGrowthPercent": _growth(chance),
            "trafficSources": {
                "socialPercent": 12,
                "searchPercent": 38.5,
                "directPercent": 28,
                "paidReferralPercent": 14.5,
                "referralPercent": 7,
            },
        },
        "linkedinFollowers": {
            "count": chance.randint(50, 40_000),
            "momGrowthPercent": _growth(chance),
            "qoqGrowthPercent": _growth(chance),
            "yoyGrowthPercent": None,
        },
        "funding": {
            "totalRaisedUsd": chance.choice((None, 2_000_000, 41_500_000)),
            "lastRoundType": chance.choice((None, "Seed", "Series B")),
            "lastRoundAmountUsd": chance.choice((None, 1_500_000)),
            "daysSinceLastRound": chance.choice((None, 90, 210)),
            "investors": _some(chance, INVESTORS, chance.randint(0, 2)),
        },
        "seo": {
            "monthlyOrganicClicks": 8500,
            "monthlyPaidClicks": 1200,
            "monthlyOrganicValue": 24_000,
            "monthlyAdsSpend": 3500,
            "averageOrganicRank": 18.7,
            "averageAdRank": 3.2,
            "totalOrganicKeywords": 920,
        },
    }


def _some(chance: random.Random, choices: tuple[str, ...], count: int) -> list[Json]:
    return [*chance.sample(choices, k=count)]


def _growth(chance: random.Random) -> Json:
    # Sometimes a whole number, sometimes not, sometimes unknown: as the vendor's sample.
    return chance.choice((None, 12, 300, 12.5, -3.25, 33.3))


def _address(chance: random.Random) -> dict[str, Json]:
    country, region, city, _, _ = chance.choice(PLACES)
    return {
        "locality": city,
        "region": region,
        "postalCode": f"0{chance.randint(1000, 9999)}",
        "country": country,
        "countryCode": country,
    }


def make_person(chance: random.Random, company: Company, companies: list[Company]) -> Person:
    first, last = chance.choice(FIRST_NAMES), chance.choice(LAST_NAMES)
    slug = f"{first}-{last}-{chance.randint(100, 999)}".lower()
    email = f"{first}.{last}@{company.domain}".lower()
    title = chance.choice(TITLES)
    linkedin_url = f"https://linkedin.example/in/{slug}"
    country, region, city, region_code, is_eu = chance.choice(PLACES)
    identity: dict[str, Json] = {
        "emails": [{"value": email, "type": "professional"}],
        "linkedinUrl": linkedin_url,
        "phones": _some(chance, (f"+1202555{chance.randint(100, 199):04d}",), chance.randint(0, 1)),
        "demographics": {
            "firstName": first,
            "lastName": last,
            "isHomeowner": chance.choice((True, False, None)),
            "hasChildren": chance.choice((True, False, None)),
            "isMarried": None,
        },
        "location": {"city": city, "state": None, "country": country},
        "professional": {"jobTitle": title, "companyName": company.name},
    }
    enriched: dict[str, Json] = {
        "firstName": first,
        "lastName": last,
        "fullName": f"{first} {last}",
        "linkedinUrl": linkedin_url,
        "linkedinId": f"ACoAA{chance.randint(10**8, 10**9)}",
        "headline": f"{title} @ {company.name}",
        "summary": f"{title} with a liking for numbers. " * chance.randint(2, 16),
        "profilePictureUrl": f"https://img.example/{slug}.jpg",
        "email": email,
        "location": {
            "locality": city,
            "region": region,
            "postalCode": f"0{chance.randint(1000, 9999)}",
            "country": country,
            "countryCode": country,
            "raw": f"{city}, {country}",
        },
        "connections": chance.randint(20, 500),
        "skills": _some(chance, SKILLS, chance.randint(0, 12)),
        "languages": _some(chance, LANGUAGES, chance.randint(1, 3)),
        "employments": [_job(chance, title, company.full, is_current=True)],
        "experience": [
            _job(chance, chance.choice(TITLES), other.basic, is_current=False)
            for other in chance.sample(companies, k=chance.randint(1, 5))
        ],
        "education": [_study(chance) for _ in range(chance.randint(0, 2))],
        "enrichedAt": "2026-10-14T22:05:08Z",
        "provider": "xK9mP",
    }
    if chance.random() < 0.2:
        del enriched["headline"], enriched["summary"]  # any optional field may be missing
    network = _network(chance, (country, region, city, region_code, is_eu))
    return Person(
        visitor_id=make_id(chance),
        company=company,
        identity=identity,
        enriched=enriched,
        network=network,
        email=email,
    )


def _job(
    chance: random.Random, title: str, company: dict[str, Json], *, is_current: bool
) -> dict[str, Json]:
    start = chance.randint(2008, 2022)
    return {
        "title": title,
        "description": "Owned the numbers, and what came of them. " * chance.randint(1, 4),
        "location": chance.choice((None, "Leipzig, Germany", "Portland, Oregon")),
        "startDate": f"{start}-0{chance.randint(1, 9)}",
        "endDate": None if is_current else f"{start + 2}-1{chance.randint(0, 2)}",
        "company": company,
    }


def _study(chance: random.Random) -> dict[str, Json]:
    return {
        "instituteName": chance.choice(SCHOOLS),
        "instituteLinkedinId": str(chance.randint(1000, 9999)),
        "degree": chance.choice(("B.Sc.", "M.A.", None)),
        "fieldOfStudy": chance.choice(("Computer Science", "Economics", None)),
        "startDate": "2008-09",
        "endDate": "2012-06",
    }


def _network(chance: random.Random, place: tuple[str, str, str, str, bool]) -> dict[str, Json]:
    country, region, city, region_code, is_eu = place
    block = chance.choice(("192.0.2", "198.51.100", "203.0.113"))
    ip = f"{block}.{chance.randint(1, 254)}"
    return {
        "ip": chance.choice((ip, ip, f"2001:db8::{chance.randint(1, 0xFFFF):x}")),
        "country": country,
        "city": city,
        "region": region,
        "regionCode": region_code,
        "postalCode": f"0{chance.randint(1000, 9999)}",
        "latitude": f"{chance.uniform(36, 55):.4f}",
        "longitude": f"{chance.uniform(-9, 14):.4f}",
        "continent": "NA" if country == "US" else "EU",
        "asn": {"code": chance.randint(64_496, 64_511), "name": "Documentation Networks"},
        "colo": "LIS",
        "metroCode": None,
        "isEU": is_eu,
        "botManagement": {
            "score": chance.choice((95, 88, 71, 12)),
            "verifiedBot": False,
            "corporateProxy": chance.random() < 0.1,
            "verifiedBotCategory": None,
        },
    }
