"""The one home of numeric tolerances. Each carries the measurement that it came from.

All are on raw logits and embeddings; temperature and threshold never enter. They are copied into every
manifest. A gate takes the stricter of the manifest's and these, so that editing a manifest loosens nothing.
"""

from __future__ import annotations

TOLERANCES = {
    # Largest |difference of logits| between the reference and an engine of a precision.
    # fp32: measured 3.0e-5 over 432 pictures (demo bundle, PyTorch against ONNX Runtime 1.31 on a CPU), where
    # logits reach 12; other kernels sum in another order, and deeper towers add up more of it.
    "fp32_max_abs_logit": 1e-3,
    # fp16: the project's gate. The spacing of FP16 numbers near a logit of 8 is 0.0078; the demo's FP16
    # weights computed in FP32 differ by 0.0073.
    "fp16_max_abs_logit": 0.05,
    # Smallest cosine between two forms' embeddings of one picture. Measured on the demo bundle: fp32
    # 1 - 3e-11, FP16 weights computed in FP32 1 - 7e-7.
    "fp32_min_cosine": 0.99999,
    "fp16_min_cosine": 0.999,
}


def logit_tolerance(tolerances: dict[str, float], precision: str) -> float:
    """Returns the largest |difference of logits| that is allowed to an engine of ``precision``."""
    return tolerances[f"{precision}_max_abs_logit"]
