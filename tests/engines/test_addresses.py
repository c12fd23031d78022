"""Addresses of workers: what is understood, and what is refused in one sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.engines.load_options import LoadOptions
from edgecs.engines.workers.addresses import MOST, Address, parse_addresses
from edgecs.errors import ConfigError

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)
HOSTS = st.one_of(NAMES, st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
ADDRESSES = st.builds(Address, HOSTS, st.integers(1, 65535))


@given(st.lists(ADDRESSES, max_size=MOST, unique=True))
def test_addresses_are_read_as_they_are_written(addresses: list[Address]):
    text = ", ".join(map(str, addresses))
    assert parse_addresses(text) == tuple(addresses)
    assert LoadOptions(rpc=text).rpc == ",".join(map(str, addresses))


@given(st.text())
def test_any_text_is_read_or_refused_in_one_sentence(text: str):
    try:
        found = parse_addresses(text)
    except ConfigError as error:
        refused = str(error)
    else:
        assert parse_addresses(",".join(map(str, found))) == found
        return
    assert len(refused) < 300
    assert refused.isprintable()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.0.0.2", "has no port"),
        (":50052", "has no port"),
        ("10.0.0.2:", "between 1 and 65535"),
        ("10.0.0.2:0", "between 1 and 65535"),
        ("10.0.0.2:65536", "between 1 and 65535"),
        ("10.0.0.2:1e3", "between 1 and 65535"),
        ("10.0.0.2:٣", "between 1 and 65535"),
        ("http://10.0.0.2:80", "name or address"),
        ("::1:50052", "name or address"),
        ("[10.0.0.2]:80", "IPv6"),
        ("[::1]", "has no port"),
        ("a b:80", "name or address"),
        ("-x:80", "name or address"),
        (f"{'a' * 254}:80", "name or address"),
        ("a:1,,b:2", "is empty"),
        ("a:1,a:1", "given twice"),
        (",".join(f"a:{n}" for n in range(1, MOST + 2)), "leave some out"),
    ],
)
def test_a_mistake_is_named(text: str, why: str):
    with pytest.raises(ConfigError, match=why):
        parse_addresses(text)
