# SPDX-License-Identifier: Apache-2.0
"""What the computed tables of docs/use/serving.md are computed from."""

import pytest

from bench import memory


def test_counts_add_up_to_the_released_model() -> None:
    """The sizes that the checkpoint's headers gave, in billions, and the measured GiB."""
    counts = [memory.TEXT, memory.VISION, memory.MTP]
    assert [round(count / 1e9, 2) for count in counts] == [32.53, 1.29, 0.54]
    bf16 = memory.VARIANTS[0]
    loaded = (bf16.text() + memory.VISION_BYTES) / memory.GIB
    # Measured: 63.14, and 1.00 for the draft layer; a rotary table and what torch rounds up.
    assert loaded == pytest.approx(63.14, abs=0.2)
    assert bf16.mtp() / memory.GIB == pytest.approx(1.0, abs=0.005)


@pytest.mark.parametrize(
    ("tokens", "plain", "draft"),
    [(131072, 6.83, 6.72), (262144, 3.84, 3.78)],
)
def test_requests_are_those_of_the_engines_planner(tokens: int, plain: float, draft: float) -> None:
    """docs/maintain/kv-cache.md has them, measured with 70 GiB."""
    sizes = [memory.kv_bytes(tokens, draft=draft) for draft in (False, True)]
    assert [round(70 * memory.GIB / size, 2) for size in sizes] == [plain, draft]
