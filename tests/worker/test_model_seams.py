"""The places where later parts plug into a model: used by nothing else yet."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rtp_serve.config.model import RopeConfig, read_model_config
from rtp_serve.models.layers.rotary import RotaryEmbedding
from rtp_serve.models.model import Model, ModelInputs
from rtp_serve.worker.loading import load_model
from tests.checkpoints import tiny_config, write_checkpoint
from tests.worker.engines import all_logits, make_cache, make_prompt, whole_prompt

PROMPT = make_prompt(20)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, tiny_config("Qwen3ForCausalLM"))


@pytest.fixture
def model(directory: Path) -> Model:
    return load_model(
        directory, read_model_config(directory), torch.float32, max_positions=128
    ).model


def run(model: Model, inputs: ModelInputs) -> torch.Tensor:
    with torch.inference_mode():
        return all_logits(model, model.forward(inputs, make_cache(model.config)).last)


@pytest.mark.parametrize(
    "path", ["layers.1.attention.qkv_proj", "layers.0.mlp.down_proj", "lm_head"]
)
def test_a_linear_is_replaced_by_any_callable(model: Model, path: str):
    inputs = whole_prompt(PROMPT)
    before, original = run(model, inputs), model.linear(path)
    model.replace_linear(path, lambda x: original(x))
    assert torch.equal(run(model, inputs), before)
    model.replace_linear(path, lambda x: original(x) * 1.5)
    assert not torch.equal(run(model, inputs), before)


@pytest.mark.parametrize("path", ["layers.1.attention", "layers.0.mlp.no_proj", "norm", "x.y_proj"])
def test_an_unknown_linear_is_named(model: Model, path: str):
    with pytest.raises(KeyError, match=path):
        model.replace_linear(path, lambda x: x)


def test_embeddings_replace_all_tokens_or_some(model: Model):
    expected = run(model, whole_prompt(PROMPT))
    embedding = model.embedding(np.array(PROMPT))
    nonsense = [0] * len(PROMPT)
    assert torch.equal(run(model, whole_prompt(nonsense, embeds=embedding)), expected)
    is_embedded = torch.arange(len(PROMPT)) % 3 == 0
    mixed = torch.where(is_embedded, 0, torch.tensor(PROMPT)).tolist()
    rows = torch.where(is_embedded[:, None], embedding, torch.nan)
    given = whole_prompt(mixed, embeds=rows, is_embedded=is_embedded)
    assert torch.equal(run(model, given), expected)


def test_the_given_embeddings_are_left_alone(model: Model):
    embedding = model.embedding(np.array(PROMPT))
    before = embedding.clone()
    run(model, whole_prompt(PROMPT, embeds=embedding))
    assert torch.equal(embedding, before)


def test_taps_are_the_hidden_states_of_transformers(model: Model, directory: Path):
    with torch.inference_mode():
        reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        expected = reference(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states
        hidden = model.forward(whole_prompt(PROMPT), make_cache(model.config), taps=(1, 0))
    assert len(hidden.taps) == 2
    torch.testing.assert_close(hidden.taps[0], expected[2][0], atol=1e-4, rtol=0)
    torch.testing.assert_close(hidden.taps[1], expected[1][0], atol=1e-4, rtol=0)


def test_equal_position_rows_are_plain_positions(directory: Path):
    config = read_model_config(directory)
    sections = replace(config, rope=replace(config.rope, mrope_sections=(4, 2, 2)))
    model = load_model(directory, sections, torch.float32, max_positions=128).model
    positions = np.tile(np.arange(len(PROMPT)), (3, 1))
    assert torch.equal(
        run(model, whole_prompt(PROMPT, positions=positions)), run(model, whole_prompt(PROMPT))
    )


def test_each_position_row_turns_its_own_frequencies():
    sections = (4, 2, 2)
    rotary = RotaryEmbedding(RopeConfig(mrope_sections=sections), 16, 64, like=torch.empty(0))
    positions = torch.tensor([[3, 9], [5, 1], [2, 40]])
    query, key = torch.randn(2, 4, 16), torch.randn(2, 2, 16)
    turned, turned_key = query.clone(), key.clone()
    rotary(turned, turned_key, positions)
    start = 0
    for row, size in zip(positions, sections, strict=True):
        plain, plain_key = query.clone(), key.clone()
        rotary(plain, plain_key, row.contiguous())
        for half in (0, 8):
            part = slice(half + start, half + start + size)
            torch.testing.assert_close(turned[..., part], plain[..., part])
            torch.testing.assert_close(turned_key[..., part], plain_key[..., part])
        start += size


def test_a_window_forgets_what_is_too_far_back(model: Model):
    inputs = whole_prompt(PROMPT)
    windowed = replace(inputs, attention=replace(inputs.attention, window=4))
    full, near = run(model, inputs), run(model, windowed)
    torch.testing.assert_close(near[:4], full[:4])
    assert not torch.allclose(near[4:], full[4:], atol=1e-3)


def test_an_ancestor_mask_lets_two_drafts_share_a_prefix(model: Model):
    """Tokens a b | c and a b | d in one tree give the logits of the two chains."""
    a, b, c, d = PROMPT[:4]
    tree = whole_prompt([a, b, c, d], positions=np.array([0, 1, 2, 2]))
    mask = np.array([0b0001, 0b0011, 0b0111, 0b1011])
    tree = replace(tree, attention=replace(tree.attention, ancestor_mask=mask))
    logits = run(model, tree)
    torch.testing.assert_close(logits[2], run(model, whole_prompt([a, b, c]))[2])
    torch.testing.assert_close(logits[3], run(model, whole_prompt([a, b, d]))[2])
