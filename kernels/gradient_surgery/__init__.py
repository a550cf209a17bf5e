"""Prior alignment and orthogonal suppression on the gradient at the student's image feature."""

from kernels.gradient_surgery.op import surgery, surgery_affine

__all__ = ["surgery", "surgery_affine"]
