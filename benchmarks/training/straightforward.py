"""Stage 2 as one writes it from the paper: the opponent of the training benchmark.

Every picture goes through a Python loop over its patches. Every step runs the frozen teacher, a second tower,
and the text encoder; the gradients that the surgery needs come from autograd, and a hook of plain PyTorch
operations performs it. All else is as good as in this project's own loop: decoding and selection in worker
processes, frozen forwards without a graph, the same adapters, order, draws, optimiser and thread count.
Source: arXiv 2511.13108.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset

from benchmarks.patch_selection.measuring import loop_selection
from runtime.spec import GRID_SIDE, IMAGE_MEAN, IMAGE_STD, MOSAIC_SIDE, PATCH_COUNT, PATCH_SIDE
from train.config import TrainConfig
from train.data.layout import Sample
from train.data.order import epoch_windows, random_source
from train.model.backbone import tokenizer
from train.model.lora import lora_parameters
from train.recipes import build_model

Item = tuple[Tensor, float, Tensor]


def decode(path: Path) -> NDArray[np.uint8]:
    """Returns uint8 ``[H, W, 3]``, RGB."""
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def select(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the 49 selected patches, uint8 ``[49, 32, 32, 3]``."""
    columns = image.shape[1] // PATCH_SIDE
    corners = [divmod(int(index), columns) for index in loop_selection(image)]
    cuts = [(row * PATCH_SIDE, column * PATCH_SIDE) for row, column in corners]
    return np.stack([image[top : top + PATCH_SIDE, left : left + PATCH_SIDE] for top, left in cuts])


class PictureSet(Dataset[Item]):
    """Pictures as normalised mosaics with their captions' tokens.

    Args:
        samples: what to read.
        captions: one per sample.
        config: seed, flip and the tokenizer's name.
        is_held: whether every picture's patches are read once, here, and held in memory.
    """

    def __init__(
        self, samples: Sequence[Sample], captions: Sequence[str], config: TrainConfig, *, is_held: bool
    ) -> None:
        self.samples = list(samples)
        self.config = config
        self.tokens: Tensor = tokenizer(config.backbone)(list(captions))
        self.mean = torch.tensor(IMAGE_MEAN).view(3, 1, 1)
        self.std = torch.tensor(IMAGE_STD).view(3, 1, 1)
        self.held = [select(decode(sample.path)) for sample in self.samples] if is_held else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: tuple[int, int]) -> Item:
        """Returns (image float32 ``[3, 224, 224]``, y, tokens ``[context]``) for (index, epoch)."""
        index, epoch = place
        sample = self.samples[index]
        patches = self.held[index] if self.held is not None else select(decode(sample.path))
        draw = random_source(self.config.seed, epoch, sample.key)
        mosaic = np.empty((MOSAIC_SIDE, MOSAIC_SIDE, 3), dtype=np.uint8)
        for cell, patch in enumerate(draw.permutation(PATCH_COUNT)):
            top, left = cell // GRID_SIDE * PATCH_SIDE, cell % GRID_SIDE * PATCH_SIDE
            mosaic[top : top + PATCH_SIDE, left : left + PATCH_SIDE] = patches[patch]
        if self.config.data.flip and draw.random() < 0.5:
            mosaic = np.ascontiguousarray(mosaic[:, ::-1])
        pixels = torch.from_numpy(mosaic).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std, float(sample.label), self.tokens[index]


class StraightforwardTrainer:
    """Trains LoRA, h_img and h_txt under gradient surgery, on the CPU, in the released order.

    Args:
        clip: open_clip model with both towers; neither is changed.
        config: recipe "dgs"; batch, workers, LoRA, surgery, optimiser and seed are heeded.
        samples: the training split.
        captions: one per sample.
        is_held: as of ``PictureSet``.

    Attributes:
        model: the student, with all three heads.
        trained: its trained parameters, in the order of this project's own loop.
    """

    def __init__(
        self,
        clip: Any,
        config: TrainConfig,
        samples: Sequence[Sample],
        captions: Sequence[str],
        *,
        is_held: bool,
    ) -> None:
        self.config = config
        self.data = PictureSet(samples, captions, config, is_held=is_held)
        self.clip = clip.eval().requires_grad_(False)
        self.teacher = copy.deepcopy(clip.visual)
        torch.manual_seed(config.seed)
        self.model = build_model(copy.deepcopy(clip.visual), clip.visual.output_dim, config)
        self.model.requires_grad_(False).train()
        heads = (self.model.head_image, self.model.head_text)
        self.trained = [
            *lora_parameters(self.model.visual),
            *(p for head in heads for p in head.parameters()),
        ]
        for parameter in self.trained:
            parameter.requires_grad_(True)
        betas = (config.optim.beta1, config.optim.beta2)
        self.optimiser = torch.optim.Adam(self.trained, lr=config.optim.lr, betas=betas)

    def epoch(self) -> list[float]:
        """Takes the steps of epoch 0 and returns the loss of each."""
        return [self.step(*batch) for batch in self._batches()]

    def step(self, images: Tensor, target: Tensor, tokens: Tensor) -> float:
        """Takes one step.

        Args:
            images: normalised mosaics, float32 ``[B, 3, 224, 224]``.
            target: y, float32 ``[B]``.
            tokens: of the captions, int64 ``[B, context]``.

        Returns:
            L_img + L_text + align * L_help.
        """
        self.optimiser.zero_grad()
        feature = self.model.visual(images)
        loss_text, harm, benefit = self.text_and_teacher(
            self.teacher_feature(images), self.text_feature(tokens), target
        )
        loss_image = binary_cross_entropy_with_logits(self.model.head_image(feature).squeeze(1), target)
        loss_help = (feature * benefit).sum(dim=1).mean()
        feature.register_hook(lambda grad: grad - (grad * harm).sum(dim=1, keepdim=True) * harm)
        loss = loss_image + loss_text + self.config.surgery.align * loss_help
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())

    @torch.no_grad()
    def teacher_feature(self, images: Tensor) -> Tensor:
        """Returns f_t, ``[B, D]``."""
        feature: Tensor = self.teacher(images)
        return feature

    @torch.no_grad()
    def text_feature(self, tokens: Tensor) -> Tensor:
        """Returns f_x, ``[B, D]``."""
        feature: Tensor = self.clip.encode_text(tokens)
        return feature

    def text_and_teacher(
        self, teacher: Tensor, text: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (L_text, g_harm ``[B, D]``, g_help ``[B, D]``) from f_t and f_x, by autograd."""
        teacher, text = teacher.requires_grad_(), text.requires_grad_()
        loss_teacher = binary_cross_entropy_with_logits(self.model.head_teacher(teacher).squeeze(1), target)
        loss_text = binary_cross_entropy_with_logits(self.model.head_text(text).squeeze(1), target)
        (g_image,) = torch.autograd.grad(loss_teacher, teacher)
        (g_text,) = torch.autograd.grad(loss_text, text, retain_graph=True)
        kept = torch.relu(g_text)
        harm = kept / (kept.norm(dim=1, keepdim=True) + self.config.surgery.eps)
        return loss_text, harm, g_image.clamp(max=0)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        labels = [sample.label for sample in self.data.samples]
        data = self.config.data
        windows = epoch_windows(
            labels, batch=data.batch, seed=self.config.seed, epoch=0, balance=data.balance
        )
        loader = DataLoader(
            self.data,
            batch_sampler=[[(int(index), 0) for index in window] for window in windows],
            num_workers=0 if self.data.held is not None else data.workers,
        )
        for images, target, tokens in loader:
            yield images, target.float(), tokens
