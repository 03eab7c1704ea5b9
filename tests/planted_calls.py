"""Wrong calls that the type checker must refuse, one for each way into the package.

`.ci/types` checks this file: a call that it no longer sees as wrong has an unused ignore.
"""

from visual_ar import loading
from visual_ar.accel.decoding import Decoding
from visual_ar.accel.kernels import dispatch
from visual_ar.accel.loop.window import check_window
from visual_ar.app.settings import parse_seed
from visual_ar.tokenizers.bit_codes import bits_to_codes


def planted(method: Decoding) -> None:
    """Is never called."""
    loading.find(1)  # type: ignore[arg-type]
    check_window()  # type: ignore[call-arg]
    method.advance("state")  # type: ignore[arg-type]
    dispatch.choose("cpu")  # type: ignore[arg-type]
    bits_to_codes("bits", "msb")  # type: ignore[arg-type]
    parse_seed(seed=1.5)  # type: ignore[arg-type]
