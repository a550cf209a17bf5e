"""The one home of numeric tolerances. Each carries the measurement that it came from.

All are on raw logits and embeddings; temperature and threshold never enter. They are copied into every
manifest, so that a bundle is judged by the limits it was made with.
"""

from __future__ import annotations

# Largest |difference of logits| that parity accepts between the reference and an engine of a precision.
# fp32: measured 3.6e-5 over 432 pictures (demo bundle, PyTorch against ONNX Runtime 1.31 on a CPU), where
# logits reach 12; other kernels sum in another order, and deeper towers add up more of it.
FP32_MAX_ABS_LOGIT = 1e-3
# fp16: the project's gate. The spacing of FP16 numbers near a logit of 8 is 0.0078.
FP16_MAX_ABS_LOGIT = 0.05

TOLERANCES = {
    "fp32_max_abs_logit": FP32_MAX_ABS_LOGIT,
    "fp16_max_abs_logit": FP16_MAX_ABS_LOGIT,
}


def logit_tolerance(tolerances: dict[str, float], precision: str) -> float:
    """Returns the largest |difference of logits| that is allowed to an engine of ``precision``."""
    return tolerances[f"{precision}_max_abs_logit"]
