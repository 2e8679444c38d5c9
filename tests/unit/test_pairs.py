"""A reader's pairs: read from files in the book's formats, or refused with the file, the line and the mend."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bridges.hosts import clip
from bridges.tasks.pairs import FEATURES, Features, read_features, read_pairs, split, write_features
from bridges.tasks.scenes import GRID, OBJECTS, WIDTH, scenes
from PIL import Image
from safetensors.torch import load_file, save_file


def test_scenes_are_the_same_in_every_run_and_hold_no_two_objects_in_a_cell() -> None:
    a, b = scenes(200, seed=3), scenes(200, seed=3)
    assert torch.equal(a.patches(1), b.patches(1))
    assert torch.equal(a.text(), b.text())
    assert not torch.equal(a.cells, scenes(200, seed=4).cells)
    assert all(len(set(row)) == OBJECTS for row in a.cells.tolist())
    assert a.patches().shape == (200, GRID * GRID, WIDTH)
    torch.testing.assert_close(a.text().norm(dim=-1), torch.ones(200))


def test_a_caption_names_what_the_picture_shows() -> None:
    some = scenes(30, seed=1)
    for index, caption in enumerate(some.captions()):
        picture = some.draw(index)
        assert picture.shape == (64, 64, 3)
        colours = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
        named = {phrase.split()[1] for phrase in caption.split(", ")}
        assert len(colours) == len(named) + 1  # and the ground
    same = [i for i, c in enumerate(some.captions()) if c == some.captions()[0]]
    torch.testing.assert_close(some.text()[same], some.text()[:1].expand(len(same), -1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve scenes as images with captions."""
    some = scenes(12)
    lines = []
    for index, caption in enumerate(some.captions()):
        Image.fromarray(some.draw(index)).save(tmp_path / f"{index:02}.png")
        lines.append(f"{index:02}.png\t{caption}")
    (tmp_path / "captions.tsv").write_text("\n".join(lines) + "\n\n")
    return tmp_path


def test_a_folder_of_images_and_captions_is_read_in_its_order(folder: Path) -> None:
    pairs = read_pairs(folder)
    assert len(pairs) == 12
    assert pairs.captions == tuple(scenes(12).captions())
    assert [picture.size for picture in pairs.pictures()] == [(64, 64)] * 12


def test_every_bad_line_is_named_with_its_number(folder: Path) -> None:
    table = folder / "captions.tsv"
    table.write_text("00.png\ta\n01.png no tab\n99.png\tb\n00.png\tc\n02.png\t \n")
    with pytest.raises(ValueError, match=r"captions\.tsv cannot be read as pairs") as refused:
        read_pairs(folder)
    told = str(refused.value)
    assert "line 2: no tab and caption after '01.png no tab'" in told
    assert "line 3: there is no image" in told
    assert "line 4: 00.png stands twice" in told
    assert "line 5: no tab and caption" in told
    table.write_text("\n\n")
    with pytest.raises(ValueError, match="holds no pairs"):
        read_pairs(folder)
    table.unlink()
    with pytest.raises(ValueError, match="is not there: write one line for each image"):
        read_pairs(folder)


def test_a_table_from_elsewhere_is_read_as_it_was_meant(folder: Path) -> None:
    (folder / "captions.tsv").write_bytes("\ufeff00.png\tone\u2028line\r\n01.png\ttwo\r\n".encode())
    assert read_pairs(folder).captions == ("one\u2028line", "two")
    (folder / "captions.tsv").write_bytes("00.png\tcaf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"captions\.tsv is not UTF-8"):
        read_pairs(folder)


def test_sixteen_bits_keep_their_shades(folder: Path) -> None:
    shades = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(shades).save(folder / "00.png")
    pixels = np.asarray(next(read_pairs(folder).pictures()))[..., 0]
    assert 120 < pixels.mean() < 135


def test_a_folder_that_lacks_weights_is_refused(small_clip: Path) -> None:
    weights = load_file(small_clip / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "text_model" not in name}
    save_file(kept, small_clip / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match=r"lacks .* weights of a CLIP"):
        clip.load(str(small_clip))


def test_long_captions_are_cut(small_clip: Path) -> None:
    assert clip.load(str(small_clip)).text(["a red circle " * 200]).shape == (1, 24)


def test_a_file_that_is_no_image_is_named(folder: Path) -> None:
    (folder / "05.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"05\.png cannot be read"):
        list(read_pairs(folder).pictures())


def test_features_come_back_as_written_and_are_split(tmp_path: Path) -> None:
    written = scenes(40).features()
    write_features(tmp_path, written)
    read = read_features(tmp_path)
    assert torch.equal(read.patches, written.patches)
    assert torch.equal(read.text, written.text)
    train, test = split(read, 0.25)
    assert (len(train), len(test)) == (30, 10)
    together = torch.cat([train.text, test.text])
    assert torch.equal(together.sort(0).values, written.text.sort(0).values)
    with pytest.raises(ValueError, match="cannot be split"):
        split(Features(read.patches[:3], read.text[:3]))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"patches": torch.zeros(4, 2, 3)}, "holds patches, not 'text'"),
        ({"patches": torch.zeros(4, 3), "text": torch.zeros(4, 3)}, "patches must have 3 dimensions"),
        ({"patches": torch.zeros(4, 2, 3), "text": torch.zeros(5, 3)}, "4 rows of patches and 5 of text"),
        ({"patches": torch.zeros(1, 2, 3), "text": torch.zeros(1, 3)}, "a contrast takes at least two"),
        (
            {"patches": torch.zeros(4, 2, 3), "text": torch.tensor([[0.0], [0.0], [torch.nan], [torch.inf]])},
            "text is not finite in 2 rows, the first is row 2",
        ),
    ],
)
def test_broken_features_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_file(tensors, tmp_path / FEATURES)
    with pytest.raises(ValueError, match=message):
        read_features(tmp_path)


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not there: write one with"):
        read_features(tmp_path)
    (tmp_path / FEATURES).write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="is damaged"):
        read_features(tmp_path)


@pytest.fixture
def small_clip(tmp_path: Path) -> Path:
    """A CLIP of two layers in a folder, as from_pretrained finds it."""
    torch.manual_seed(0)
    folder = tmp_path / "clip"
    clip.build(scenes(500).captions()).save(folder)
    return folder


def test_images_and_captions_go_through_a_clip_from_a_folder(folder: Path, small_clip: Path) -> None:
    pairs, towers = read_pairs(folder), clip.load(str(small_clip))
    features = Features(towers.patches(pairs.pictures()), towers.text(pairs.captions))
    assert features.patches.shape == (12, 17, 32)  # 4 x 4 patches and the class token
    assert features.text.shape == (12, 24)
    assert not any(p.requires_grad for p in towers.model.parameters())
    pixels = towers.processor(images=[next(pairs.pictures())], return_tensors="pt")["pixel_values"]
    assert towers.tokenizer.unk_token_id not in towers.tokenizer(list(pairs.captions[:1]))["input_ids"][0]
    expected = towers.model.get_text_features(**towers.tokenizer([pairs.captions[0]], return_tensors="pt"))
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(features.text[:1], expected, rtol=1e-4, atol=1e-5)
    vision = towers.model.vision_model(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(features.patches[:1], vision, rtol=1e-4, atol=1e-5)


def test_a_clip_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no CLIP could be loaded from") as refused:
        clip.load(str(tmp_path))
    assert "\n" not in str(refused.value)
