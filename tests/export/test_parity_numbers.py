"""The numbers behind a verdict: binomial bound, ranking, the gate's own preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from export.parity.pictures.data_set import Picture, pictures_below
from export.parity.pictures.reference_mosaics import mosaic_from_image, reference_mosaic
from export.parity.statistics.binomial import images_needed, upper_bound
from export.parity.statistics.embeddings import cosine_rows
from export.parity.statistics.measures import comparison
from export.parity.statistics.ranking import ranking
from runtime.decision import Decision
from runtime.decode import decode_image
from runtime.errors import DataError, ImageError
from runtime.patches.selection import select_patches
from runtime.spec import Preprocessing


@pytest.mark.parametrize("images", [1, 2, 10, 299, 1000, 100_000])
@pytest.mark.parametrize("flips", [0, 1, 3, 50, 999])
def test_upper_bound__is_clopper_and_pearsons(flips: int, images: int) -> None:
    from scipy.stats import beta

    expected = 1.0 if flips >= images else float(beta.ppf(0.95, flips + 1, images - flips))
    assert upper_bound(flips, images) == pytest.approx(expected, rel=1e-9)


def test_upper_bound__none_in_none_says_nothing() -> None:
    assert upper_bound(0, 0) == 1.0


@pytest.mark.parametrize("flips", [0, 1, 7])
@pytest.mark.parametrize("bound", [0.5, 0.05, 0.01, 0.0013])
def test_images_needed__is_the_smallest_number(bound: float, flips: int) -> None:
    needed = images_needed(bound, flips)
    assert upper_bound(flips, needed) <= bound < upper_bound(flips, needed - 1)


def test_images_needed__is_about_three_over_the_rate() -> None:
    assert images_needed(0.01) == 299
    assert images_needed(0.001) == pytest.approx(3 / 0.001, rel=0.01)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 80), st.integers(1, 12))
def test_ranking__is_scikit_learns(seed: int, count: int, levels: int) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, count)
    logits = (draw.integers(0, levels, count) / 3).astype(np.float32)  # many ties
    found = ranking(labels, logits)
    if len(set(labels.tolist())) < 2:
        assert found is None
        return
    assert found is not None
    assert found.ap == pytest.approx(average_precision_score(labels, logits))
    assert found.auroc == pytest.approx(roc_auc_score(labels, logits))


def test_ranking__has_no_order_for_what_is_not_finite() -> None:
    assert ranking(np.array([0, 1]), np.float32([1, np.nan])) is None


def picture(seed: int, height: int, width: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = 120 + 80 * np.sin(rows / 37.0) * np.cos(columns / 23.0)
    noise = draw.normal(0, 1, (height, width, 3)) * (25 * columns / width)[..., None]
    return np.clip(smooth[..., None] + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width"), [(224, 224), (231, 487), (512, 700), (32, 1600), (100, 40), (640, 640)]
)
def test_mosaic_from_image__is_the_runtimes_own(height: int, width: int) -> None:
    image = picture(height, height, width)
    assert np.array_equal(mosaic_from_image(image, Preprocessing()), select_patches(image))


@pytest.mark.parametrize("value", [0, 255])
def test_mosaic_from_image__agrees_where_every_patch_ties(value: int) -> None:
    image = np.full((300, 420, 3), value, np.uint8)
    image[64:96, 96:128] = picture(3, 32, 32)
    assert np.array_equal(mosaic_from_image(image, Preprocessing()), select_patches(image))


def test_mosaic_from_image__follows_the_permutation_it_is_given() -> None:
    image = picture(5, 320, 320)
    turned = Preprocessing(permutation=tuple(reversed(range(49))))
    expected = select_patches(image, permutation=turned.permutation)
    assert np.array_equal(mosaic_from_image(image, turned), expected)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_reference_mosaic__agrees_with_the_runtime_on_every_kind_of_file(tmp_path: Path) -> None:
    colour = Image.fromarray(picture(1, 320, 352))
    turned = Image.Exif()
    turned[0x0112] = 6
    draw = np.random.default_rng(3)
    layered = np.dstack([picture(1, 320, 352), draw.integers(0, 256, (320, 352), dtype=np.uint8)])
    deep = draw.integers(0, 65536, (320, 352), dtype=np.uint16)
    paths = {
        save(tmp_path / "a.png", colour): True,
        save(tmp_path / "b.jpg", colour, quality=83): True,
        save(tmp_path / "turned.jpg", colour, exif=turned): True,
        save(tmp_path / "grey.png", colour.convert("L")): True,
        save(tmp_path / "c.webp", colour): True,
        save(tmp_path / "alpha.png", Image.fromarray(layered)): True,
        save(tmp_path / "grey_alpha.png", Image.fromarray(layered).convert("LA")): True,
        save(tmp_path / "key.png", colour, transparency=tuple(layered[40, 40, :3].tolist())): True,
        save(tmp_path / "palette.png", colour.convert("P")): True,
        save(tmp_path / "palette_key.png", colour.quantize(32), transparency=5): True,
        save(tmp_path / "first.gif", colour, save_all=True, append_images=[colour.rotate(90)]): True,
        save(tmp_path / "cmyk.jpg", colour.convert("CMYK")): True,
        save(tmp_path / "two.png", colour.convert("1")): True,
        save(tmp_path / "deep.png", Image.fromarray(deep)): True,
        save(tmp_path / "deep_key.png", Image.fromarray(deep), transparency=int(deep[0, 0])): True,
        save(tmp_path / "d.tiff", colour, exif=turned): True,
        save(tmp_path / "lab.tiff", colour.convert("LAB")): False,
    }
    for path, is_independent in paths.items():
        found = reference_mosaic(path, Preprocessing())
        assert np.array_equal(found.pixels, select_patches(decode_image(path))), path.name
        assert found.is_independent == is_independent, path.name


def test_reference_mosaic__refuses_what_the_runtime_refuses(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    tiny = save(tmp_path / "tiny.png", Image.fromarray(picture(1, 20, 400)))
    # Pillow reads Targa, the runtime does not: no verdict, so nothing to compare.
    targa = save(tmp_path / "targa.png", Image.fromarray(picture(1, 64, 64)), format="TGA")
    for path in (tmp_path / "broken.png", tiny, targa):
        with pytest.raises(ImageError, match=path.name):
            reference_mosaic(path, Preprocessing())


def test_pictures_below__labels_what_the_folders_name(tmp_path: Path) -> None:
    for name in ("ours/0_real/a.png", "ours/1_fake/b.png", "found/c.png", "d.png", "ours/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = {p.name: (p.label, p.generator) for p in pictures_below(tmp_path)}
    assert found == {
        "ours/0_real/a.png": (0, "ours"),
        "ours/1_fake/b.png": (1, "ours"),
        "found/c.png": (-1, "found"),
        "d.png": (-1, tmp_path.name),
    }
    direct = {(p.label, p.generator) for p in pictures_below(tmp_path / "ours")}
    assert direct == {(0, "ours"), (1, "ours")}


def test_pictures_below__refuses_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures"):
        pictures_below(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        pictures_below(tmp_path / "nowhere")


def pictures(labels: list[int], generators: str) -> list[Picture]:
    pairs = zip(labels, generators, strict=True)
    return [Picture(f"p{k}", label, name, None) for k, (label, name) in enumerate(pairs)]


def test_comparison__measures_by_hand() -> None:
    found = comparison(
        "first",
        pictures([0, 1, 0, 1], "aabb"),
        np.float32([-2, 3, 0.01, -1]),
        np.float32([-2.5, 3, -0.01, 1]),
        cosines=np.array([1.0, 0.5, 1.0, 1.0]),
        decision=Decision(),
        tie_below=0.05,
    )
    assert found.logit.largest == 2
    assert found.logit.mean == pytest.approx((0.5 + 0.02 + 2) / 4)
    assert found.logit.p50 == pytest.approx(0.26)
    assert [(flip.item, flip.tie) for flip in found.flips] == [("p2", True), ("p3", False)]
    assert (found.hard_flips, found.flips_at_half, found.nonfinite) == (1, 2, 0)
    assert found.cosine is not None
    assert found.cosine.smallest == 0.5
    assert found.ranking is not None
    assert (found.ranking[0].ap, found.ranking[1].ap) == (pytest.approx((1 + 2 / 3) / 2), 1.0)
    assert [(g.name, g.flips, g.ap) for g in found.groups] == [("a", 0, (1.0, 1.0)), ("b", 2, (0.5, 1.0))]


def test_comparison__counts_what_is_not_finite_as_no_agreement() -> None:
    found = comparison(
        "first", pictures([0, 1], "aa"), np.float32([1, 2]), np.float32([1, np.nan]),
        cosines=None, decision=Decision(), tie_below=0.05,
    )  # fmt: skip
    assert found.nonfinite == 1
    assert found.flip_bound == upper_bound(1, 2)
    assert found.ranking is None


def test_comparison__takes_the_decision_for_flips_and_half_beside_it() -> None:
    high = Decision(threshold=0.9)
    found = comparison(
        "first", pictures([0], "a"), np.float32([0.1]), np.float32([-0.1]),
        cosines=None, decision=high, tie_below=0.05,
    )  # fmt: skip
    assert found.flips == ()
    assert found.flips_at_half == 1


def test_cosine_rows__of_what_is_not_finite_is_the_worst() -> None:
    rows = np.float32([[1, 0], [1, 1], [np.inf, 0]])
    other = np.float32([[1, 0], [-1, -1], [1, 0]])
    assert cosine_rows(rows, other).tolist() == pytest.approx([1, -1, -1])
