"""Tiny tokenizers of the two kinds that checkpoints have, written as checkpoint directories."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from rtp_serve.text import tokenizer as text_tokenizer

SPECIALS = ("<|end|>", "<|start|>")


def byte_level_directory(directory: Path, merges: str = "h e,l l,he ll", **config: Any) -> Path:
    """GPT-2's kind: 256 byte letters, then the merged tokens, then the special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [tuple(pair.split(" ")) for pair in merges.split(",")]
    tokens = [*letters, *("".join(pair) for pair in pairs)]
    backend = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=pairs)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    return _write(directory, backend, bos_token="<|start|>", eos_token="<|end|>", **config)


def prefix_space_directory(directory: Path, **config: Any) -> Path:
    """Llama-2's kind: a space before the text, `▁` for spaces, byte tokens for rare letters."""
    specials = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*specials, *byte_tokens, *"▁helowrdaé", "he", "ll", "▁he", "▁w"]
    pairs = [("h", "e"), ("l", "l"), ("▁", "he"), ("▁", "w")]
    backend = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=pairs,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    return _write(directory, backend, bos_token="<s>", eos_token="</s>", **config)


def byte_level_tokenizer(directory: Path, **config: Any) -> text_tokenizer.Tokenizer:
    return text_tokenizer.Tokenizer.from_directory(byte_level_directory(directory, **config))


def prefix_space_tokenizer(directory: Path, **config: Any) -> text_tokenizer.Tokenizer:
    return text_tokenizer.Tokenizer.from_directory(prefix_space_directory(directory, **config))


def _write(directory: Path, backend: Tokenizer, **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {}, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
