"""The sections of a training run's settings.

Defaults are the released behaviour of DGS-Net where that is sound; docs/training.md has one line for each
choice and says where ours differs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SurgeryConfig:
    """Gradient surgery at the student's image feature (recipe "dgs").

    Attributes:
        order: "released" projects the help term too, "paper" adds it after the projection.
        harm: "positive" projects off relu(g_text), "full" off g_text.
        align: lambda, the weight of prior alignment.
        align_reduction: "released" divides lambda by the batch once more, "per-sample" does not.
        eps: added to the norm of the harmful direction; 0 means the exact unit direction.
        eps_batch: the B inside the text residual; 0 means the effective batch, 32 the published strength at
            any batch.
        text_head: "linear" as released, where the direction does not depend on the caption, or "mlp", with
            one hidden layer, where it does.
        text_hidden: width of the hidden layer of "mlp"; 0 means the feature's width.
        text_warmup_steps: steps that the text head trains alone, on the cached text features, before stage 2.
    """

    order: str = "released"
    harm: str = "positive"
    align: float = 0.2
    align_reduction: str = "released"
    eps: float = 1e-6
    eps_batch: int = 0
    text_head: str = "linear"
    text_hidden: int = 0
    text_warmup_steps: int = 0


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the attention of every vision block (recipes "dgs" and "lora").

    Attributes:
        r: rank.
        alpha: numerator of the scale.
        scaling: "rslora" is alpha / sqrt(r), as released; "lora" is alpha / r.
        dropout: on the input of the adapter path only; 0.8 as released is unusually high.
        targets: which of q, k, v get an adapter.
    """

    r: int = 6
    alpha: float = 6.0
    scaling: str = "rslora"
    dropout: float = 0.8
    targets: tuple[str, ...] = ("q", "k", "v")

    @property
    def scale(self) -> float:
        """The factor of B·A."""
        return self.alpha / self.r**0.5 if self.scaling == "rslora" else self.alpha / self.r


@dataclass(frozen=True)
class DataConfig:
    """Reading the data set.

    Attributes:
        batch: B, the samples of one optimiser step over all processes and accumulation steps together.
        workers: processes that decode and select, where the patches are not held in memory.
        cache_gib: hold the selected patches in memory when they need at most this much.
        teacher_cache_gib: hold teacher features of stage 1 for stage 2 when they need at most this much.
        balance: "none"; "sampler" draws both classes equally often; "pos-weight" weighs the losses instead.
        audit: "full" decodes every picture once before training, "headers" reads headers and hashes only.
        max_corrupt: share of unreadable pictures that are listed and left out; more of them stop the run.
        allow_confounded: train although the codec or the size alone predicts the label.
        allow_duplicates: train although val holds pictures of train.
        flip: random horizontal flip of the mosaic in training.
        jpeg: probability of recompression in training; 0 as published.
        jpeg_quality: its lowest and highest quality.
        blur: probability of a Gaussian blur in training; 0 as published.
        blur_sigma: its smallest and largest standard deviation in pixels.
        resize: probability of a change of scale in training; 0 as published.
        resize_scale: its smallest and largest factor.
    """

    batch: int = 32
    workers: int = 2
    cache_gib: float = 2.0
    teacher_cache_gib: float = 2.0
    balance: str = "none"
    audit: str = "full"
    max_corrupt: float = 0.01
    allow_confounded: bool = False
    allow_duplicates: bool = False
    flip: bool = True
    jpeg: float = 0.0
    jpeg_quality: tuple[int, ...] = (30, 100)
    blur: float = 0.0
    blur_sigma: tuple[float, ...] = (0.1, 3.0)
    resize: float = 0.0
    resize_scale: tuple[float, ...] = (0.5, 1.0)


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and the arithmetic of a step.

    Attributes:
        name: "adam" as released, or "adamw", whose weight decay is not part of the gradient.
        lr: learning rate of both stages.
        beta1: first moment's decay.
        beta2: second moment's decay.
        weight_decay: 0 as released.
        clip_norm: largest norm of the whole gradient; 0 does not clip, as released.
        accumulate: micro-batches that each process adds up before a step.
        amp: "off", "bf16" or "fp16": the arithmetic of the tower; heads, losses and surgery stay FP32.
        compile: run the tower through torch.compile.
    """

    name: str = "adam"
    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    accumulate: int = 1
    amp: str = "off"
    compile: bool = False


@dataclass(frozen=True)
class ScheduleConfig:
    """How long each stage runs, what is measured on the way, and what is kept.

    Attributes:
        stage1_epochs: epochs on frozen features: the teacher head, or the recipe "linear".
        stage2_epochs: epochs that train adapters.
        stage1_steps: end stage 1 after so many steps; 0 means by epochs alone.
        stage2_steps: end stage 2 after so many steps; 0 means by epochs alone.
        warmup_steps: steps of each stage over which the learning rate rises from 0.
        decay: "none" as released, "linear" or "cosine": how the learning rate falls to 0 by the stage's end.
        validate_every: steps of the last stage between validations; 0 means once per epoch.
        metric: "ap", "auroc", "accuracy" or "loss" on the val split: what "best" means.
        patience: validations without a better metric after which the last stage ends; 0 never ends it early.
        keep: whether the run's checkpoint is the "last" weights, as released, or the "best".
        keep_last: how many of the latest validated checkpoints stay in RUN/kept.
        save_every: steps between the states that ``--resume`` continues from.
    """

    stage1_epochs: int = 3
    stage2_epochs: int = 1
    stage1_steps: int = 0
    stage2_steps: int = 0
    warmup_steps: int = 0
    decay: str = "none"
    validate_every: int = 0
    metric: str = "ap"
    patience: int = 0
    keep: str = "last"
    keep_last: int = 0
    save_every: int = 200
