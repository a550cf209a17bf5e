"""Versions that are known to go wrong, each with its source.

A row says what others reported or what was measured; that a version has no row is no proof that it is right.
"""

from __future__ import annotations

from dataclasses import dataclass

_TRT_ISSUES = "https://github.com/NVIDIA/TensorRT/issues"
_TEST = "run python -m export parity on this machine before you trust a verdict"


@dataclass(frozen=True)
class KnownBad:
    """Versions of one component that go wrong.

    Attributes:
        component: "tensorrt", "onnxruntime" or "torch-cuda".
        first: the first version that is affected.
        below: the first one that is not any more; "" when no such version is known.
        breaks: what goes wrong.
        cure: what to do.
        source: where it was reported.
        targets: architectures that are affected, () for all.
        jetson_only: whether only a Jetson is affected.
    """

    component: str
    first: str
    below: str
    breaks: str
    cure: str
    source: str
    targets: tuple[str, ...] = ()
    jetson_only: bool = False


TABLE = (
    KnownBad(
        "tensorrt",
        "0",
        "10.0",
        "a LayerNorm that an exporter took apart overflows in FP16 (mAP 43.8 to 23.4)",
        "upgrade: dgsnet needs 10.3 or newer, and keeps LayerNormalization one node",
        f"{_TRT_ISSUES}/3657",
    ),
    KnownBad(
        "tensorrt",
        "10.3",
        "10.4",
        "vision transformers in FP16 gave one class everywhere (DINOv3 ViT-B and ViT-L)",
        f"upgrade, or build with --precision fp32; {_TEST}",
        f"{_TRT_ISSUES}/4723",
    ),
    KnownBad(
        "tensorrt",
        "10.3",
        "10.4",
        "a vision transformer was unstable on JetPack 6.2; 10.16.1 cured it",
        f"use JetPack 7.2 where the board takes it; {_TEST}",
        "https://github.com/ika-rwth-aachen/ros2-depth-anything-v3-trt/issues/16",
        jetson_only=True,
    ),
    KnownBad(
        "tensorrt",
        "10.4",
        "10.5",
        "a vision transformer came out wrong in FP32 (cosine 0.018) and as NaN in FP16",
        f"upgrade; {_TEST}",
        f"{_TRT_ISSUES}/4742",
    ),
    KnownBad(
        "tensorrt",
        "10.4",
        "10.6",
        "a detector came out wrong, 10.6 was right",
        f"upgrade to 10.6 or newer; {_TEST}",
        "https://github.com/Intellindust-AI-Lab/DEIMv2/issues/112",
    ),
    KnownBad(
        "tensorrt",
        "10.7",
        "10.8",
        "scaled_dot_product_attention as PyTorch exports it came out wrong, even in FP32 (open_clip)",
        "build from dgsnet's own graphs, whose attention is explicit, or upgrade",
        f"{_TRT_ISSUES}/4333",
    ),
    KnownBad(
        "tensorrt",
        "10.0",
        "10.17",
        "fused attention is silently wrong in FP16 and BF16 (a score of 0.933 became 0.045)",
        f"build with --precision fp32; {_TEST}",
        f"{_TRT_ISSUES}/4837",
        targets=("sm_120",),
    ),
    KnownBad(
        "tensorrt",
        "10.11",
        "10.12",
        "SegFormer was exact at batch 1 and wrong from batch 2 on, in FP32 and FP16",
        f"{_TEST}; it compares every batch size",
        f"{_TRT_ISSUES}/4853",
    ),
    KnownBad(
        "tensorrt",
        "11.1",
        "11.2",
        "SegFormer was exact at batch 1 and wrong from batch 2 on, in FP32 and FP16",
        f"{_TEST}; it compares every batch size",
        f"{_TRT_ISSUES}/4853",
    ),
    KnownBad(
        "tensorrt",
        "11.1",
        "11.2",
        "four identical rows gave four results (a DETR-like detector, FP32)",
        f"use 10.13 or upgrade; {_TEST}",
        f"{_TRT_ISSUES}/4813",
    ),
    KnownBad(
        "tensorrt",
        "10.16",
        "10.17",
        "an ONNX Attention node fails inside If, and may have one output only",
        "build from dgsnet's own graphs, which have neither",
        f"{_TRT_ISSUES}/4739",
    ),
    KnownBad(
        "tensorrt",
        "11.0",
        "11.4.1",
        "it does not support JetPack; 11.4.1 is the first that does",
        "use JetPack's own TensorRT, or 11.4.1 where NVIDIA names the board",
        "https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html",
        jetson_only=True,
    ),
    KnownBad(
        "onnxruntime",
        "1.23",
        "1.32",
        "an FP16 vision transformer opened on a CPU at the default optimisation level can end the process",
        "open FP16 graphs with ORT_ENABLE_BASIC, as dgsnet does; on a CPU it runs the FP32 graph",
        "https://github.com/microsoft/onnxruntime/issues/15494",
    ),
    KnownBad(
        "torch-cuda",
        "0",
        "13.0",
        "PyTorch has no kernels for sm_110 (Thor): 'no kernel image'",
        "install a torch built for CUDA 13 or newer",
        "https://github.com/OpenRAL/openral/issues/167",
        targets=("sm_110",),
    ),
)
