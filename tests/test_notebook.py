"""The notebook, run without a screen on a small warehouse, gives the right answers."""

from __future__ import annotations

import html
import json
import re
import runpy
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
from spooling import SAMPLE, fill_spool, sample_event

from pipelines.load import run_load

pytest.importorskip("marimo", reason="install the extra: midbound-warehouse[notebook]")
pytest.importorskip("altair", reason="install the extra: midbound-warehouse[notebook]")

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "start_here.py"
Rows = list[dict[str, object]]

# The sample's session started then; the other visits are told in seconds after it.
START_MS = 1739571906432
DAY_S = 86_400


def visit(
    session_id: str,
    start_s: int,
    pages: list[tuple[str, int, str | None]],
    *,
    person: str = "ann",
    email: str = "ann@acme.example",
    company: str = "Acme",
    validity: str | None = "valid",
    bot_score: int = 95,
    finalized_s: int = 600,
) -> tuple[str, bytes]:
    """Make the finalized event of a visit; pages are (path, seconds after the start, outlink)."""
    event = sample_event()
    start_ms = START_MS + start_s * 1000
    event["id"] = f"evt_{session_id}_{finalized_s}"
    event["created"] = start_ms + finalized_s * 1000
    session, enrichment = event["data"]["session"], event["data"]["enrichment"]
    session |= {"sid": session_id, "vid": session_id, "createdAt": start_ms}
    session["endedAt"] = start_ms + 300_000
    session["network"]["botManagement"]["score"] = bot_score
    session["events"] = [
        session["events"][0]
        | {
            "url": f"https://www.example.com{path}",
            "ts": start_ms + at_s * 1000,
            "outlink": outlink,
        }
        for path, at_s, outlink in pages
    ]
    enrichment["person"] |= {"fullName": person.title(), "email": email}
    enrichment["person"]["linkedinUrl"] = f"https://linkedin.com/in/{person}"
    enrichment["companies"][0] |= {"name": company, "domain": f"{company.lower()}.example"}
    enrichment["emailValidations"] = [{"email": email, "validity": validity, "provider": "x"}]
    return event["id"], json.dumps(event).encode()


CALENDAR = "https://calendly.com/example-inc/demo"
TO_BOOKING = [("/features", 0, None), ("/pricing/?plan=pro", 60, None), ("/", 240, CALENDAR)]
EVENTS = [
    ("evt_sample", SAMPLE),
    # The first report of a session that went on: only the second one counts.
    visit("s1", 0, TO_BOOKING[:1], finalized_s=400, validity="invalid"),
    visit("s1", 0, TO_BOOKING),
    # The same person, spelled in another way; and a colleague with a private address.
    visit("s2", 3600, [("/features", 0, None), ("/pricing", 180, None)], person="ANN/"),
    visit("s3", 7200, [("/pricing", 0, None)], person="bob", email="bob@mail.example"),
    visit("s4", 7200, TO_BOOKING, person="crawler", bot_score=2),
    # Valid at first, invalid later; and a check that failed says nothing.
    visit("s5", 0, [("/pricing", 0, None)], person="eve", email="eve@beta.example", company="Beta"),
    visit(
        "s6",
        60,
        [("/docs", 0, None)],
        person="eve",
        email="eve@beta.example",
        company="Beta",
        validity="invalid",
    ),
    visit("s7", 120, [("/", 0, None)], validity=None),
    visit(
        "s8", -60 * DAY_S, [("/", 0, None)], person="old", email="old@past.example", company="Past"
    ),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Rows]]:
    """What the notebook's variables hold after it ran."""
    directory = tmp_path_factory.mktemp("notebook")
    file = directory / "midbound.duckdb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DESTINATION__WAREHOUSE__CREDENTIALS", str(file))
        run_load(fill_spool(directory / "spool", EVENTS))
        yield run_notebook()


