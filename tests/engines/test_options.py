"""Settings that cannot work are refused before anything is loaded."""

import pytest

from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_ctx": -1}, "n_ctx must be between 0 and 1073741824, got -1"),
        ({"threads": -2}, "threads must be between 0 and 512"),
        ({"max_draft": 512}, "between 0 and 511"),
        ({"max_draft": -1}, "between 0 and 511"),
        ({"n_gpu_layers": -1}, "'auto' or 'all', got -1"),
        ({"n_gpu_layers": "most"}, "got 'most'"),
        ({"type_k": "q3_k"}, "KV type 'q3_k' is unknown"),
        ({"type_v": "q8_0", "flash_attention": "off"}, "needs flash attention"),
    ],
)
def test_impossible_options_are_refused(values, message):
    with pytest.raises(ConfigError) as error:
        LoadOptions(**values)
    assert message in str(error.value)
