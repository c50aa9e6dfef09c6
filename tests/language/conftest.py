"""One random transformer of each style."""

from __future__ import annotations

import pytest

from fedrec.testing.language import Style, Tiny, tiny


@pytest.fixture(scope="session", params=["bert", "llama", "gemma"])
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """One of each style."""
    style: Style = request.param
    return tiny(style, tmp_path_factory.mktemp(style))
