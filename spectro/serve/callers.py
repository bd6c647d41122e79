"""Identifies callers: the client of an address, its API key, and whether another site's page sent the request."""

import hmac
import re
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from spectro.errors import PredictionError
from spectro.serve.words import problem

GUESS_S = 60.0
MANY_CLIENTS = 4096
ALL = "*"
AUTHORITY = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]*)?")


def share_of(address: str) -> str:
    """Return the client of an address: itself, or the first 64 bits of IPv6, as one client can use all below them."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return address
    return str(found.ipv4_mapped or IPv6Network((int(found) >> 64 << 64, 64)))


class Proxies:
    """Addresses and networks of proxies.

    Args:
        given: addresses or networks, such as `10.0.0.5` or `10.0.0.0/8`.

    Raises:
        PredictionError: an entry is neither.
    """

    def __init__(self, given: Iterable[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        for one in given:
            try:
                self._networks.append(ip_network(one))
            except ValueError as error:
                raise PredictionError(
                    f"proxies: {one!r} is not an address or network ({error}); give one such as 10.0.0.5 or 10.0.0.0/8"
                ) from error

    def __contains__(self, address: str) -> bool:
        try:
            found = ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._networks)


class Keys:
    """The API keys of the service, and how often clients guessed wrong.

    Args:
        keys: the keys; none for an open service.
        max_guesses: wrong keys per minute from one client, after which its keys are not checked.
    """

    def __init__(self, keys: Sequence[str], max_guesses: int) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]
        self._max_guesses = max_guesses
        self._wrong: dict[str, deque[float]] = {}
        self._many = MANY_CLIENTS

    def __bool__(self) -> bool:
        return bool(self._digests)

    def refusal(self, headers: Mapping[str, str], client: str) -> JSONResponse | None:
        """Return the refusal of a client without a valid key; None if its key is valid."""
        given = headers.get("x-api-key") or _bearer(headers.get("authorization", ""))
        if not given:
            return problem(401, "an API key is needed: send it as X-API-Key", {"WWW-Authenticate": "Bearer"})
        now = time.monotonic()
        wrong = self._wrong.get(client, deque())
        while wrong and now - wrong[0] > GUESS_S:
            wrong.popleft()
        if len(wrong) >= self._max_guesses:
            return problem(429, "too many wrong keys; wait", {"Retry-After": str(1 + int(GUESS_S - now + wrong[0]))})
        digest = sha256(given.encode("latin-1", "replace")).digest()
        if sum(hmac.compare_digest(digest, one) for one in self._digests):  # compares all of them, whichever matches
            return None
        self._note(client, now)
        return problem(401, "this API key is wrong", {"WWW-Authenticate": "Bearer"})

    def _note(self, client: str, now: float) -> None:
        if len(self._wrong) >= self._many:
            self._wrong = {one: times for one, times in self._wrong.items() if times and now - times[-1] <= GUESS_S}
            self._many = max(MANY_CLIENTS, 2 * len(self._wrong))
        self._wrong.setdefault(client, deque()).append(now)


class Names:
    """The host names of the service; refuses a page of another site that points its own name here (DNS rebinding).

    Args:
        host: the address that the service listens on.
        allowed: further names; `*` for all.
    """

    def __init__(self, host: str = "127.0.0.1", allowed: Iterable[str] = ()) -> None:
        self._allowed = {name.lower().rstrip(".") for name in allowed}
        self._called = self._allowed | {"localhost", host.lower().strip("[]")}
        self._everywhere = host in ("", "0.0.0.0", "::")

    def knows(self, authority: str) -> bool:
        """Return whether a Host header names the service; a missing one does, as browsers always send it."""
        if not authority or ALL in self._allowed:
            return True
        name = _hostname(authority)
        if name in self._called:
            return True
        try:
            return ip_address(name).is_loopback or self._everywhere
        except ValueError:
            return False

    def sent(self, origin: str, authority: str) -> bool:
        """Return whether an Origin header is that of the page, loaded from `authority`, or of an allowed name."""
        try:
            place = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return bool(place) and (place == authority.lower() or _hostname(place) in self._allowed)


def _hostname(authority: str) -> str:
    """Return the name or address in `name:port`; an empty string if it is malformed."""
    found = AUTHORITY.fullmatch(authority.lower())
    return found["name"].strip("[]").rstrip(".") if found else ""


def _bearer(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
