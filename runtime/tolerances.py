"""The one home of numeric tolerances. Each carries the measurement that it came from.

All are on raw logits and embeddings; temperature and threshold never enter. They are copied into every
manifest. A gate takes the stricter of the manifest's and these, so that editing a manifest loosens nothing.
"""

from __future__ import annotations

TOLERANCES = {
    # Largest |difference of logits| between the reference and an engine of a precision.
    # fp32: measured over 432 pictures (PyTorch against ONNX Runtime 1.31 on a CPU) 1.1e-5 on the demo bundle,
    # whose logits reach 6, and 3.0e-5 on an earlier one, where they reached 12; other kernels sum in another
    # order, and deeper towers add up more of it.
    "fp32_max_abs_logit": 1e-3,
    # fp16: the project's gate. The spacing of FP16 numbers near a logit of 8 is 0.0078; emulated FP16 moves
    # the demo's logits by 0.013, and those of an earlier demo, which reached 13, by 0.048.
    "fp16_max_abs_logit": 0.05,
    # Smallest cosine between two forms' embeddings of one picture.
    # fp32: measured 1 - 3e-11 or nearer 1 on the demo's 432 pictures and on ViT-B/32 (python -m benchmarks
    # parity). What it must tell apart: every LayerNorm epsilon at 1e-6 for 1e-5 gives 1 - 3e-8 (random
    # weights) to 1 - 3e-7 (an earlier demo), with differences of logits from 9e-5, which the limit on logits
    # lets pass.
    # fp16: emulated FP16 gives 1 - 4e-6 on the demo.
    "fp32_min_cosine": 1 - 1e-9,
    "fp16_min_cosine": 0.999,
    # How much average precision may fall from one form to another: the project's gate.
    "max_ap_drop": 0.001,
}


def logit_tolerance(tolerances: dict[str, float], precision: str) -> float:
    """Returns the largest |difference of logits| that is allowed to an engine of ``precision``."""
    return tolerances[f"{precision}_max_abs_logit"]
