"""Captioning: a CoCa model's greedy loop against its own forward, and the command that writes captions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from runtime.decode import decode_image
from runtime.errors import DataError, DgsNetError, ImageError, MissingDependencyError, UsageError
from train.captioning.coca import CocaCaptioner, greedy_tokens, load_coca
from train.captioning.preprocessing import CaptionPreprocessing
from train.captioning.stores import SidecarStore
from train.commands.caption import caption
from train.data.captions import find_captions
from train.data.layout import Sample, find_samples

TINY_COCA = "coca-tiny-test"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps this small take many times as long when two threads wait for each other on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_coca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A CoCa of open_clip's own shape with one block a tower, registered for this module."""
    import open_clip
    from open_clip import factory

    text = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 32,
            "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True,
        },
        "text_cfg": text | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": text | {"attn_pooler_heads": 2},
        "custom_text": True,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("configs")
    (folder / f"{TINY_COCA}.json").write_text(json.dumps(config))
    paths, configs = list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS)
    open_clip.add_model_config(folder)
    yield TINY_COCA
    factory._MODEL_CONFIG_PATHS[:] = paths
    factory._MODEL_CONFIGS.clear()
    factory._MODEL_CONFIGS.update(configs)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """AIGIBench's training layout: 4 classes of 2 real and 2 generated pictures."""
    for number, group in enumerate(("car", "airplane", "living_room", "sdv1.4")):
        for label in ("0_real", "1_fake"):
            for index in range(2):
                save_noise(tmp_path / "train" / group / label / f"{index}.png", seed=10 * number + index)
    return tmp_path


