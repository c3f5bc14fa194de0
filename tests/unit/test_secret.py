from __future__ import annotations

from asyncsync.secrets import Secret


def test_a_secret_shows_in_no_text_that_is_made_of_it() -> None:
    secret = Secret("canary")
    texts = [repr(secret), str(secret), f"{secret}", f"{[secret]!r}", f"{secret!r:>8}"]

    assert not any("canary" in text for text in texts)
    assert secret.reveal() == "canary"


def test_equal_secrets_are_equal() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1
