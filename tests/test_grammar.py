"""What is typed for players and games: names, paths with any sign in them, options, and nothing secret shown."""

import pytest

from g1_ray.grammar import Spec, is_secret, parse_spec, shown


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("small=2048?size=3", ("small", "2048", {"size": "3"})),
        ("runs/beta=0.1", ("", "runs/beta=0.1", {})),
        ("me=runs/beta=0.1?temperature=0", ("me", "runs/beta=0.1", {"temperature": "0"})),
        ("./kl=0", ("", "./kl=0", {})),
        ("~/kl=0", ("", "~/kl=0", {})),
        ("human:lr=2.parquet", ("", "human:lr=2.parquet", {})),
        ("a/b=http://h/v1?model=x=y&tries=1", ("a/b", "http://h/v1", {"model": "x=y", "tries": "1"})),
        ("=oracle", ("", "oracle", {})),
    ],
)
def test_names_paths_and_options(text, spec):
    assert parse_spec(text) == Spec(*spec)


def test_what_is_there_may_have_any_sign_in_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lr=1e-5", "why?", "n=3?a=b"):
        (tmp_path / name).mkdir()
        assert parse_spec(name) == Spec("", name, {})
        assert parse_spec(f"{name}?temperature=0") == Spec("", name, {"temperature": "0"})
        assert parse_spec(f"x={name}?temperature=0") == Spec("x", name, {"temperature": "0"})


@pytest.mark.parametrize(
    ("text", "message"),
    [("a?b", "'b': expected"), ("a?b=1&b=2", "b is given twice"), ("https://u:p@h/v1?model", "https://...@h/v1")],
)
def test_what_is_no_option(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_spec(text)
    assert "u:p" not in str(error.value)


def test_names_of_secrets():
    secret = "key api-key api_key apiKey x-api-key Ocp-Apim-Subscription-Key sig signature access_token token password"
    assert [name for name in secret.split() if not is_secret(name)] == []
    plain = "key_env key_header max_tokens max_completion_tokens prompt_cache_key stop_token api-version detail model"
    assert [name for name in plain.split() if is_secret(name)] == []
    assert shown("a=https://me:pw@h:1/v1?model=m&query.sig=abc&tries=2&api-key=k") == (
        "a=https://...@h:1/v1?model=m&query.sig=...&tries=2&api-key=..."
    )
