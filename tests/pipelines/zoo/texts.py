"""Tokenizers and text encoders with random weights: the tokens are the words of a short list, all else is unknown."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    ByT5Tokenizer,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.t5gemma2.configuration_t5gemma2 import T5Gemma2EncoderConfig, T5Gemma2TextConfig
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

WORDS = """
a and at blue blurry circle cube down fast green left moves of on one picture red right square squares table the three
triangle two up yellow
"""
TOKENS = 16
"""Longest prompt."""

Texts = tuple[PreTrainedTokenizerFast, PreTrainedModel]

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{{ part['text'] if 'text' in part else '' }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
LLAMA_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>")


def tokenizer(
    *, begin: int = False, end: bool = True, extra: Sequence[str] = (), chat: str | None = None, longest: int = TOKENS
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words that puts <s>, or several, before and </s> after a text where asked to."""
    specials = ["<pad>", "</s>", "<unk>", "<s>"]
    vocabulary = {word: index for index, word in enumerate([*specials, *WORDS.split()])}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    model.normalizer, model.pre_tokenizer = Lowercase(), Whitespace()
    model.post_processor = TemplateProcessing(
        single=" ".join(["<s>"] * begin + ["$A"] + ["</s>"] * end), special_tokens=[("<s>", 3), ("</s>", 1)]
    )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    made = PreTrainedTokenizerFast(tokenizer_object=model, model_max_length=longest, chat_template=chat, **names)
    made.add_special_tokens({"additional_special_tokens": list(extra)})
    return made


def clip(*, projection: bool = False, width: int = 32, longest: int = TOKENS) -> Texts:
    """Return a CLIP text encoder, with its projection head where asked for."""
    words = tokenizer(begin=True, longest=longest)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=longest,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        projection_dim=width,
    )
    return words, (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5(*, width: int = 32, umt5: bool = False) -> Texts:
    """Return a T5 or UMT5 encoder, without its dropout."""
    words = tokenizer()
    config = (UMT5Config if umt5 else T5Config)(
        vocab_size=len(words),
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
    )
    return words, (UMT5EncoderModel if umt5 else T5EncoderModel)(config)


def _decoder(words: PreTrainedTokenizerFast, layers: int) -> dict[str, int]:
    return {
        "vocab_size": len(words),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 3,
        "eos_token_id": 1,
    }


def llama(layers: int = 3) -> Texts:
    """Return a Llama without a head; HunyuanVideo reads its third layer from the end."""
    words = tokenizer(begin=True, end=False, extra=LLAMA_TOKENS, longest=1024)
    return words, LlamaModel(LlamaConfig(**_decoder(words, layers)))


def qwen3(layers: int = 3, *, head: bool = False) -> Texts:
    """Return a Qwen 3, of width 16."""
    words = tokenizer(end=False, extra=CHAT_TOKENS, chat=CHAT, longest=1024)
    config = Qwen3Config(**_decoder(words, layers), head_dim=8)
    return words, (Qwen3ForCausalLM if head else Qwen3Model)(config)


ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}


def qwen25_vl(front: int = 0) -> Texts:
    """Return a Qwen 2.5 VL, of width 16.

    Args:
        front: Tokens before a text. Where a pipeline cuts off as many as its own words make, and this tokenizer has
            fewer words, the prompt would be cut off, too.
    """
    words = tokenizer(end=False, begin=front, extra=CHAT_TOKENS, chat=CHAT, longest=1024)
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(
        text_config={**_decoder(words, 2), "rope_parameters": ROPE},
        vision_config={**eyes, "patch_size": 14, "fullatt_block_indexes": [0]},
        vocab_size=len(words),
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
    )
    return words, Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl(*, head: bool = False) -> Texts:
    """Return a Qwen 3 VL, of width 16."""
    words = tokenizer(end=False, extra=CHAT_TOKENS, chat=CHAT, longest=1024)
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen3VLConfig(
        text_config={**_decoder(words, 3), "head_dim": 8, "rope_parameters": ROPE},
        vision_config={**eyes, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
    )
    return words, (Qwen3VLForConditionalGeneration if head else Qwen3VLModel)(config)


def qwen3_vl_processor() -> tuple[PreTrainedModel, Qwen3VLProcessor]:
    """Return a Qwen 3 VL with a head, of width 16, and what prepares its texts and pictures of 64 pixels."""
    words, encoder = qwen3_vl(head=True)
    eyes = Qwen2VLImageProcessor(min_pixels=64 * 64, max_pixels=64 * 64, patch_size=16)
    return encoder, Qwen3VLProcessor(eyes, words, Qwen3VLVideoProcessor(), chat_template=CHAT)


def gemma2() -> Texts:
    """Return a Gemma 2 without a head, of width 16."""
    words = tokenizer(begin=True, end=False, longest=1024)
    return words, Gemma2Model(Gemma2Config(**_decoder(words, 2), head_dim=8))


def glm() -> Texts:
    """Return a GLM without a head, of width 16."""
    words = tokenizer(begin=True, end=False, longest=1024)
    return words, GlmModel(GlmConfig(**_decoder(words, 2), head_dim=8))


def qwen25_vl_text(cut: int) -> Texts:
    """Return the language half of a Qwen 2.5 VL, of width 16.

    Args:
        cut: Tokens that a pipeline takes for its own words before the prompt, and cuts off again. Words of this
            tokenizer are fewer: without as many in front, the prompt would be cut off, too.
    """
    words = tokenizer(end=False, extra=CHAT_TOKENS, chat=CHAT_TOKENS[0] * cut + CHAT, longest=2048)
    return words, Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**_decoder(words, 3), rope_parameters=ROPE))


