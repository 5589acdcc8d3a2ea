"""The embedded model through the real hub, and many processes that want one model at once."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from rtp_serve.config.model import read_model_config
from rtp_serve.loader.hub import models, resolve
from rtp_serve.text.chat_template import ChatTemplate
from rtp_serve.text.tokenizer import Tokenizer
from tests.unit.loader.gguf_files import tiny_gguf

ALIAS = "smollm2-135m-instruct"
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
ROOT = Path(__file__).parents[2]
RESOLVE_AND_COUNT = """
import sys
from pathlib import Path
from rtp_serve.loader import hub
from rtp_serve.loader.gguf import convert
log, convert_gguf = Path(sys.argv[3]), convert.convert_gguf
def counted(*args, **options):
    with log.open("a") as file:
        file.write("x")
    convert_gguf(*args, **options)
convert.convert_gguf = counted
print(hub.resolve(sys.argv[1], cache=Path(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    """In the ordinary cache, so that a machine downloads it once."""
    return resolve(ALIAS)


def test_the_embedded_model_is_converted_to_the_same_bytes_everywhere(checkpoint: Path):
    with (checkpoint / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == WEIGHTS_SHA256
    (entry,) = models()
    assert entry.is_cached
    assert entry.num_parameters * 2 < (checkpoint / "model.safetensors").stat().st_size


def test_the_embedded_model_is_what_it_says(checkpoint: Path):
    config = read_model_config(checkpoint)
    assert (config.hidden_size, config.num_layers, config.num_kv_heads) == (576, 30, 3)
    assert (config.vocab_size, config.max_model_len) == (49152, 8192)
    assert config.tie_word_embeddings
    assert config.eos_token_ids == (2,)


def test_known_texts_have_their_known_ids(checkpoint: Path):
    """Ids from the model's publisher."""
    tokenizer = Tokenizer.from_directory(checkpoint)
    assert tokenizer.encode("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert tokenizer.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert tokenizer.encode("<|im_start|>\n<|im_end|>") == [1, 198, 2]


def test_a_question_becomes_the_models_own_prompt(checkpoint: Path):
    prompt = ChatTemplate.from_directory(checkpoint).render([{"role": "user", "content": "Hi"}])
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_processes_that_start_together_convert_once(tmp_path: Path):
    model = str(tiny_gguf(tmp_path / "tiny.gguf"))
    log = tmp_path / "log"
    command = [sys.executable, "-c", RESOLVE_AND_COUNT, model, str(tmp_path / "cache"), str(log)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)
    ]
    said = {process.communicate(timeout=60)[0] for process in processes}
    assert len(said) == 1
    assert log.read_text() == "x"