def save_noise(path: Path, *, seed: int, size: tuple[int, int] = (40, 56)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


def run_caption(*arguments: str) -> Result:
    return CliRunner().invoke(caption, arguments)


@pytest.fixture
def tiny(tiny_coca: str) -> tuple[Any, Any]:
    return load_coca(tiny_coca, "random", seed=11)


def inputs_of(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def reference_tokens(model: Any, image: torch.Tensor, *, start: int, end: int, steps: int) -> list[int]:
    """One picture, the whole model on (image, text so far) at every step."""
    text = [start]
    with torch.no_grad():
        for _ in range(steps):
            logits = model(image[None], torch.tensor([text]), output_labels=False)["logits"]
            text.append(int(logits[0, -1].argmax()))
            if text[-1] == end:
                break
    return text


def test_greedy_tokens__equal_the_whole_forward_token_by_token(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    start = tokenizer.sot_token_id
    images = inputs_of(3)
    free = [reference_tokens(model, image, start=start, end=-1, steps=12) for image in images]
    assert len({tuple(row) for row in free}) == 3  # else nothing would show that rows are kept apart
    # The token that row 0 writes third ends a caption, so that rows end at different steps.
    end = free[0][3]
    expected = [reference_tokens(model, image, start=start, end=end, steps=12) for image in images]
    assert len({len(row) for row in expected}) > 1
    tokens = greedy_tokens(model, images, start=start, end=end, max_tokens=12)
    longest = max(len(row) for row in expected)
    padded = [row + [model.pad_id] * (longest - len(row)) for row in expected]
    assert tokens.tolist() == padded
    for image, row in zip(images, expected, strict=True):
        alone = greedy_tokens(model, image[None], start=start, end=end, max_tokens=12)
        assert alone.tolist() == [row]


def test_greedy_tokens__encodes_each_image_once(
    tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny
    calls = []
    encode: Callable[..., Any] = model._encode_image
    monkeypatch.setattr(model, "_encode_image", lambda *a, **k: calls.append(len(a[0])) or encode(*a, **k))
    tokens = greedy_tokens(model, inputs_of(2), start=tokenizer.sot_token_id, end=-1, max_tokens=5)
    assert tokens.shape == (2, 6)
    assert calls == [2]


def test_describe__writes_words_up_to_the_end_token(tiny_coca: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = CocaCaptioner(tiny_coca, "random", max_tokens=4)
    tokenizer = load_coca(tiny_coca, "random")[1]
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    words = tokenizer.encode("a red kite")
    rows = torch.tensor([[start, *words, end, 0], [start, end, 0, 0, 0, 0], [start, *words, start, words[0]]])
    monkeypatch.setattr("train.captioning.coca.greedy_tokens", lambda *_, **__: rows)
    assert captioner.describe([np.zeros((3, 64, 64), np.float32)] * 3) == ["a red kite", "", "a red kite a"]


def test_load_coca__random_weights_follow_the_seed_everywhere(tiny_coca: str) -> None:
    first, again, other = (load_coca(tiny_coca, "random", seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "text_decoder.text_projection"  # open_clip leaves it uninitialised
    assert first[name].std() == pytest.approx(32**-0.5, rel=0.01)
    assert not torch.equal(first[name], other[name])


def test_load_coca__reads_a_local_file(tiny: tuple[Any, Any], tiny_coca: str, tmp_path: Path) -> None:
    torch.save(tiny[0].state_dict(), tmp_path / "coca.pt")
    again, _ = load_coca(tiny_coca, str(tmp_path / "coca.pt"), seed=99)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in tiny[0].state_dict().items())
    (tmp_path / "coca.pt").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"coca-tiny-test with .*coca.pt weights: cannot be read"):
        load_coca(tiny_coca, str(tmp_path / "coca.pt"))


def test_load_coca__names_the_nearest_models_and_the_tags() -> None:
    with pytest.raises(UsageError, match=r"'coca-ViT-B32' is no CoCa model .* nearest: coca_ViT-B-32"):
        load_coca("coca-ViT-B32", "random")
    with pytest.raises(UsageError, match=r"'ViT-B-32' is no CoCa model"):
        load_coca("ViT-B-32", "random")
    with pytest.raises(UsageError, match=r"neither a file nor a tag .*mscoco_finetuned_laion2b_s13b_b90k"):
        load_coca("coca_ViT-B-32", "no-such-tag")


def test_captioner__refuses_captions_longer_than_the_context(tiny_coca: str) -> None:
    with pytest.raises(UsageError, match="--max-tokens: found 13, expected 1 to 12"):
        CocaCaptioner(tiny_coca, "random", max_tokens=13)


@pytest.mark.parametrize("size", [(64, 64), (300, 200), (200, 301), (65, 129), (31, 47)])
def test_preprocessing__equals_open_clip_s_own(
    tiny: tuple[Any, Any], tmp_path: Path, size: tuple[int, int]
) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = tiny[0].visual.preprocess_cfg
    save_noise(tmp_path / "picture.png", seed=5, size=size)
    with Image.open(tmp_path / "picture.png") as picture:
        expected = image_transform_v2(PreprocessCfg(**config), is_train=False)(picture).numpy()
    ours = CaptionPreprocessing.from_config("name", config).apply(decode_image(tmp_path / "picture.png"))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_preprocessing__refuses_what_it_does_not_do(tiny: tuple[Any, Any]) -> None:
    config = tiny[0].visual.preprocess_cfg
    with pytest.raises(UsageError, match="squash"):
        CaptionPreprocessing.from_config("name", config | {"resize_mode": "squash"})
    with pytest.raises(ImageError, match="200000 x 1 pixels, too narrow"):
        CaptionPreprocessing.from_config("name", config).apply(np.zeros((1, 200000, 3), np.uint8))


def coca_arguments(folder: Path, *more: str) -> list[str]:
    return [str(folder), "--model", TINY_COCA, "--pretrained", "random", "--max-tokens", "4", *more]


def test_caption__writes_a_map_that_fit_finds(folders: Path, tiny_coca: str) -> None:
    result = run_caption(*coca_arguments(folders, "--batch", "3"))
    assert result.exit_code == 0, result.output
    assert "16 captions written, 0 kept" in result.stdout
    samples = find_samples(folders, "train")
    captions = find_captions(samples, "", folders)
    captioner = CocaCaptioner(tiny_coca, "random", max_tokens=4)
    alone = [captioner.describe([captioner.preprocessing.apply(decode_image(s.path))])[0] for s in samples]
    assert captions == alone
    assert len(set(captions)) > 1


def test_caption__goes_on_where_it_was_stopped(
    folders: Path, tiny_coca: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_caption(*coca_arguments(folders, "-o", str(folders / "whole.json")))
    seen: list[int] = []
    describe = CocaCaptioner.describe

    def stopping(self: CocaCaptioner, inputs: Any) -> list[str]:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(inputs))
        return describe(self, inputs)

    monkeypatch.setattr(CocaCaptioner, "describe", stopping)
    run_caption(*coca_arguments(folders, "--batch", "5"))
    half = json.loads((folders / "captions.json").read_text())
    assert len(half) == 10
    seen[:] = [-9]
    result = run_caption(*coca_arguments(folders, "--batch", "100", "--json"))
    assert seen == [-9, 6]
    assert json.loads(result.stdout) | {"place": ""} == {
        "schema": 1, "place": "", "written": 6, "kept": 10, "failed": [],
    }  # fmt: skip
    assert (folders / "captions.json").read_bytes() == (folders / "whole.json").read_bytes()


def test_caption__saves_every_few_pictures(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.captioning import stores

    sizes = []
    write = stores.write_atomically
    monkeypatch.setattr(
        stores, "write_atomically", lambda p, c: sizes.append(len(json.loads(c))) or write(p, c)
    )
    run_caption(str(folders), "--method", "template", "--save-every", "6")
    assert sizes == [6, 12, 16]


def test_caption__keeps_what_the_file_holds_unless_told(folders: Path) -> None:
    path = folders / "captions.json"
    mine = {"val/car/0_real/0.png": "mine", "train/car/0_real/0.png": "mine", "train/car/0_real/1.png": " "}
    path.write_text(json.dumps(mine))
    assert "15 captions written, 1 kept" in run_caption(str(folders), "--method", "template").stdout
    content = json.loads(path.read_text())
    assert content["val/car/0_real/0.png"] == content["train/car/0_real/0.png"] == "mine"
    assert content["train/car/0_real/1.png"] == "a photo of a car"  # an empty caption is none
    assert list(content) == sorted(content)
    assert "16 captions written" in run_caption(str(folders), "--method", "template", "--overwrite").stdout
    content = json.loads(path.read_text())
    assert content["train/car/0_real/0.png"] == "a photo of a car"
    assert content["val/car/0_real/0.png"] == "mine"


def test_caption__writes_and_collects_text_files(folders: Path) -> None:
    result = run_caption(str(folders), "--method", "template", "--sidecar")
    assert result.exit_code == 0, result.output
    assert (folders / "train/car/1_fake/0.txt").read_text() == "a photo of a car\n"
    assert not (folders / "captions.json").exists()
    (folders / "train/car/1_fake/0.txt").write_text("mine")
    assert (
        "0 captions written, 16 kept" in run_caption(str(folders), "--method", "template", "--sidecar").stdout
    )
    assert run_caption(str(folders), "--method", "sidecar").exit_code == 0
    samples = find_samples(folders, "train")
    assert find_captions(samples, "", folders) == find_captions(samples, "sidecar", folders)
    assert "mine" in find_captions(samples, "", folders)


def test_caption__refuses_pictures_that_would_share_a_text_file(folders: Path) -> None:
    save_noise(folders / "train/car/0_real/0.jpg", seed=1)
    result = run_caption(str(folders), "--method", "template", "--sidecar")
    assert isinstance(result.exception, DataError)
    assert "0.jpg and train/car/0_real/0.png would share one .txt file" in str(result.exception)
    assert not list(folders.rglob("*.txt"))


def test_sidecar_store__does_not_write_into_shards(tmp_path: Path) -> None:
    inside = Sample("train/000.tar/0.png", tmp_path / "000.tar", 0, "000", span=(512, 7))
    with pytest.raises(DataError, match=r"train/000.tar/0.png: is inside a shard.* with -o"):
        SidecarStore([inside], tmp_path)


def test_caption__lists_unreadable_pictures_and_does_the_others(folders: Path, tiny_coca: str) -> None:
    (folders / "train/car/0_real/0.png").write_bytes(b"no picture")
    (folders / "train/sdv1.4/1_fake/1.png").write_bytes(b"")
    result = run_caption(*coca_arguments(folders, "--batch", "1", "--json"))
    summary = json.loads(result.stdout)
    assert [name for name, _ in summary["failed"]] == ["train/car/0_real/0.png", "train/sdv1.4/1_fake/1.png"]
    assert isinstance(result.exception, DataError)
    assert result.exception.exit_code == 2
    assert "2 of 16 pictures have no caption, first train/car/0_real/0.png" in str(result.exception)
    assert len(json.loads((folders / "captions.json").read_text())) == 14


def test_caption__does_not_write_an_empty_caption(
    folders: Path, tiny_coca: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CocaCaptioner, "describe", lambda self, inputs: ["a kite"] * (len(inputs) - 1) + [""])
    result = run_caption(*coca_arguments(folders))
    assert "1 of 16 pictures have no caption" in str(result.exception)
    assert "the caption is empty" in str(result.exception)
    assert set(json.loads((folders / "captions.json").read_text()).values()) == {"a kite"}


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        (("--sidecar", "-o", "x.json"), UsageError, "one of them"),
        (("--sidecar", "--method", "sidecar"), UsageError, "--method sidecar"),
        (("--device", "tpu"), UsageError, "device: found 'tpu'"),
        (("--device", "cuda:77"), MissingDependencyError, "cuda:77 was asked for"),
        (("--split", "nowhere"), DataError, "nowhere"),
        (("--model", "coca"), UsageError, "nearest"),
    ],
)
def test_caption__refuses_before_any_work(
    folders: Path, arguments: tuple[str, ...], error: type[DgsNetError], expected: str
) -> None:
    result = run_caption(str(folders), *arguments)
    assert isinstance(result.exception, error)
    assert expected in str(result.exception)
    assert not (folders / "captions.json").exists()


def test_caption__keys_survive_names_that_are_not_utf8(folders: Path) -> None:
    odd = folders / "train/car/0_real" / b"caf\xe9.png".decode("utf-8", "surrogateescape")
    save_noise(folders / "train/car/0_real/plain.png", seed=9)
    (folders / "train/car/0_real/plain.png").rename(odd)
    assert run_caption(str(folders), "--method", "template").exit_code == 0
    assert len(find_captions(find_samples(folders, "train"), "", folders)) == 17


@pytest.mark.slow
def test_caption__works_at_the_true_size_with_random_weights(folders: Path) -> None:
    result = run_caption(
        str(folders),
        "--model",
        "coca_ViT-B-32",
        "--pretrained",
        "random",
        "--max-tokens",
        "6",
        "--batch",
        "4",
    )
    assert result.exit_code == 0, result.output
    assert len(find_captions(find_samples(folders, "train"), "", folders)) == 16
    model, tokenizer = load_coca("coca_ViT-B-32", "random")
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    tokens = greedy_tokens(model, images, start=start, end=end, max_tokens=6)
    expected = [reference_tokens(model, image, start=start, end=end, steps=6) for image in images]
    assert [row[: len(want)] for row, want in zip(tokens.tolist(), expected, strict=True)] == expected
