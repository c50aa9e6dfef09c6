"""The contract of codecs, over every member of the family by itself."""

from __future__ import annotations

import pytest

from fedrec.codecs.base import Codec
from fedrec.codecs.base_table import BaseTableCodec
from fedrec.config.describe import load_member
from fedrec.core.errors import PacketError
from fedrec.core.registry import codecs
from fedrec.core.tensors import Spec, TableSpec, spec_digest
from fedrec.testing.codec import SHAPES, CodecContract, draw
from fedrec.wire.packet import Kind, PacketFormat

MEMBERS = codecs.names()


def made(name: str) -> Codec:
    codec: Codec = codecs.get(name)(load_member("codec", name))
    return codec


class TestEveryCodec(CodecContract):
    @pytest.fixture(params=MEMBERS)
    def codec(self, request: pytest.FixtureRequest) -> Codec:
        return made(request.param)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_codec_is_part_of_the_specification(name: str) -> None:
    digests = {PacketFormat(Kind.MODEL, SHAPES, made(other), 0).digest() for other in MEMBERS}
    assert len(digests) == len(MEMBERS)
    assert PacketFormat(Kind.MODEL, SHAPES, made(name), 0).digest() in digests


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_and_so_are_its_settings(name: str) -> None:
    """Two sides with other settings would read each other's bytes as other numbers, where the sizes are the same."""
    spec: Spec = {"base": TableSpec((1, 4))}
    for make in (lambda codec: codec, lambda codec: BaseTableCodec("base", codec, made("float32"))):
        by_tensor, by_row = (
            PacketFormat(Kind.MODEL, spec, make(codecs.get(name)(load_member("codec", name, scale=scale))), 0)
            for scale in ("tensor", "row")
        )
        packet = by_tensor.encode(0, 0, draw(spec))
        assert len(packet) == by_row.size()
        with pytest.raises(PacketError) as caught:
            by_row.decode(packet)
        assert caught.value.reason == "wrong_spec"


def test_a_codec_without_settings_is_named_by_its_name_alone() -> None:
    """Packets that sites and checkpoints have kept are of such a digest."""
    assert PacketFormat(Kind.MODEL, SHAPES, made("float32"), 0).digest() == spec_digest(SHAPES, "float32")