def byt5() -> tuple[ByT5Tokenizer, T5EncoderModel]:
    """Return a T5 that reads bytes, of width 32."""
    letters = ByT5Tokenizer()
    config = T5Config(vocab_size=len(letters), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, dropout_rate=0.0)
    return letters, T5EncoderModel(config)


def clip_vision(*, projection: bool = False) -> tuple[CLIPImageProcessor, PreTrainedModel]:
    """Return a CLIP that looks, of width 16, and what prepares its pictures."""
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
    )
    reader = CLIPImageProcessor(crop_size=16, size={"shortest_edge": 16})
    return reader, (CLIPVisionModelWithProjection if projection else CLIPVisionModel)(config)


def qwen25_vl_processor() -> tuple[PreTrainedTokenizerFast, PreTrainedModel, Qwen2VLProcessor]:
    """Return a Qwen 2.5 VL, of width 16, that sees pictures of 56 pixels."""
    words, encoder = qwen25_vl()
    eyes = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=56 * 56)
    processor = Qwen2VLProcessor(eyes, words, Qwen2VLVideoProcessor(), chat_template=CHAT)
    return words, encoder, processor


SEEN = 4
"""Tokens of a picture: 2 x 2 patches."""


def llava() -> tuple[PreTrainedTokenizerFast, PreTrainedModel, CLIPImageProcessor, dict[str, object]]:
    """Return a Llava, of width 16, and the prompt template that shows HunyuanVideo I2V its picture."""
    words = tokenizer(begin=True, end=False, extra=LLAMA_TOKENS, longest=1024)
    eyes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config=LlamaConfig(**_decoder(words, 3)),
        vision_config=CLIPVisionConfig(**eyes, image_size=8, patch_size=4, projection_dim=8),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        pad_token_id=words.pad_token_id,
    )
    reader = CLIPImageProcessor(crop_size=8, size={"shortest_edge": 8})
    user = "<|start_header_id|>user<|end_header_id|>"
    text = f"<|start_header_id|>system<|end_header_id|><image>the picture moves<|eot_id|>{user}{{}}<|eot_id|>"
    before = words(text.split("{}")[0]).input_ids
    start = before.index(words.convert_tokens_to_ids("<image>"))
    template = {
        "template": text + "<|start_header_id|>assistant<|end_header_id|>",
        "crop_start": len(before),
        "image_emb_len": SEEN,
        "image_emb_start": start,
        "image_emb_end": start + SEEN,
        "double_return_token_id": 271,
    }
    return words, LlavaForConditionalGeneration(config), reader, template


def gemma3() -> Texts:
    """Return a Gemma 3, of width 32."""
    words = tokenizer(begin=True, end=False, longest=1024)
    sizes = {**_decoder(words, 2), "hidden_size": 32, "head_dim": 8}
    eyes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config=sizes, vision_config={**eyes, "image_size": 8, "patch_size": 4})
    return words, Gemma3ForConditionalGeneration(config)


def t5_gemma2() -> tuple[PreTrainedTokenizerFast, PreTrainedModel, SiglipImageProcessor]:
    """Return the encoder of a T5 Gemma 2, of width 32, its eyes of width 16, and what prepares their pictures."""
    words = tokenizer(begin=True, end=False)
    eyes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = T5Gemma2EncoderConfig(
        text_config=T5Gemma2TextConfig(**{**_decoder(words, 2), "hidden_size": 32, "head_dim": 16}, dropout_rate=0.0),
        vision_config=SiglipVisionConfig(**eyes, image_size=8, patch_size=4),
        mm_tokens_per_image=4,
    )
    return words, T5Gemma2Encoder(config), SiglipImageProcessor(size={"height": 8, "width": 8})
