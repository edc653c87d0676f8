"""The same event again, and again at once: every delivery is kept, and one row comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import PATH, Server, running, sealed_deliveries, sign
from spools import Place

REPLAYS = 1000
AT_ONCE = 50
EVENT_ID = "evt_1"


def bodies(count: int) -> list[bytes]:
    return [b'{"id":"evt_1","type":"identity.resolved","n":%d}' % number for number in range(count)]


def send_at_once(server: Server, several: Iterable[bytes]) -> list[tuple[int, bytes]]:
    """Send each body as a delivery of the one event; give the answers in order."""

    def send(body: bytes) -> tuple[int, bytes]:
        connection = server.connect()
        connection.request("POST", PATH, body, sign(body, EVENT_ID))
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(send, several))


@pytest.mark.parametrize(
    ("sent", "outcomes"),
    [
        pytest.param(bodies(1) * REPLAYS, {"loaded": 1, "repeat": REPLAYS - 1}, id="one body"),
        pytest.param(bodies(AT_ONCE), {"loaded": 1, "conflict": AT_ONCE - 1}, id="other bodies"),
    ],
)
def test_an_event_sent_often_at_once_is_one_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sent: list[bytes],
    outcomes: dict[str, int],
) -> None:
    monkeypatch.chdir(tmp_path)
    with running(tmp_path) as server:
        server.wait_until_up()
        assert send_at_once(server, sent) == [(200, b"ok")] * len(sent)
        assert server.stop() == 0
    place = Place(tmp_path)
    place.load()
    assert Counter(row["outcome"] for row in place.rows("deliveries")) == outcomes
    ((event_id, number),) = place.query("SELECT event_id, n FROM events")
    assert event_id == EVENT_ID
    kept = [each.body for each in sealed_deliveries(sorted(place.spool.loaded.glob("*.jsonl")))]
    assert Counter(kept) == Counter(sent)
    assert kept[0].endswith(b'"n":%d}' % number), "the first of the spool wins"
    assert place.load().event_count == 0
