"""The authors' checkpoint, in and out, at its true key structure on a CLIP of two blocks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from runtime.errors import CheckpointError, DgsNetError, UsageError
from runtime.spec import IMAGE_MEAN, IMAGE_STD
from train.checkpoint import load_checkpoint, read_record, save_checkpoint
from train.commands.export_official import export_official as export_command
from train.commands.import_official import import_official as import_command
from train.official.exporting import export_official
from train.official.importing import import_official

NAME, TWIN = "official-two-blocks", "unofficial-twin"
WIDTH, EMBED, RANK, BLOCKS, PATCH = 128, 64, 6, 2, 56
RSLORA = 6 / math.sqrt(6)
State = dict[str, Tensor]


@pytest.fixture(scope="module", autouse=True)
def _two_blocks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Registers a CLIP with two vision blocks, with QuickGELU as OpenAI's have, and takes it off again."""
    import open_clip
    from open_clip import factory

    folder = tmp_path_factory.mktemp("models")
    vision = {"image_size": 224, "layers": BLOCKS, "width": WIDTH, "patch_size": PATCH}
    text = {"context_length": 16, "vocab_size": 300, "width": 64, "heads": 1, "layers": 2}
    content: dict[str, Any] = {"embed_dim": EMBED, "vision_cfg": vision, "text_cfg": text}
    before = dict(factory._MODEL_CONFIGS), list(factory._MODEL_CONFIG_PATHS)
    (folder / f"{NAME}.json").write_text(json.dumps(content | {"quick_gelu": True}))
    for name, quick_gelu in (("official-gelu", False), (TWIN, False), (f"{TWIN}-quickgelu", True)):
        (folder / f"{name}.json").write_text(json.dumps(content | {"quick_gelu": quick_gelu}))
    open_clip.add_model_config(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # hundreds of tiny tensors: threads would wait for each other
    yield
    torch.set_num_threads(threads)
    factory._MODEL_CONFIGS.clear()
    factory._MODEL_CONFIGS.update(before[0])
    factory._MODEL_CONFIG_PATHS[:] = before[1]


def clip_tensors(draw: torch.Generator) -> State:
    """A CLIP's tensors under OpenAI's names, written out by hand."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw) * 0.1

    def tower(prefix: str, width: int) -> State:
        state = {}
        for block in range(2):
            stem = f"{prefix}transformer.resblocks.{block}."
            shapes = {
                "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
                "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
                "ln_1.weight": (width,), "ln_1.bias": (width,),
                "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
                "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,),
                "ln_2.weight": (width,), "ln_2.bias": (width,),
            }  # fmt: skip
            state |= {stem + name: normal(*shape) for name, shape in shapes.items()}
        return state

    return {
        "positional_embedding": normal(16, 64),
        "text_projection": normal(64, EMBED),
        "logit_scale": torch.tensor(4.6),
        "visual.class_embedding": normal(WIDTH),
        "visual.positional_embedding": normal(17, WIDTH),
        "visual.proj": normal(WIDTH, EMBED),
        "visual.conv1.weight": normal(WIDTH, 3, PATCH, PATCH),
        "visual.ln_pre.weight": 1 + normal(WIDTH),
        "visual.ln_pre.bias": normal(WIDTH),
        "visual.ln_post.weight": 1 + normal(WIDTH),
        "visual.ln_post.bias": normal(WIDTH),
        "token_embedding.weight": normal(300, 64),
        "ln_final.weight": 1 + normal(64),
        "ln_final.bias": normal(64),
        **tower("visual.", WIDTH),
        **tower("", 64),
    }


def authors_state(*, scale: float = 0.0, rank: int = RANK, untrained: bool = False) -> State:
    """A random checkpoint in the authors' format; ``scale`` times B A is added to q, k and v."""
    draw = torch.Generator().manual_seed(5)
    frozen = clip_tensors(draw)
    state: State = {}
    for name, tensor in frozen.items():
        stem, separator, leaf = name.partition(".attn.")
        if not separator or not name.startswith("visual."):
            state[f"clip_model.{name}"] = tensor.clone()
        elif leaf.startswith("out_proj."):
            state[f"clip_model.{stem}.attn.{leaf.removeprefix('out_')}"] = tensor.clone()
        else:
            for index, projection in enumerate("qkv"):
                rows = tensor[index * WIDTH : (index + 1) * WIDTH].clone()
                kind = leaf.removeprefix("in_proj_")
                state[f"clip_model.{stem}.attn.{projection}_proj.{kind}"] = rows
                if kind == "weight":
                    down = torch.rand(rank, WIDTH, generator=draw) * 0.6 - 0.3
                    up = torch.randn(WIDTH, rank, generator=draw) * (0.0 if untrained else 0.1)
                    state[f"clip_model.{stem}.attn.{projection}_proj.w_lora_A"] = down
                    state[f"clip_model.{stem}.attn.{projection}_proj.w_lora_B"] = up
                    rows += scale * (up @ down)
    state |= {f"clip_model_frozen.clip_model_frozen.{name}": tensor for name, tensor in frozen.items()}
    for head in ("clip_model_frozen.img_frozen_fc", "text_fc", "img_fc"):
        state[f"{head}.weight"] = torch.randn(1, EMBED, generator=draw)
        state[f"{head}.bias"] = torch.randn(1, generator=draw)
    return state


def saved(state: dict[str, Any], path: Path) -> Path:
    torch.save(state, path)
    return path


def straightforward_logits(state: State, images: Tensor, scale: float) -> Tensor:
    """The authors' forward pass from their tensors: LoRA beside the projection, QuickGELU, class token."""

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = state[f"clip_model.{name}.weight"], state[f"clip_model.{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], weight, bias)

    def project(x: Tensor, stem: str) -> Tensor:
        base = x @ state[f"{stem}.weight"].T + state[f"{stem}.bias"]
        return base + scale * (x @ state[f"{stem}.w_lora_A"].T @ state[f"{stem}.w_lora_B"].T)

    pixels = (images.double() / 255 - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    patches = functional.conv2d(
        pixels.permute(0, 3, 1, 2), state["clip_model.visual.conv1.weight"], stride=PATCH
    )
    x = patches.flatten(2).transpose(1, 2)
    token = state["clip_model.visual.class_embedding"].expand(len(x), 1, WIDTH)
    x = torch.cat([token, x], 1) + state["clip_model.visual.positional_embedding"]
    x = norm(x, "visual.ln_pre")
    for block in range(BLOCKS):
        stem = f"visual.transformer.resblocks.{block}"
        y = norm(x, f"{stem}.ln_1")
        q, k, v = (
            project(y, f"clip_model.{stem}.attn.{name}_proj").unflatten(2, (-1, 64)).transpose(1, 2)
            for name in "qkv"
        )
        mixed = torch.softmax(q @ k.transpose(2, 3) / 8, -1) @ v
        mixed = mixed.transpose(1, 2).flatten(2)
        x = x + mixed @ state[f"clip_model.{stem}.attn.proj.weight"].T
        x = x + state[f"clip_model.{stem}.attn.proj.bias"]
        y = norm(x, f"{stem}.ln_2") @ state[f"clip_model.{stem}.mlp.c_fc.weight"].T
        y = y + state[f"clip_model.{stem}.mlp.c_fc.bias"]
        y = y * torch.sigmoid(1.702 * y)
        x = x + y @ state[f"clip_model.{stem}.mlp.c_proj.weight"].T
        x = x + state[f"clip_model.{stem}.mlp.c_proj.bias"]
    feature = norm(x[:, 0], "visual.ln_post") @ state["clip_model.visual.proj"]
    return (feature @ state["img_fc.weight"].T + state["img_fc.bias"]).squeeze(1)


def mosaics() -> Tensor:
    return torch.randint(0, 256, (5, 224, 224, 3), generator=torch.Generator().manual_seed(1)).byte()


def logits_of(run: Path) -> Tensor:
    with torch.inference_mode():
        return load_checkpoint(run).model(mosaics())[0]


@pytest.mark.parametrize("scale", [0.0, RSLORA], ids=["unmerged", "merged"])
def test_import_official__computes_what_the_authors_model_computes(tmp_path: Path, scale: float) -> None:
    file = saved(authors_state(scale=scale), tmp_path / "model_epoch_step2.pth")
    summary = import_official(file, tmp_path / "run")
    assert (summary.backbone, summary.rank, summary.merged) == (NAME, RANK, scale != 0)
    assert summary.scale == pytest.approx(RSLORA)
    assert summary.measured == pytest.approx(scale, rel=1e-5)
    double = {name: tensor.double() for name, tensor in authors_state().items()}
    expected = straightforward_logits(double, mosaics(), RSLORA)
    found = logits_of(tmp_path / "run").double()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().clamp(min=1).max()
    plain = straightforward_logits(double, mosaics(), 0.0)
    assert (plain - expected).abs().max() > 0.05  # the adapters matter, or the above would prove little
    record = read_record(tmp_path / "run")["data"]["imported"]
    assert (record["file"], record["merged"]) == (file.name, scale != 0)
    assert record["scale"] == pytest.approx(RSLORA)


@pytest.mark.parametrize("merged", [False, True])
def test_export_official__gives_back_the_imported_file(tmp_path: Path, merged: bool) -> None:
    """Unmerged bit for bit; merged as the authors' layers merge, to rounding."""
    state = authors_state(scale=RSLORA if merged else 0.0)
    import_official(saved(state, tmp_path / "in.pth"), tmp_path / "run")
    assert export_official(tmp_path / "run", tmp_path / "out.pth", merged=merged).merged is merged
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert set(written) == set(state)
    for name, tensor in state.items():
        if merged and "_proj.weight" in name:
            assert torch.allclose(written[name], tensor, rtol=0, atol=1e-7), name
        else:
            assert torch.equal(written[name], tensor), name
    assert len({tensor.untyped_storage().data_ptr() for tensor in written.values()}) == len(written)


@pytest.mark.parametrize("merged", [False, True])
def test_import_official__inverts_export_official(run_of_gelu: Path, tmp_path: Path, merged: bool) -> None:
    """A trained run's tensors and logits come back bit for bit."""
    export_official(run_of_gelu, tmp_path / "out.pth", merged=merged)
    summary = import_official(tmp_path / "out.pth", tmp_path / "run", backbone="official-gelu")
    assert summary.merged is merged
    before = load_file(run_of_gelu / "checkpoint.safetensors")
    after = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits_of(run_of_gelu), logits_of(tmp_path / "run"))


@pytest.fixture
def run_of_gelu(tmp_path: Path) -> Path:
    """A run from a random GELU backbone of no twin, its text tower not stored, as fit would write it."""
    return random_run(tmp_path / "trained", "official-gelu", {})


def random_run(run: Path, backbone: str, settings: dict[str, object]) -> Path:
    from train.config import TrainConfig
    from train.model.backbone import load_clip
    from train.model.lora import has_adapters, lora_state
    from train.recipes import build_model

    config = TrainConfig(backbone=backbone, pretrained="random", seed=3).with_values(settings.items())
    clip, info = load_clip(backbone, "random", seed=3)
    model = build_model(clip.visual, info.embed_dim, config)
    if has_adapters(model.visual):
        for tensor in lora_state(model.visual).values():
            tensor.normal_(std=0.02)
    run.mkdir()
    save_checkpoint(run, model, config, info, {})
    return run


def test_import_official__takes_float16_and_data_parallel_names(tmp_path: Path) -> None:
    for scale in (0.0, RSLORA):
        half = {f"module.{name}": tensor.half() for name, tensor in authors_state(scale=scale).items()}
        summary = import_official(saved(half, tmp_path / "half.pth"), tmp_path / f"run{scale}")
        assert summary.merged is (scale != 0)
        assert summary.measured == pytest.approx(scale, rel=1e-3)
    again = load_file(tmp_path / "run0.0" / "checkpoint.safetensors")
    assert torch.equal(again["head_text.weight"], authors_state()["text_fc.weight"].half().float())


Q0 = "clip_model.visual.transformer.resblocks.0.attn.q_proj"
V1 = "clip_model.visual.transformer.resblocks.1.attn.v_proj"


def merge_one(state: State) -> None:
    state[f"{V1}.weight"] += RSLORA * (state[f"{V1}.w_lora_B"] @ state[f"{V1}.w_lora_A"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (merge_one, r"1 of 6 projections merged with a scale of 2.449 and 5 not, the first \S+0.attn.q_proj"),
        (lambda s: s[f"{V1}.weight"][3, 5].add_(1e-3), r"1 of 6 projections that are neither.*1.attn.v_proj"),
        (lambda s: s[f"{Q0}.bias"][7].add_(1e-3), r"q_proj.bias differs from the frozen copy"),
        (
            lambda s: s["clip_model.transformer.resblocks.1.ln_2.bias"].mul_(2),
            r"transformer.resblocks.1.ln_2.bias differs",
        ),
        (
            lambda s: s["clip_model.visual.transformer.resblocks.0.mlp.c_fc.weight"][0, 0].add_(1),
            "c_fc.weight differs",
        ),
        (lambda s: s.pop(f"{V1}.w_lora_A"), r"1 missing \(\S+1.attn.v_proj.w_lora_A\)"),
        (lambda s: s.pop("text_fc.bias"), r"1 missing \(text_fc.bias\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unknown \(extra\)"),
        (lambda s: s.update({"bad\n\x1b[2J": torch.zeros(1)}), r"unknown \(bad\\n\\x1b\[2J\)"),
        (
            lambda s: s.update({"img_fc.weight": torch.zeros(2, EMBED)}),
            r"1 of another shape \(img_fc.weight \[2, 64\], expected \[1, 64\]\)",
        ),
        (lambda s: s.pop(f"{Q0}.w_lora_A"), "q_proj.w_lora_A: found nothing"),
        (lambda s: s["img_fc.bias"].fill_(math.nan), "img_fc.bias holds NaN or Inf"),
    ],
)
def test_import_official__refuses_what_is_not_clear(
    tmp_path: Path, change: Callable[[State], object], message: str
) -> None:
    state = authors_state()
    change(state)
    refused(saved(state, tmp_path / "f.pth"), tmp_path / "run", message)


def refused(file: Path, run: Path, message: str, **settings: Any) -> None:
    with pytest.raises(DgsNetError, match=message) as caught:
        import_official(file, run, **settings)
    assert "\n" not in str(caught.value)
    assert not run.exists()


def test_import_official__builds_quickgelu(tmp_path: Path) -> None:
    """The shapes fit a GELU model as well, which only its own name chooses."""
    file = saved(authors_state(), tmp_path / "f.pth")
    import_official(file, tmp_path / "quick")
    assert load_checkpoint(tmp_path / "quick").backbone.quick_gelu
    import_official(file, tmp_path / "gelu", backbone="official-gelu")
    assert not load_checkpoint(tmp_path / "gelu").backbone.quick_gelu
    assert not torch.equal(logits_of(tmp_path / "quick"), logits_of(tmp_path / "gelu"))
    assert import_official(file, tmp_path / "twin", backbone=TWIN).backbone == f"{TWIN}-quickgelu"
    refused(file, tmp_path / "run", "on ViT-B-32-quickgelu, which has .*missing", backbone="ViT-B-32")
    refused(file, tmp_path / "run", "'ViT-L14' is unknown", backbone="ViT-L14")


def test_export_official__refuses_what_the_format_cannot_hold(tmp_path: Path) -> None:
    for index, (settings, message) in enumerate(
        [
            ({"recipe": "lora"}, "recipe: found lora, expected dgs"),
            ({"surgery.text_head": "mlp"}, "text_head: found mlp"),
            ({"lora.targets": ["q", "v"]}, r"targets: found \['q', 'v'\]"),
        ]
    ):
        run = random_run(tmp_path / f"run{index}", NAME, settings)
        with pytest.raises(UsageError, match=message):
            export_official(run, tmp_path / "out.pth")
    gelu = random_run(tmp_path / "gelu", TWIN, {})
    with pytest.raises(UsageError, match=f"trained on {TWIN} with GELU, expected QuickGELU"):
        export_official(gelu, tmp_path / "out.pth")
    with pytest.raises(UsageError, match="no folder to write in"):
        export_official(gelu, tmp_path / "none" / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_export_official__says_which_alpha_the_authors_code_needs(
    tmp_path: Path,
) -> None:
    run = random_run(tmp_path / "run", NAME, {"lora.scaling": "lora", "lora.alpha": 12.0})
    summary = export_official(run, tmp_path / "out.pth")
    assert summary.alpha == pytest.approx(12 / math.sqrt(6))


def test_export_official__needs_the_right_text_tower(tmp_path: Path) -> None:
    import_official(saved(authors_state(), tmp_path / "in.pth"), tmp_path / "run")
    with pytest.raises(CheckpointError, match="its vision tower is not the one"):
        export_official(tmp_path / "run", tmp_path / "out.pth", pretrained="random")
    content = bytearray((tmp_path / "run" / "text_tower.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "run" / "text_tower.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"text_tower.safetensors: changed or damaged"):
        export_official(tmp_path / "run", tmp_path / "out.pth")
    (tmp_path / "run" / "text_tower.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        export_official(tmp_path / "run", tmp_path / "out.pth")
    frozen = {
        name.removeprefix("clip_model_frozen.clip_model_frozen."): tensor
        for name, tensor in authors_state().items()
        if name.startswith("clip_model_frozen.clip_model_frozen.")
    }
    pretrained = str(saved(frozen, tmp_path / "clip.pt"))
    export_official(tmp_path / "run", tmp_path / "out.pth", pretrained=pretrained)
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert all(torch.equal(written[name], tensor) for name, tensor in authors_state().items())


def test_commands__round_trip_and_say_what_they_found(tmp_path: Path) -> None:
    file = saved(authors_state(scale=RSLORA), tmp_path / "in.pth")
    run, out = str(tmp_path / "run"), str(tmp_path / "out.pth")
    result = CliRunner().invoke(import_command, [str(file), "-o", run, "--json", "-q"])
    assert result.exception is None, result.output
    assert json.loads(result.stdout)["merged"] is True
    again = CliRunner().invoke(import_command, [str(file), "-o", run])
    assert isinstance(again.exception, UsageError)
    assert CliRunner().invoke(import_command, [str(file), "-o", run, "--overwrite"]).exit_code == 0
    result = CliRunner().invoke(export_command, [run, "-o", out, "--merged"])
    assert "adapters merged" in result.stdout
    assert isinstance(CliRunner().invoke(export_command, [run, "-o", out]).exception, UsageError)
    wrong = CliRunner().invoke(import_command, [str(file), "-o", out, "--pretrained", "openai"])
    assert "--pretrained: does not apply" in str(wrong.exception)
