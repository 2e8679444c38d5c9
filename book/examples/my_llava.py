"""A LLaVA of transformers as it is, drawn from its configuration, which nothing has trained; the check-up says so.

    python -m bridges checkup book/examples/my_llava.py --html report.html

Put your own model and some held-out samples in their places: `batch` is what the model is called with, labels among it.
In a script or a notebook, `checkup(model, batch)` is all.
"""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

WORDS, IMAGE, PLACES = 120, 119, 4  # of the vocabulary; the id that stands for an image; how often it does for each

torch.manual_seed(0)
eyes = CLIPVisionConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=16
)
mouth = LlamaConfig(vocab_size=WORDS, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
config = LlavaConfig(vision_config=eyes, text_config=mouth, image_token_index=IMAGE, vision_feature_layer=-2)
model = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
model.model.multi_modal_projector.requires_grad_(True)  # what is trained

said = torch.randint(3, IMAGE, (128, 8))  # held-out samples: what is to be said of each image, after the image itself
said[:, -1] = 2  # the end
ids = torch.cat([torch.full((128, PLACES), IMAGE), said], 1)
labels = torch.cat([torch.full((128, PLACES), -100), said], 1)
pixels = torch.randn(WORDS, 3, 32, 32)[said].mean(1)  # images that hold a pattern for each word
batch = {"input_ids": ids, "pixel_values": pixels, "labels": labels}
