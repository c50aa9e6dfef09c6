"""The contract tests of the families, for members from any package.

A test class derives from a contract and says which member it is about:

    from fedrec.testing.embedding import EmbeddingContract

    class TestScale(EmbeddingContract):
        @pytest.fixture
        def embedding(self) -> ItemEmbedding:
            return ScaleEmbedding(ScaleConfig("scale", strength=1.0), n_items=40, dim=8)

There are `embedding.EmbeddingContract`, `backbone.BackboneContract`, `optim.RecipeContract`, `codec.CodecContract`,
`uplink.UplinkContract`, `downlink.DownlinkContract` and `privacy.PrivacyContract`. They need `pytest` and `hypothesis`
(the extra `test`); nothing else of fedrec imports this package.
"""

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{name}" for name in ("backbone", "codec", "downlink", "embedding", "optim", "privacy", "uplink"))
)
