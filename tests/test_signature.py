"""Who signed this? The rules one by one, then two packages that nobody here wrote as oracles."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from midbound_cloud import MidboundCloud
from standardwebhooks import Webhook, WebhookVerificationError

from receiver.errors import (
    BadIdError,
    BadTimestampError,
    ConfigurationError,
    MissingHeaderError,
    StaleDeliveryError,
    UnsignedError,
    WrongSignatureError,
)
from receiver.signature import Key, Match, check_headers, derive_keys, find_key

NOW_S = 1_739_571_908
ID = "evt_01KH5HM09WTF6DOE8K2H6DG2RI"
BODY = b'{"id":"evt_01KH5HM09WTF6DOE8K2H6DG2RI","type":"identity.resolved"}'
SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(bytes(range(24, 48))).decode()
TEXT_SECRET = "whsec_not-base64-but-long-enough"
KEYS = derive_keys([SECRET])
(OTHER_KEY, _) = derive_keys([OTHER_SECRET])
secrets = st.binary(min_size=16, max_size=64).map(
    lambda raw: "whsec_" + base64.b64encode(raw).decode()
)
webhook_ids = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=","),
    min_size=1,
    max_size=256,
)


def sign(key: Key, body: bytes = BODY, webhook_id: str = ID, timestamp: str = str(NOW_S)) -> str:
    digest = hmac.digest(key.value, f"{webhook_id}.{timestamp}.".encode() + body, "sha256")
    return "v1," + base64.b64encode(digest).decode()


def headers(
    signature: str | None = None, webhook_id: str = ID, timestamp: str = str(NOW_S)
) -> dict[str, str]:
    if signature is None:
        signature = sign(KEYS[0], webhook_id=webhook_id, timestamp=timestamp)
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": signature,
    }


def verify(
    given_headers: dict[str, str], body: bytes = BODY, keys: tuple[Key, ...] = KEYS
) -> Match:
    return find_key(check_headers(given_headers, now_s=NOW_S), body, keys)


# --- keys -------------------------------------------------------------------------------------


def key_names(secret: str) -> list[tuple[int, str]]:
    return [(key.secret_index, key.derivation) for key in derive_keys([secret])]


@pytest.mark.parametrize("padding", ["", "="])
@pytest.mark.parametrize("prefix", ["", "whsec_"])
@pytest.mark.parametrize("around", ["", " ", "\n"])
def test_a_secret_gives_two_keys(padding: str, prefix: str, around: str) -> None:
    raw = bytes(range(17, 34))
    text = base64.b64encode(raw).decode().rstrip("=") + padding
    keys = derive_keys([around + prefix + text + around])
    assert [(key.derivation, key.value) for key in keys] == [
        ("base64", raw),
        ("text", text.encode()),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "not-base64-but-long-enough",
        "url_safe_base64_AAAAAAAA",
        "A" * 16,  # 12 bytes
        "A" * 21,  # no length of base64
        "AAAAAAAAAAAA AAAAAAAAAAA",
        "=" * 24,
        "A" * 24 + "==",
    ],
)
def test_a_secret_that_is_not_base64_of_16_bytes_gives_its_text_only(text: str) -> None:
    assert key_names("whsec_" + text) == [(0, "text")]


def test_keys_of_several_secrets_come_in_order() -> None:
    assert [key.name for key in derive_keys([TEXT_SECRET, SECRET])] == [
        "077ab7:text",
        "bffcb3:base64",
        "bffcb3:text",
    ]


def test_a_key_keeps_its_name_when_its_secret_changes_its_place_or_loses_its_prefix() -> None:
    alone = [key.name for key in derive_keys([SECRET])]
    assert [key.name for key in derive_keys([OTHER_SECRET, SECRET])][2:] == alone
    assert [key.name for key in derive_keys([SECRET.removeprefix("whsec_")])] == alone


def test_a_derivation_can_be_pinned() -> None:
    assert [key.name for key in derive_keys([SECRET], "base64")] == ["bffcb3:base64"]
    assert [key.name for key in derive_keys([SECRET], "text")] == ["bffcb3:text"]


def test_pinning_base64_refuses_a_secret_that_is_none() -> None:
    with pytest.raises(ConfigurationError) as refused:
        derive_keys([SECRET, TEXT_SECRET], "base64")
    assert str(refused.value) == (
        "receiver.webhook_secret (RECEIVER__WEBHOOK_SECRET), secret 2: it is not base64 of at "
        "least 16 bytes; copy the whole secret from the Midbound Console, or set "
        "receiver.key_derivation to both or text"
    )


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_AAAAAAAAAAAAAAA", "whsec_" + "ä" * 30])
def test_a_short_or_foreign_secret_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        derive_keys([secret])
    assert str(refused.value) == (
        "receiver.webhook_secret (RECEIVER__WEBHOOK_SECRET), secret 1: it has fewer than 16 "
        "characters after whsec_, or some that are not ASCII; copy the whole secret from the "
        "Midbound Console"
    )


def test_a_key_does_not_show_its_value() -> None:
    assert repr(KEYS[1]) == "Key(secret_index=0, fingerprint='bffcb3', derivation='text')"


# --- signatures -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_both_derivations_are_accepted_and_told_apart(key: Key) -> None:
    assert verify(headers(sign(key))) == Match(key=key, signature=sign(key))


@pytest.mark.parametrize("secret", [SECRET, OTHER_SECRET])
def test_while_rotating_both_secrets_are_accepted(secret: str) -> None:
    keys = derive_keys([SECRET, OTHER_SECRET])
    signature = sign(derive_keys([secret])[0])
    expected_index = [SECRET, OTHER_SECRET].index(secret)
    assert verify(headers(signature), keys=keys).key.secret_index == expected_index


GOOD = sign(KEYS[0])
WRONG = "v1," + base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "signature",
    [
        GOOD,
        f"{GOOD} {WRONG}",
        f"{WRONG} {GOOD}",
        f"v1,%%% {GOOD}",
        f"v1 {GOOD}",
        f"v1,,, {GOOD}",
        f"  {GOOD}  ",
        f"v1a,{GOOD[3:]} {GOOD}",
        f"v2,{GOOD[3:]} {GOOD}",
        " ".join([WRONG] * 15 + [GOOD]),
        " ".join(["v1,junk"] * 100 + [GOOD]),
    ],
)
def test_a_good_entry_counts_whatever_stands_beside_it(signature: str) -> None:
    assert verify(headers(signature)).signature == GOOD


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ("v1", "no well-formed v1 entry in the signature header"),
        (" ", "no well-formed v1 entry in the signature header"),
        ("v1,", "no well-formed v1 entry in the signature header"),
        ("v1,AAAA", "no well-formed v1 entry in the signature header"),
        (GOOD[:-1], "no well-formed v1 entry in the signature header"),
        (GOOD + "=", "no well-formed v1 entry in the signature header"),
        (GOOD[3:], "no well-formed v1 entry in the signature header"),
        (GOOD.replace("v1", "V1"), "no well-formed v1 entry in the signature header"),
        (GOOD.replace("v1", "v1a"), "no well-formed v1 entry in the signature header"),
        (GOOD.replace("v1", "v2"), "no well-formed v1 entry in the signature header"),
        (f"{GOOD},{GOOD}", "no well-formed v1 entry in the signature header"),
        (GOOD.replace(" ", "\t") + "\t", "no well-formed v1 entry in the signature header"),
        ("v1,é" + GOOD[4:], "no well-formed v1 entry in the signature header"),
        (WRONG, "none of 1 entries fits one of our keys"),
        (" ".join([WRONG] * 16 + [GOOD]), "none of 16 entries fits one of our keys"),
    ],
)
def test_a_header_without_a_good_entry_is_refused(signature: str, message: str) -> None:
    with pytest.raises(WrongSignatureError) as refused:
        verify(headers(signature))
    assert str(refused.value) == message


@pytest.mark.parametrize("signer", [*KEYS, OTHER_KEY])
def test_every_key_meets_every_entry_whichever_fits(
    signer: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def note(expected: bytes, digest: bytes) -> bool:
        compared.append(digest)
        return compare(expected, digest)

    monkeypatch.setattr(hmac, "compare_digest", note)
    entries = [sign(signer), sign(OTHER_KEY, b"another body"), sign(KEYS[0], b"a third")]
    signed = check_headers(headers(" ".join(entries)), now_s=NOW_S)
    with contextlib.suppress(UnsignedError):
        find_key(signed, BODY, KEYS)
    assert compared == [*signed.digests] * len(KEYS)


def test_another_body_id_or_timestamp_is_refused() -> None:
    for changed in (headers(GOOD, webhook_id="evt_2"), headers(GOOD, timestamp=f"0{NOW_S}")):
        with pytest.raises(WrongSignatureError):
            verify(changed)
    with pytest.raises(WrongSignatureError):
        verify(headers(GOOD), BODY + b" ")


def test_the_timestamp_is_signed_as_its_text() -> None:
    assert verify(headers(timestamp=f"00{NOW_S}")).key == KEYS[0]


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"\xef\xbb\xbf{}", b"[" * 100_000])
def test_any_body_can_be_signed(body: bytes) -> None:
    assert verify(headers(sign(KEYS[0], body)), body).key == KEYS[0]


# --- headers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
@pytest.mark.parametrize("is_empty", [True, False])
def test_a_missing_or_empty_header_is_refused(name: str, is_empty: bool) -> None:
    incomplete = headers()
    if is_empty:
        incomplete[name] = ""
    else:
        del incomplete[name]
    with pytest.raises(MissingHeaderError, match=f"^without {name}$"):
        check_headers(incomplete, now_s=NOW_S)


@pytest.mark.parametrize("age_s", [-300, -299, 0, 300])
def test_a_delivery_within_the_tolerance_is_accepted(age_s: int) -> None:
    assert verify(headers(timestamp=str(NOW_S - age_s))).key == KEYS[0]


@pytest.mark.parametrize("age_s", [-301, 301, NOW_S, NOW_S - 10**12 + 1, -NOW_S * 999 // 1000])
def test_a_delivery_outside_the_tolerance_is_refused_and_says_its_age(age_s: int) -> None:
    with pytest.raises(StaleDeliveryError) as refused:
        check_headers(headers(timestamp=str(NOW_S - age_s)), now_s=NOW_S)
    assert str(refused.value) == f"signed {age_s} s ago, tolerance is 300 s"
    assert refused.value.age_s == age_s


@pytest.mark.parametrize(
    "timestamp",
    [
        f"{NOW_S}.0", f"+{NOW_S}", f"-{NOW_S}", "1_739_571_908", "1.739e9", f" {NOW_S}",
        f"{NOW_S} ", f"{NOW_S}\n", "١٧٣٩٥٧١٩٠٨", "²", "1" + "0" * 30, f"{NOW_S}000", "nan",
        "inf", "0x1", "\0",
    ],
)  # fmt: skip
def test_a_timestamp_that_is_not_1_to_12_ascii_digits_is_refused(timestamp: str) -> None:
    with pytest.raises(BadTimestampError, match=r"^the timestamp is not 1 to 12 ASCII digits$"):
        check_headers(headers("v1,x", timestamp=timestamp), now_s=NOW_S)


@pytest.mark.parametrize("webhook_id", ["a", "a" * 256, "a.b", "../..", '"\\', "a%00", "!~+-"])
def test_an_id_of_visible_ascii_is_accepted(webhook_id: str) -> None:
    assert verify(headers(webhook_id=webhook_id)).key == KEYS[0]


@pytest.mark.parametrize(
    "webhook_id", ["a" * 257, "a,b", "a b", " a", "a\n", "a\0", "\x7f", "ä", "😀", "\x1b[31m"]
)
def test_any_other_id_is_refused(webhook_id: str) -> None:
    message = "^the id is not 1 to 256 visible ASCII characters without comma$"
    with pytest.raises(BadIdError, match=message):
        check_headers(headers("v1,x", webhook_id=webhook_id), now_s=NOW_S)


@given(st.text(), st.text(), st.text(), st.binary())
def test_junk_is_refused_and_never_breaks(
    webhook_id: str, timestamp: str, signature: str, body: bytes
) -> None:
    with pytest.raises(UnsignedError):
        verify(headers(signature, webhook_id, timestamp), body)


# --- oracles ----------------------------------------------------------------------------------
# Both packages read the clock themselves, so here the clock is the real one.

json_bodies = st.dictionaries(st.text(), st.none() | st.integers() | st.text()).map(json.dumps)


@given(secrets, webhook_ids, json_bodies)
def test_what_standardwebhooks_signs_is_accepted(secret: str, webhook_id: str, body: str) -> None:
    now = datetime.now(UTC)
    signature = Webhook(secret).sign(webhook_id, now, body)
    given_headers = headers(signature, webhook_id, str(int(now.timestamp())))
    signed = check_headers(given_headers, now_s=int(time.time()))
    assert find_key(signed, body.encode(), derive_keys([secret])).key.derivation == "base64"


@given(secrets, webhook_ids, json_bodies)
def test_what_the_vendors_sample_code_signs_is_accepted(
    secret: str, webhook_id: str, body: str
) -> None:
    """The sample takes the text after the prefix as the key."""
    now = datetime.now(UTC)
    signature = Webhook(secret.removeprefix("whsec_").encode()).sign(webhook_id, now, body)
    given_headers = headers(signature, webhook_id, str(int(now.timestamp())))
    signed = check_headers(given_headers, now_s=int(time.time()))
    assert find_key(signed, body.encode(), derive_keys([secret])).key.derivation == "text"


@given(secrets, webhook_ids, json_bodies)
def test_what_is_accepted_here_both_packages_accept(
    secret: str, webhook_id: str, body: str
) -> None:
    key = derive_keys([secret], "base64")[0]
    timestamp = str(int(time.time()))
    signature = sign(key, body.encode(), webhook_id, timestamp)
    given_headers = headers(signature, webhook_id, timestamp)
    assert Webhook(secret).verify(body, given_headers) == json.loads(body)
    CLIENT.webhooks.unwrap(body, headers=given_headers, key=secret)


CLIENT = MidboundCloud(api_key="none")


@given(
    change=st.sampled_from(["id", "timestamp", "signature", "body", "secret", "age", "none"]),
    position=st.integers(min_value=0, max_value=10_000),
)
def test_a_change_anywhere_is_refused_here_and_there(change: str, position: int) -> None:
    now_s = int(time.time())
    timestamp = str(now_s - (1000 if change == "age" else 0))
    signature = sign(KEYS[0], BODY, ID, timestamp)
    parts = {"id": ID, "timestamp": timestamp, "signature": signature[3:], "body": BODY.decode()}
    if change in parts:
        text = parts[change]
        # Not the last: of a digest's last letter two bits say nothing.
        index = position % (len(text.rstrip("=")) - 1)
        # A digit for a digit, a letter for a letter: the form stays valid, only the value changes.
        replacement = "1" if text[index] != "1" else "2"
        parts[change] = text[:index] + replacement + text[index + 1 :]
    secret = OTHER_SECRET if change == "secret" else SECRET
    given_headers = headers("v1," + parts["signature"], parts["id"], parts["timestamp"])
    is_accepted = is_accepted_there = True
    try:
        signed = check_headers(given_headers, now_s=now_s)
        find_key(signed, parts["body"].encode(), derive_keys([secret], "base64"))
    except UnsignedError:
        is_accepted = False
    try:
        Webhook(secret).verify(parts["body"], given_headers, json_parse=False)
    except WebhookVerificationError:
        is_accepted_there = False
    assert is_accepted == is_accepted_there == (change == "none")


# What the package does otherwise, and why we differ. Each row is run against both.
DIFFERENCES = {
    "a doubled space between entries": (f" {GOOD}", ValueError),
    "an entry without comma before a good one": (f"v1 {GOOD}", ValueError),
    "an entry with two commas before a good one": (f"v1,,x {GOOD}", ValueError),
    "an entry of bad base64 before a good one": (f"v1,A {GOOD}", ValueError),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_difference_where_the_package_raises_and_we_accept(name: str) -> None:
    signature, raised = DIFFERENCES[name]
    now_s = int(time.time())
    signature = signature.replace(GOOD, sign(KEYS[0], timestamp=str(now_s)))
    given_headers = headers(signature, timestamp=str(now_s))
    with pytest.raises(raised):
        Webhook(SECRET).verify(BODY.decode(), given_headers)
    assert find_key(check_headers(given_headers, now_s=now_s), BODY, KEYS).key == KEYS[0]


def test_a_difference_in_a_body_that_is_not_utf8_the_package_raises_and_we_accept() -> None:
    now_s = str(int(time.time()))
    body = b"\xff"
    given_headers = headers(sign(KEYS[0], body, timestamp=now_s), timestamp=now_s)
    with pytest.raises(UnicodeDecodeError):
        Webhook(SECRET).verify(body, given_headers)
    assert find_key(check_headers(given_headers, now_s=int(now_s)), body, KEYS).key == KEYS[0]


@pytest.mark.parametrize("form", ["{}.0", "+{}", " {} "])
def test_a_difference_in_the_timestamp_the_package_accepts_and_we_refuse(form: str) -> None:
    """The package signs the number that it read, so a text that was never signed passes there."""
    now_s = int(time.time())
    signature = sign(KEYS[0], timestamp=str(now_s))
    given_headers = headers(signature, timestamp=form.format(now_s))
    Webhook(SECRET).verify(BODY.decode(), given_headers)
    with pytest.raises(BadTimestampError):
        check_headers(given_headers, now_s=now_s)


@pytest.mark.parametrize("webhook_id", ["a,b", "a b", "ä", "a" * 257])
def test_a_difference_in_the_id_the_package_accepts_and_we_refuse(webhook_id: str) -> None:
    now_s = str(int(time.time()))
    signature = sign(KEYS[0], webhook_id=webhook_id, timestamp=now_s)
    given_headers = headers(signature, webhook_id, now_s)
    Webhook(SECRET).verify(BODY.decode(), given_headers)
    with pytest.raises(BadIdError):
        check_headers(given_headers, now_s=int(now_s))


def test_a_difference_in_the_number_of_entries_the_package_tries_all_and_we_try_16() -> None:
    now_s = str(int(time.time()))
    signature = " ".join([WRONG] * 16 + [sign(KEYS[0], timestamp=now_s)])
    given_headers = headers(signature, timestamp=now_s)
    Webhook(SECRET).verify(BODY.decode(), given_headers)
    with pytest.raises(WrongSignatureError):
        find_key(check_headers(given_headers, now_s=int(now_s)), BODY, KEYS)


def test_a_difference_in_a_weak_secret_the_package_takes_a_key_of_a_few_bytes() -> None:
    assert Webhook("whsec_ab!!!!!!!!!!!!!!!!").sign("a", datetime.now(UTC), "").startswith("v1,")
    assert [key.derivation for key in derive_keys(["whsec_ab!!!!!!!!!!!!!!!!"])] == ["text"]
