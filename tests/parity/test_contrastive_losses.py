"""Our contrastive losses against the libraries people use: the same numbers, the same gradients."""

import pytest
import torch
from bridges.training.losses import info_nce, matryoshka_loss
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import nn
from torch.nn.functional import normalize
from transformers.models.clip.modeling_clip import image_text_contrastive_loss


def pairs(batch: int = 12, width: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    image, text = torch.randn(batch, width, requires_grad=True), torch.randn(batch, width, requires_grad=True)
    return image, text, torch.tensor(12.5, requires_grad=True)


def gradients(loss: torch.Tensor, *of: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, of))


def test_info_nce_is_clips_loss() -> None:
    image, text, scale = pairs()
    ours = info_nce(normalize(image, dim=-1), normalize(text, dim=-1), scale)
    # transformers' CLIPModel.forward: logits_per_text = text @ image.T * logit_scale.exp()
    theirs = image_text_contrastive_loss(normalize(text, dim=-1) @ normalize(image, dim=-1).T * scale)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, image, text, scale), gradients(theirs, image, text, scale))


class Given(nn.Module):
    """Stands for a sentence-transformers model whose embeddings are given."""

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sentence_embedding": features["given"]}

    def get_embedding_dimension(self) -> int:
        return 32

    get_sentence_embedding_dimension = get_embedding_dimension


@pytest.mark.parametrize("widths", [(32,), (8, 16, 32)])
def test_prefixes_are_those_of_sentence_transformers(widths: tuple[int, ...]) -> None:
    image, text, _ = pairs()
    scale = torch.tensor(20.0)
    ours = matryoshka_loss(normalize(image, dim=-1), normalize(text, dim=-1), scale, widths)
    model = Given()
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    inner = MultipleNegativesRankingLoss(model, scale=20.0, **both)
    theirs = MatryoshkaLoss(model, inner, matryoshka_dims=list(widths))([{"given": image}, {"given": text}], None)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, image, text), gradients(theirs, image, text))