def run_notebook() -> dict[str, Rows]:
    _, variables = runpy.run_path(str(NOTEBOOK))["app"].run()
    names = ("companies", "interest", "prospects", "funnel")
    found = {name: variables[name].to_pylist() for name in names if name in variables}
    if "chart" in variables:
        found["chart"] = variables["chart"].to_dict()
    return found


def instant(after_s: int) -> datetime:
    return datetime.fromtimestamp(START_MS / 1000 + after_s, UTC)


def test_companies_are_counted_once_each_without_bots_and_old_visits(
    answers: dict[str, Rows],
) -> None:
    acme, midbound, beta = answers["companies"]
    assert acme == {
        "company": "Acme",
        "people": 2,
        "sessions": 4,
        "page_views": 7,
        "first_seen": instant(0),
        "last_seen": instant(7500),
    }
    assert (beta["company"], beta["people"], beta["sessions"]) == ("Beta", 1, 2)
    assert (midbound["company"], midbound["page_views"]) == ("Midbound", 3)


def test_prospects_have_a_valid_work_address_and_saw_the_prices(answers: dict[str, Rows]) -> None:
    assert [
        (row["company"], row["email"], row["pricing_views"]) for row in answers["prospects"]
    ] == [
        ("Acme", "ann@acme.example", 2),
        ("Midbound", "peter@midbound.ai", 1),
    ]
    assert answers["prospects"][0]["last_viewed_at"] == instant(3780)


def test_the_funnel_counts_in_order_and_gives_the_time_between(answers: dict[str, Rows]) -> None:
    assert [tuple(row.values()) for row in answers["funnel"]] == [
        ("saw /features", 3, None, None),  # the sample's visitor, too
        ("then /pricing", 2, 66.7, 2.0),  # who had seen the prices before
        ("then a booking link", 1, 50.0, 3.0),
    ]


def test_the_chart_shows_the_views_of_each_company_by_page(answers: dict[str, Rows]) -> None:
    acme = {row["page"]: row["views"] for row in answers["interest"] if row["company"] == "Acme"}
    assert acme == {"/": 2, "/features": 2, "/pricing": 3}
    assert answers["chart"]["mark"]["type"] == "bar"


def test_without_a_warehouse_it_stops_before_the_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs, variables = runpy.run_path(str(NOTEBOOK))["app"].run()
    assert callouts(outputs) == [
        f"There is no file {tmp_path}/midbound.duckdb yet: run make demo first."
    ]
    assert "companies" not in variables


def test_an_address_is_not_shown_and_an_empty_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    setting = "DESTINATION__WAREHOUSE__CREDENTIALS"
    monkeypatch.setenv(setting, "postgresql://loader:pass-word@db.example:5432/analytics")
    outputs, _ = runpy.run_path(str(NOTEBOOK))["app"].run()
    assert callouts(outputs) == [
        "The warehouse is not a DuckDB file; this notebook opens only such a one."
    ]
    assert "pass-word" not in str(outputs)
    duckdb.connect("empty.duckdb").close()
    monkeypatch.setenv(setting, "empty.duckdb")
    outputs, _ = runpy.run_path(str(NOTEBOOK))["app"].run()
    assert callouts(outputs) == ["The file holds no events yet: run midbound load first."]


def callouts(outputs: Iterable[object]) -> list[str]:
    texts = [getattr(output, "text", "") for output in outputs]
    return [read_callout(text) for text in texts if "marimo-callout" in text]


def read_callout(element: str) -> str:
    """Give the words that marimo shows: HTML in a JSON string in an attribute."""
    found = re.search("data-html='(.*?)'", element)
    assert found
    markup = json.loads(html.unescape(found[1]))
    return html.unescape(re.sub("<[^>]*>", "", markup)).strip()


def test_no_answer_is_stored_in_the_file() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search("data:|base64|<table|<img", text)
    assert max(map(len, text.splitlines())) <= 100
