"""What a node has needed decides how long it is waited for."""

from __future__ import annotations

from federation.pace import MOST, Pace


def test_a_node_of_which_nothing_is_known_has_the_configured_time() -> None:
    pace = Pace()
    pace.needed(1, "train", 40.0)
    assert pace.allowance(2, "train", 25.0) == 25.0


def test_one_that_needed_longer_is_given_half_as_much_again_within_the_limit() -> None:
    pace = Pace()
    pace.needed(1, "train", 40.0)
    assert pace.allowance(1, "train", 25.0) == 60.0
    pace.needed(1, "train", 60.0)
    assert pace.allowance(1, "train", 25.0) == MOST * 25.0


def test_the_first_message_of_another_kind_is_waited_for_as_long() -> None:
    """A slow node is slow at its first ranking as well; what the ranking needed counts from then on."""
    pace = Pace()
    pace.needed(1, "train", 40.0)
    assert pace.allowance(1, "evaluate", 25.0) == 60.0
    pace.needed(1, "evaluate", 2.0)
    assert pace.allowance(1, "evaluate", 25.0) == 25.0


def test_one_that_is_slower_than_the_limit_holds_up_nobody() -> None:
    pace = Pace()
    pace.needed(1, "train", MOST * 25.0 + 1)
    assert pace.too_slow(1, "train", 25.0)
    assert pace.allowance(1, "train", 25.0) == 25.0
    assert not pace.too_slow(1, "evaluate", 25.0)
